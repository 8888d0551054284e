"""Frames written by others, and what a decoder must read in them (``data/README.md``)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from schemas.gbt32960.reference import decode_frame

GOLDEN = json.loads((Path(__file__).parent / "data" / "frames.json").read_text())


def walk(tree, path: str):
    """Value at a key path; list indices are numbers, -1 is the last, ``len`` a list's length."""
    for step in path.split("."):
        key = int(step) if isinstance(tree, list) and step != "len" else step
        tree = len(tree) if isinstance(tree, list) and step == "len" else tree[key]
    return tree


def same(found, expected) -> bool:
    """Equal; numbers within 1e-9, lists item by item, and 5 is not True."""
    if isinstance(expected, list):
        return isinstance(found, list) and len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, bool) or expected is None or isinstance(expected, str):
        return type(found) is type(expected) and found == expected
    return not isinstance(found, bool) and isinstance(found, int | float) and abs(found - expected) <= 1e-9


@pytest.mark.parametrize("entry", GOLDEN, ids=lambda entry: entry["id"])
def test_every_expectation_is_met(entry):
    tree = decode_frame(entry["hex"])
    wrong = {
        path: (walk(tree, path), value) for path, value in entry["expect"].items() if not same(walk(tree, path), value)
    }
    assert not wrong
    assert tree["edition"] == entry["edition"]
    assert (tree["bcc_ok"] and tree["length_ok"]) == entry["valid"]
    json.dumps(tree)


def test_there_are_sixty():
    assert len(GOLDEN) == 60
