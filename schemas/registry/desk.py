"""The seam between those who ask about the registry and the store that keeps it.  Knows no SQL and no HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol

from schemas.registry.columns import Sheet
from schemas.registry.sheet import Parsed

if TYPE_CHECKING:
    from schemas.seams import Table

State = Literal["registered", "retired", "seen"]


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did, or with ``dry_run`` would do.  ``columns``: lines in which each column changes."""

    lines: int
    inserted: int
    changed: int
    unchanged: int
    reinstated: int = 0  # of the changed: vehicles that had been retired
    retired: int = 0
    columns: Mapping[str, int] = field(default_factory=dict)
    unknown_models: Mapping[str, int] = field(default_factory=dict)  # named by vehicles, not in the catalogue
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Retired:
    """What became of the vehicles to retire."""

    retired: tuple[str, ...]
    already: tuple[str, ...]
    unknown: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VehicleFilter:
    """Which vehicles; None leaves a condition out.  ``state`` seen: reported, never registered nor retired."""

    prefix: str = ""
    model: str | None = None
    fleet: str | None = None
    region: str | None = None
    usage: str | None = None
    state: State | None = None
    fleets: Sequence[str] | None = None


class RegistryDesk(Protocol):
    """What operators know of vehicles and models.  Every call raises ``StoreUnavailable``."""

    async def load(
        self, parsed: Parsed, *, dry_run: bool = False, retire_missing: bool = False, retire_most: bool = False
    ) -> Imported:
        """Merge the rows of a sheet in one transaction.

        ``retire_missing``: vehicles that are registered and not in it are retired; more than half of them only
        with ``retire_most``.  Raises ``UsageError``.
        """
        ...

    async def change(
        self, sheet: Sheet, key: str, values: Mapping[str, Any], *, whole: bool, create: bool
    ) -> Imported | None:
        """Set ``values`` of one vehicle or model; ``whole``: what is not in them becomes unknown.

        None when there is no such one and it is not to be created.
        """
        ...

    async def vehicles(self, wanted: VehicleFilter, *, after: str, limit: int) -> Table:
        """By VIN: what is known of each, its own and (``eff_…``) with its model's."""
        ...

    async def vehicle(self, vin: str) -> Mapping[str, Any] | None: ...

    async def retire(self, vins: Sequence[str]) -> Retired: ...

    async def models(self, *, prefix: str, after: str, limit: int, fleets: Sequence[str] | None = None) -> Table:
        """The catalogue by name, with the number of ``vehicles`` that are registered.

        ``fleets``: only models of which vehicles of these are registered, and those are counted.
        """
        ...

    async def model(self, name: str, *, fleets: Sequence[str] | None = None) -> Mapping[str, Any] | None: ...

    async def drop_model(self, name: str) -> bool:
        """Take a model out of the catalogue; vehicles keep its name.  False when it was not in it."""
        ...

    async def registrations(self, since: datetime, until: datetime, *, fleets: Sequence[str] | None = None) -> Table:
        """Vehicles registered in the range by model: ``vehicles`` and every column of the catalogue."""
        ...

    async def close(self) -> None: ...
