"""CSV as people have it, read into rows: encodings, delimiters, header names, and every mistake at once.

UTF-8 with or without a byte order mark, UTF-16 with one, GB18030 (Excel in China); comma, semicolon or tab.
A sheet is read whole or refused whole: the caller gets rows and mistakes, and decides.  Nothing is guessed in a
cell: what cannot be read is a mistake with line, column, value and what would be right.
"""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import tzinfo
from typing import Any, Final

from schemas.registry.columns import CellError, Column, Sheet

LINES_MAX: Final = 2_000_000
MISTAKES_MAX: Final = 100  # kept; the others are counted
VALUE_MAX: Final = 60  # characters of a refused cell that are given back
PROBLEM: Final = "problem"  # a column that is skipped: the reader's own, in a file of refused lines
_KEEP: Final = object()


@dataclass(frozen=True, slots=True)
class Mistake:
    """A cell, or with ``column`` empty a line, that cannot be used.  ``line`` counts from 1, the header's."""

    line: int
    column: str
    value: str
    wrong: str
    fix: str

    def __str__(self) -> str:
        column = f", {self.column}" if self.column else ""
        value = f" {self.value!r}" if self.column else ""
        return f"line {self.line}{column}:{value} {self.wrong}; {self.fix}"


@dataclass(slots=True)
class Parsed:
    """Rows of a sheet.

    ``rows``: (line, given, key, *values of ``sheet.columns``); bit i of ``given`` says that column i was given.
    ``bad``: lines that have a mistake, as they were, with what is wrong; ``header`` as it was.
    """

    sheet: Sheet
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    mistakes: list[Mistake] = field(default_factory=list)
    mistakes_count: int = 0
    bad: list[tuple[list[str], str]] = field(default_factory=list)
    header: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # columns of the file that are not known
    encoding: str = ""
    lines: int = 0
    fatal: bool = False  # a mistake of the file, not of a line: it cannot be left out

    def add(self, mistake: Mistake, fatal: bool = False) -> None:
        self.mistakes_count += 1
        self.fatal = self.fatal or fatal
        if len(self.mistakes) < MISTAKES_MAX:
            self.mistakes.append(mistake)


