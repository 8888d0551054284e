"""Both edition tables by number."""

from __future__ import annotations

from typing import Final

from schemas.gbt32960 import edition2016, edition2025
from schemas.gbt32960.commands import Edition
from schemas.gbt32960.layout import EditionTable

EDITIONS: Final[dict[int, EditionTable]] = {Edition.E2016: edition2016.TABLE, Edition.E2025: edition2025.TABLE}
