"""Where compiled kernels are kept: a folder that is named after everything they were compiled from.

numba looks only at the file of the kernel itself; a change in a *called* module, or another kernel mode,
would find yesterday's machine code.  So the folder's name is a digest of all files with kernels, the
mode, numba and Python: when any of them changes, the folder is another one, and empty.

``NEVSTREAM_KERNEL_CACHE`` names the parent folder (default: the user's cache directory).  Nothing of
numba is imported here, because the process that starts the others only wants the name.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Final

KEPT: Final = 3  # folders of earlier sources that stay, for going back and forth between versions
_PREFIX: Final = "kernels-"
_DEFINES_KERNELS: Final = re.compile(r"^@(?:kernel|compiled)\b", re.MULTILINE)
_IMPORTS: Final = re.compile(r"^from ((?:schemas|services)[\w.]*) import (\([^)]*\)|[^\n]*)", re.MULTILINE)


def mode() -> str:
    """The kernel mode that ``schemas.jit`` runs in, without importing numba for it."""
    return os.environ.get("NEVSTREAM_KERNELS", "compiled")


def parent_dir() -> Path:
    given = os.environ.get("NEVSTREAM_KERNEL_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nevstream"


def sources() -> list[Path]:
    """Every file that machine code depends on: those that define kernels, and all of ours that they import.

    Imported ones too because numba inlines the functions and freezes the constants that come from there.
    """
    root = Path(__file__).parent.parent
    texts = {
        file: file.read_text("utf-8")
        for package in ("schemas", "services/gateway", "services/pipeline", "services/statistics", "services/fleetsim")
        for file in (root / package).rglob("*.py")
    }
    found: set[Path] = set()
    waiting = [file for file, text in texts.items() if _DEFINES_KERNELS.search(text)]
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found.add(file)
        for module, names in _IMPORTS.findall(texts[file]):
            path = root.joinpath(*module.split("."))
            # `from package import module` names the file after the import
            named = [path / f"{name}.py" for name in re.findall(r"\w+", names)]
            waiting += [one for one in (path.with_suffix(".py"), path / "__init__.py", *named) if one in texts]
    return sorted(found)


def cache_dir(mode: str) -> Path:
    """The folder for these sources, this mode, this numba and this Python; not made yet."""
    digest = hashlib.sha256(f"{mode} {version('numba')} {version('llvmlite')} {sys.version}".encode())
    for file in sources():
        digest.update(str(file).encode())  # numba's own entries carry the path too
        digest.update(file.read_bytes())
    return parent_dir() / f"{_PREFIX}{digest.hexdigest()[:16]}"


def prepare(mode: str) -> Path | None:
    """Make the folder and forget all but the newest few; None when there is no place to write to."""
    folder = cache_dir(mode)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.utime(folder)
    except OSError:
        return None
    if not os.access(folder, os.W_OK):
        return None
    others = sorted(folder.parent.glob(f"{_PREFIX}*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in [path for path in others if path != folder][KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def is_warm(mode: str, group: str) -> bool:
    """Has a warm-up of this group of kernels ended with all of them in the folder?"""
    return (cache_dir(mode) / f"warm-{group}").exists()


def mark_warm(mode: str, group: str) -> None:
    """Say that the group's kernels are in the folder (nothing is said when there is no folder)."""
    folder = cache_dir(mode)
    if folder.is_dir():
        (folder / f"warm-{group}").touch()
