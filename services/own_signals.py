"""The signals file that the settings name, read and checked: for the pipeline, the API and the command line."""

from __future__ import annotations

from pathlib import Path

from schemas.custom.extract import Extractor
from schemas.custom.jsonfields import JsonFields
from schemas.custom.load import load
from schemas.custom.model import SignalsFile, SignalsFileError
from schemas.custom.tables import compile_tables
from schemas.samples.decode import Decoder
from schemas.samples.split import Limits
from services.errors import SettingsError


def signals_of(path: Path | None) -> SignalsFile | None:
    """The file at ``path``; None for none.  Raises ``SettingsError`` with every mistake in it."""
    if path is None:
        return None
    try:
        return load(path)
    except SignalsFileError as error:
        raise SettingsError(
            f"the signals file has mistakes (check it with `nevstream signals check {path}`):\n{error}"
        ) from error
    except OSError as error:
        raise SettingsError(
            f"pipeline.signals_file = {str(path)!r}: {error.strerror}; give the path of a file"
        ) from error


def extractor_of(path: Path | None) -> Extractor | None:
    """What takes the file's signals out of reports; None for no file.  Raises ``SettingsError``."""
    file = signals_of(path)
    return Extractor(compile_tables(file)) if file is not None else None


def samples_of(path: Path | None, limits: Limits) -> Decoder:
    """What decodes JSON samples, with the file's ``[[json]]`` fields.  Raises ``SettingsError``."""
    file = signals_of(path)
    if file is None or not file.json:
        return Decoder(limits=limits)
    return Decoder(JsonFields(file).apply, frozenset(field.source for field in file.json), limits)