def read_sheet(content: bytes, sheet: Sheet, zone: tzinfo, ignore_unknown: bool = False) -> Parsed:
    """``content`` as rows of ``sheet``; dates without offset are those of ``zone``.  Never raises for its content."""
    parsed = Parsed(sheet)
    text = _text(content, parsed)
    if text is None:
        return parsed
    skipped = 0
    delimiter = ""
    if found := re.match(r"sep=(.)\r?\n", text):  # Excel's own hint
        delimiter, text, skipped = found[1], text[found.end() :], 1
    delimiter = delimiter or _delimiter(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    lines = _lines(reader, parsed, skipped)
    header = next(lines, None)
    if header is None:
        if not parsed.mistakes:
            parsed.add(Mistake(1, "", "", "the file is empty", "begin with a line of column names"), fatal=True)
        return parsed
    parsed.header = header[1]
    places = _places(header[0], header[1], parsed, ignore_unknown)
    if places is None:
        return parsed
    _rows(lines, places, parsed, zone, decimal_comma=delimiter == ";")
    return parsed


def bad_lines(parsed: Parsed) -> bytes:
    """The refused lines as a file of their own, to be put right: as they were, and why, in a column that is skipped."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*(name for name in parsed.header), PROBLEM])
    width = len(parsed.header)
    for cells, why in parsed.bad:
        writer.writerow([*(cells + [""] * width)[: max(width, len(cells))], why])
    return b"\xef\xbb\xbf" + text.getvalue().encode()  # the mark, so that Excel reads it


def write_sheet(
    sheet: Sheet, rows: Sequence[Sequence[Any]], zone: tzinfo, *, header: bool = True, unknown: str = "-"
) -> str:
    """Rows (values of ``sheet.all``, in that order) as CSV that ``read_sheet`` reads back to the same.

    ``unknown``: what None is written as; empty, it leaves what is known as it is.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    if header:
        writer.writerow([column.name for column in sheet.all])
    columns = sheet.all
    writer.writerows(
        [
            (unknown if column.clears else "") if value is None else column.write(value, zone)
            for column, value in zip(columns, row, strict=True)
        ]
        for row in rows
    )
    return text.getvalue()


# -- inside -----------------------------------------------------------------------------------------------------
def _text(content: bytes, parsed: Parsed) -> str | None:
    if content[:4] == b"PK\x03\x04" or content[:4] == b"\xd0\xcf\x11\xe0":
        wrong, fix = "this is an Excel workbook, not CSV", "save it as “CSV UTF-8” and give that file"
        parsed.add(Mistake(1, "", "", wrong, fix), fatal=True)
        return None
    tries = ("utf-16",) if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8-sig", "gb18030")
    text = None
    for encoding in tries:
        try:
            text, parsed.encoding = content.decode(encoding), encoding.removesuffix("-sig")
        except UnicodeDecodeError as error:
            at = error.start
            continue
        break
    if text is None:
        line = content.count(b"\n", 0, at) + 1
        wrong = f"byte {at + 1} of the file is neither UTF-8 nor GB18030"
        parsed.add(Mistake(line, "", "", wrong, "save the file as “CSV UTF-8”"), fatal=True)
        return None
    if (nul := text.find("\0")) >= 0:
        line = text.count("\n", 0, nul) + 1
        parsed.add(Mistake(line, "", "", "holds a NUL", "save the file as “CSV UTF-8”"), fatal=True)
        return None
    return text


def _delimiter(text: str) -> str:
    first = re.sub(r'"[^"]*"', "", text.lstrip("\r\n").partition("\n")[0])
    return max(",;\t，", key=lambda sign: (first.count(sign), sign == ","))


def _lines(reader: Any, parsed: Parsed, skipped: int) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of each line that holds anything; a quote that does not end stops it."""
    while True:
        line = reader.line_num + 1 + skipped
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            wrong = f"cannot be taken apart ({error})"
            fix = 'a quote in a cell is written "", and a cell with one stands in quotes'
            parsed.add(Mistake(line, "", "", wrong, fix), fatal=True)
            return
        if any(cells):
            parsed.lines += 1
            if parsed.lines > LINES_MAX + 1:
                wrong = f"the file has more than {LINES_MAX:,} lines"
                parsed.add(Mistake(line, "", "", wrong, "split it"), fatal=True)
                return
            yield line, cells


_TITLE_MAX: Final = 200  # characters of a title that are looked at
_TITLES_MAX: Final = 500


def _name(title: str) -> str:
    """A header name without what people add: case, spaces, underscores, units in brackets."""
    plain = re.sub(r"[\s_\-]", "", title.strip()[:_TITLE_MAX].lower())  # the search for brackets is quadratic
    return re.sub(r"[(\uff08\[【].*?[)\uff09\]】]", "", plain)


def _known(sheet: Sheet) -> dict[str, str]:
    known = {}
    for column in sheet.all:
        for name in (column.name, *column.names):
            known[_name(name)] = column.name
            if column.unit:
                known[_name(name + column.unit)] = column.name
    return known


_AMBIGUOUS: Final = {
    _name(name): "battery_kwh (电池能量) or battery_ah (额定容量)" for name in ("电池容量", "capacity")
}


def _places(line: int, header: list[str], parsed: Parsed, ignore_unknown: bool) -> list[Column | None] | None:
    """The column of each place of a line; None when the header has a mistake."""
    sheet, known = parsed.sheet, _known(parsed.sheet)
    places: list[Column | None] = []
    before = parsed.mistakes_count
    if len(header) > _TITLES_MAX:
        wrong = f"the line has {len(header):,} columns, more than {_TITLES_MAX}"
        parsed.add(Mistake(line, "", "", wrong, "leave out what the registry does not have"), fatal=True)
        return None
    for title in header:
        plain = _name(title)
        name = known.get(plain)
        if name is None and plain in _AMBIGUOUS and "battery_ah" in known.values():
            unit = re.search(r"kwh|ah", title.lower())
            name = {"kwh": "battery_kwh", "ah": "battery_ah"}.get(unit[0]) if unit else None
            if name is None:
                wrong = "may be energy or capacity"
                parsed.add(Mistake(line, title, title, wrong, f"call it {_AMBIGUOUS[plain]}"), fatal=True)
                continue
        if name is None and (plain == PROBLEM or not plain):
            places.append(None)
            continue
        if name is None:
            if ignore_unknown:
                parsed.left_out.append(title.strip()[:VALUE_MAX])
                places.append(None)
                continue
            near = difflib.get_close_matches(plain, known, n=1, cutoff=0.6)
            hint = f"did you mean {known[near[0]]}? " if near else ""
            fix = f"{hint}columns are {', '.join(column.name for column in sheet.all)}"
            short = title.strip()[:VALUE_MAX]
            parsed.add(Mistake(line, short, short, "is not a column of this sheet", fix), fatal=True)
            continue
        if any(place is not None and place.name == name for place in places):
            parsed.add(Mistake(line, name, title, "is there twice", "leave one of them out"), fatal=True)
        places.append(sheet.column(name))
    if parsed.mistakes_count == before and sheet.key not in places:
        names = ", ".join((sheet.key.name, *sheet.key.names))
        wrong = f"there is no column {sheet.key.name}"
        parsed.add(Mistake(line, sheet.key.name, "", wrong, f"the first line names the columns; one is {names}"), True)
    return places if parsed.mistakes_count == before else None


def _rows(
    lines: Iterator[tuple[int, list[str]]], places: list[Column | None], parsed: Parsed, zone: tzinfo,
    decimal_comma: bool,
) -> None:  # fmt: skip
    sheet = parsed.sheet
    at = {column.name: n for n, column in enumerate(sheet.columns)}
    # Most columns hold few different words: each is read once.
    plans = [
        (place, column, at.get(column.name, -1), {})
        for place, column in enumerate(places)
        if column is not None and column is not sheet.key
    ]  # type: list[tuple[int, Column, int, dict[str, Any]]]
    key_place = places.index(sheet.key)
    seen: dict[Any, int] = {}
    width = len(places)
    blank = [None] * len(sheet.columns)
    for line, cells in lines:
        found: list[Mistake] = []
        if len(cells) != width and (len(cells) < width or any(cells[width:])):
            wrong = f"has {len(cells)} cells, the header {width}"
            fix = "a cell that holds the delimiter stands in quotes; a line that was cut off is to be made whole"
            found.append(Mistake(line, "", "", wrong, fix))
        else:
            values = blank.copy()
            given = 0
            key: Any = None
            text = cells[key_place].strip()
            try:
                key = sheet.key.read(text, zone) if text else None
                if key is None:
                    raise CellError("is empty", sheet.key.allowed)
                if (first := seen.setdefault(key, line)) != line:
                    raise CellError(f"is on line {first} already", f"one line for a {sheet.noun}")
            except CellError as error:
                found.append(_mistake(line, sheet.key, text, error))
            for place, column, n, known in plans:
                cell = cells[place]
                value = known.get(cell, _KEEP)
                if value is _KEEP:
                    text = cell.strip()
                    if not text:
                        continue
                    try:
                        value = column.read(text, zone, decimal_comma)
                    except CellError as error:
                        found.append(_mistake(line, column, text, error))
                        continue
                    if len(known) < 10_000:
                        known[cell] = value
                values[n] = value
                given |= 1 << n
        if found:
            for mistake in found:
                parsed.add(mistake)
            parsed.bad.append((cells, "; ".join(f"{m.column or 'line'}: {m.wrong} ({m.fix})" for m in found)))
        else:
            parsed.rows.append((line, given, key, *values))


def _mistake(line: int, column: Column, value: str, error: CellError) -> Mistake:
    short = value if len(value) <= VALUE_MAX else value[: VALUE_MAX - 1] + "…"
    return Mistake(line, column.name, short, error.wrong, f"give {error.allowed}")
