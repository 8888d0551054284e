"""Where in a TOML file each key and value stands.

``tomllib`` gives values and no places, and the libraries that keep layout (tomlkit) give none either, so
this walks the same text again.  It only ever sees text that ``tomllib`` has accepted, and must never be
used to decide whether a file is valid or what a value is.
"""

from __future__ import annotations

import tomllib
from bisect import bisect_right
from dataclasses import dataclass

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Line and column (both from 1, in characters) of a key and of its value."""

    key: tuple[int, int]
    value: tuple[int, int]


def places(text: str) -> dict[Path, Place]:
    """Path → place, for everything in ``text``: ("block", 0, "signal", 2, "name").

    An array element and a table have the place of their first character (of their header) as key and value.
    """
    return _Walk(text.replace("\r\n", "\n")).run()


class _Walk:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.found: dict[Path, Place] = {}
        self.arrays: dict[Path, int] = {}  # arrays of tables → how many so far
        self.starts = [0, *(i + 1 for i, char in enumerate(text) if char == "\n")]

    def run(self) -> dict[Path, Place]:
        self.found[()] = Place((1, 1), (1, 1))
        table: Path = ()
        while True:
            self.skip(" \t\n")
            if self.at >= len(self.text):
                return self.found
            if self.text.startswith("[[", self.at):
                table = self.header(2)
            elif self.text[self.at] == "[":
                table = self.header(1)
            else:
                self.pair(table)

    def where(self, at: int) -> tuple[int, int]:
        line = bisect_right(self.starts, at)
        return line, at - self.starts[line - 1] + 1

    def put(self, path: Path, key: int, value: int) -> None:
        self.found.setdefault(path, Place(self.where(key), self.where(value)))

    def skip(self, blanks: str) -> None:
        """Past blanks, and comments where a line may end."""
        while self.at < len(self.text):
            if self.text[self.at] in blanks:
                self.at += 1
            elif self.text[self.at] == "#" and "\n" in blanks:
                self.at = self.end_of_line()
            else:
                return

    def end_of_line(self) -> int:
        end = self.text.find("\n", self.at)
        return len(self.text) if end < 0 else end

    def header(self, brackets: int) -> Path:
        begin = self.at
        self.at += brackets
        parts = self.key()
        self.at += brackets
        path: Path = ()
        for i, (part, _) in enumerate(parts):
            path += (part,)
            if brackets == 2 and i == len(parts) - 1:
                self.put(path, begin, begin)
                n = self.arrays.get(path, 0)
                self.arrays[path] = n + 1
                path += (n,)
            elif path in self.arrays:
                path += (self.arrays[path] - 1,)
            self.put(path, begin, begin)
        return path

    def key(self) -> list[tuple[str, int]]:
        """The parts of a dotted key with where each begins; ends at the first character after it."""
        parts = []
        while True:
            self.skip(" \t")
            begin = self.at
            if self.text[self.at] in "\"'":
                self.string()
            else:
                while self.text[self.at] not in " \t.=]":
                    self.at += 1
            raw = self.text[begin : self.at]
            parts.append((next(iter(tomllib.loads(f"{raw} = 0"))), begin))
            self.skip(" \t")
            if self.text[self.at] != ".":
                return parts
            self.at += 1

    def pair(self, table: Path) -> None:
        parts = self.key()
        self.at += 1  # =
        self.skip(" \t")
        path = table
        for part, begin in parts:
            path += (part,)
            self.put(path, begin, self.at)
        self.value(path)

    def value(self, path: Path) -> None:
        first = self.text[self.at]
        if first in "\"'":
            self.string()
        elif first == "[":
            self.array(path)
        elif first == "{":
            self.inline_table(path)
        else:
            while self.at < len(self.text) and self.text[self.at] not in ",]}#\n":
                self.at += 1

    def array(self, path: Path) -> None:
        self.at += 1
        n = 0
        while True:
            self.skip(" \t\n,")
            if self.text[self.at] == "]":
                self.at += 1
                return
            self.put((*path, n), self.at, self.at)
            self.value((*path, n))
            n += 1

    def inline_table(self, path: Path) -> None:
        self.at += 1
        while True:
            self.skip(" \t\n,")
            if self.text[self.at] == "}":
                self.at += 1
                return
            self.pair(path)

    def string(self) -> None:
        quote = self.text[self.at]
        mark = quote * 3 if self.text.startswith(quote * 3, self.at) else quote
        self.at += len(mark)
        while not self.text.startswith(mark, self.at):
            self.at += 2 if self.text[self.at] == "\\" and quote == '"' else 1
        self.at += len(mark)
        if len(mark) == 3:  # up to two quotes may stand right before the closing ones
            while self.at < len(self.text) and self.text[self.at] == quote:
                self.at += 1
