"""``@proves``: which normative statements a test proves; it runs once for each, under the statement's name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest

from schemas.mqtt.wire import V5, V311
from tests.conformance.statements import STATEMENTS

_IDS: Final = {(one.version, one.number): one.id for one in STATEMENTS}

PROVED: Final[dict[tuple[str, str], list[str]]] = {}  # (version, number) → names of tests


def proves(v311: str = "", v5: str = "") -> Callable[[Any], Any]:
    """Statement numbers, apart by blanks, of either version; the test is given ``version``, 4 or 5."""
    named = [("3.1.1", number) for number in v311.split()] + [("5", number) for number in v5.split()]

    def decorate(test: Any) -> Any:
        for one in named:
            names = PROVED.setdefault(one, [])
            if test.__name__ not in names:
                names.append(test.__name__)
        versions = [V5 if version == "5" else V311 for version, _ in named]
        return pytest.mark.parametrize("version", versions, ids=[_IDS[one] for one in named])(test)

    return decorate
