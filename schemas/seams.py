"""The seams between stages.  A stage takes the next one as one of these and knows nothing more of it.

``topology`` joins them.  Each has an in-memory twin that passes the same contract tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.batch import Committed, RowBatch
from schemas.fleet_queries import FleetQueries
from schemas.map_view import MapQueries
from schemas.state_filter import StateFilter
from schemas.statistics.work import Carry, Claim, Standing, Swap, Swapped, Window


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A journal record (``schemas.journal.record``) and where it lies."""

    partition: int
    offset: int
    body: bytes


class JournalWriter(Protocol):
    """Where the gateway puts frames before it answers."""

    async def append(self, records: Sequence[tuple[int, bytes]]) -> list[int]:
        """Make (partition, record) pairs durable, all or none; returns their offsets.

        Returns only when the bytes survive a power cut.  Raises ``JournalUnavailable`` when it cannot
        say so: the caller keeps the records, waits, and appends the same again (they are then there once;
        only a writer that has ended in between may leave them twice).  Offsets of a partition rise in
        the order in which they become visible to readers.
        """
        ...

    async def close(self) -> None: ...


class JournalReader(Protocol):
    """Where the pipeline takes frames from.  Reading changes nothing; positions live in the store."""

    async def read(self, after: Mapping[int, int], bytes_max: int) -> list[StoredRecord]:
        """Records of the partitions in ``after`` beyond the given offsets (-1 = from the start).

        In offset order within a partition, about ``bytes_max`` bytes at most but at least one record
        when there is one; an empty list when there is none (returns at once, the caller sleeps).
        Raises ``JournalUnavailable``.
        """
        ...

    async def ends(self) -> dict[int, int]:
        """Newest offset of each partition that has any record."""
        ...

    async def offsets_at(self, time: datetime) -> dict[int, int]:
        """Offset of the first record appended at ``time`` or later, of each partition that has one.

        No record beyond it was appended earlier.
        """
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class KnownVehicles:
    """Vehicles of a set of partitions, as the store has them.

    vin (n, 17) u8 zero padded · vehicle_id (n,) i64 · last_key (n,) i64: the newest stored report as
    ``schemas.keys.order_key``, 0 when it has none.
    """

    vin: NDArray[np.uint8]
    vehicle_id: NDArray[np.int64]
    last_key: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Registered:
    """The registry's VINs, vins (n,) S17 zero padded and sorted; ``version`` is another when they are others."""

    vins: NDArray[np.bytes_]
    version: str


class VehicleDirectory(Protocol):
    """What the gateway asks about vehicles before it lets them in."""

    async def registered(self, version: str = "") -> Registered | None:
        """VINs in the registry (the allowlist); None when it still is ``version``.  Raises ``StoreUnavailable``."""
        ...

    async def password_hash(self, vin: str) -> str | None:
        """Argon2 hash of the vehicle's password, None when it has none.  Raises ``StoreUnavailable``."""
        ...

    async def close(self) -> None: ...


class Sink(Protocol):
    """Where the pipeline puts row batches: PostgreSQL, or memory in tests."""

    async def claim(self, partitions: Sequence[int]) -> None:
        """Be the one owner of these partitions: a commit of whoever had them before raises ``PositionsMoved``.

        Waits for one that is under way, so positions read afterwards are final.  A sink that never claims is
        fenced by positions alone: enough where partitions are dealt once and for all.
        """
        ...

    async def positions(self, partitions: Sequence[int]) -> dict[int, int]:
        """Journal offset up to which each partition is stored; -1 for nothing yet."""
        ...

    async def known_vehicles(self) -> KnownVehicles:
        """Every known vehicle, to fill the pipeline's table at start and after a failure."""
        ...

    async def register(self, vins: Sequence[str]) -> list[int]:
        """Ids of these VINs, in order; unknown ones become vehicles first (idempotent)."""
        ...

    async def commit(self, batch: RowBatch, *, keep: bool = True) -> Committed:
        """Write the batch and its journal positions in one transaction; with ``keep`` False take it all back.

        Raises ``PositionsMoved`` when another owner has committed past the batch's previous
        positions (nothing is written; start again from the store), ``StoreUnavailable`` when the
        database is away (nothing is known of the outcome; start again from the store).
        """
        ...

    async def close(self) -> None: ...


class StatisticsStore(Protocol):
    """What the statistics worker reads and writes.  Called from one thread; every method raises ``StoreUnavailable``.

    Whoever holds a share is the only one to work on its vehicles; a lost connection gives all shares back.
    """

    def hold(self, shares: Sequence[int]) -> list[int]:
        """Take what is free of ``shares`` (vehicle_id % 8); returns those that are held now."""
        ...

    def claim(self, shares: Sequence[int], *, urgent: bool, limit: int) -> Claim:
        """The oldest ``limit`` change records of ``shares``, only urgent ones where ``urgent``; they stay there."""
        ...

    def standings(self, vehicle_ids: Sequence[int]) -> list[Standing]:
        """The vehicles that there are, in any order."""
        ...

    def telemetry(self, windows: Sequence[Window]) -> bytearray:
        """Binary COPY of ``services.statistics.reading.COLUMNS``, by window; within one by time, kind, part."""
        ...

    def logouts(self, windows: Sequence[Window]) -> NDArray[np.int64]:
        """(k, 3): window, second from which on the vehicle is logged out, edition; by window and second."""
        ...

    def carries_before(self, days: Sequence[tuple[int, int]], layout: int) -> dict[int, Carry]:
        """(vehicle, day) → the last day with records before it, by vehicle."""
        ...

    def carries(self, days: Sequence[tuple[int, int, int]], layout: int) -> dict[int, list[Carry]]:
        """(vehicle, first, last day) → its days with records, in order, by vehicle."""
        ...

    def swap(self, swap: Swap) -> Swapped:
        """Make the tables say what ``swap`` says, in one transaction.

        With its ``done`` records it also judges the sign of the current anew where the vehicles of ``judge`` have
        a say, and marks for rebuild whom that turns.
        """
        ...

    def mark_stale(self, layout: int) -> int:
        """Mark for rebuild the vehicles whose checkpoint is of another layout or sign; returns how many."""
        ...

    def behind(self, shares: Sequence[int]) -> tuple[int, float]:
        """Change records of ``shares`` that wait, and the age of the oldest in seconds."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Table:
    """An answer of :class:`Queries`: ``rows`` are tuples in the order of ``columns``; times are aware, in UTC."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[Any, ...]]

    def dicts(self) -> list[dict[str, Any]]:
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


@dataclass(frozen=True, slots=True)
class StoreHealth:
    """What the store says of itself: its newest applied migration, and the one this program was built for."""

    schema_applied: str | None
    schema_expected: str

    @property
    def current(self) -> bool:
        return self.schema_applied == self.schema_expected


@dataclass(frozen=True, slots=True)
class LetterFilter:
    """Which dead letters; None leaves a condition out.  ``open``: neither requeued nor read by a replay."""

    reason: int | None = None
    vin: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    open: bool | None = None
    fleets: Sequence[str] | None = None  # of vehicles that are in one of them now


@dataclass(frozen=True, slots=True)
class FlawFilter:
    """Which counts of flawed signals: UTC days [since, until]; None leaves a condition out."""

    since: date
    until: date
    signal: str | None = None
    state: str | None = None
    vin: str | None = None
    fleets: Sequence[str] | None = None


LetterId = tuple[int, int, int]  # partition, offset, position: where the frame lies in the journal


@dataclass(frozen=True, slots=True)
class Requeued:
    """What a requeue did.  ``frames``: letter → where in the journal its frame now lies; ``skipped``: letter → why."""

    frames: Mapping[LetterId, LetterId]
    skipped: Mapping[LetterId, str]


class LetterDesk(Protocol):
    """Puts dead letters into the journal again.  Raises ``StoreUnavailable`` and ``JournalUnavailable``."""

    async def requeue(
        self, letters: Sequence[LetterId], *, by: str, frame: bytes | None = None, again: bool = False
    ) -> Requeued:
        """Append these letters' frames and mark them; ``frame`` replaces the bytes of a single one.

        A letter that was requeued or replayed already is skipped, unless ``again``.  When the journal has
        the frame and the mark is lost, a second requeue is a resend, which the pipeline drops.
        """
        ...

    async def requeue_all(self, wanted: LetterFilter, *, by: str, limit: int) -> Requeued:
        """The same for the open letters of a filter, oldest first, at most ``limit``.

        Letters refused because of who sent them are left out unless the filter names their reason.
        """
        ...

    async def close(self) -> None: ...


class SessionQueries(Protocol):
    """What is asked of one vehicle's statistics; a part of :class:`Queries`, and like it bounded and reading only."""

    async def vehicle_facts(self, vehicle_id: int) -> Mapping[str, Any] | None:
        """What the registry knows (view ``vehicle_facts``), telemetry_at, and open_day, through_at, newest_at.

        The last three are of its statistics: final before open_day, folded up to through_at, told up to newest_at.
        """
        ...

    async def sessions(
        self,
        table: str,
        vehicle_id: int,
        *,
        since: datetime,
        until: datetime,
        after: tuple[datetime, int] | None,
        limit: int,
    ) -> Table:
        """``trips`` or ``charges`` that start in [since, until), by (start_at, id); with nominal_s of their day."""
        ...

    async def sessions_touching(
        self, table: str, vehicle_id: int, *, since: datetime, until: datetime, limit: int
    ) -> Table:
        """The same for those of which any part lies in the range."""
        ...

    async def session(self, table: str, vehicle_id: int, number: int) -> Mapping[str, Any] | None:
        """One trip or charge by its id; None when this vehicle has none of that id."""
        ...

    async def vehicle_days(
        self, vehicle_id: int, *, first: date, last: date, columns: Sequence[str], limit: int
    ) -> Table:
        """day and ``columns`` of ``vehicle_day``, local days [first, last]."""
        ...

    async def vehicle_hours(
        self, vehicle_id: int, *, since: datetime, until: datetime, columns: Sequence[str], limit: int
    ) -> Table:
        """hour (its begin) and ``columns`` of ``vehicle_hour``."""
        ...

    async def resends(self, vehicle_id: int, *, first: date, last: date) -> Table:
        """day, duplicates, conflicts: reports that were stored already."""
        ...

    async def capacities(self, vehicle_id: int, *, limit: int) -> Table:
        """Charges that allow a capacity, oldest first: charge_id, start_at, odometer_km, SOCs, capacity_ah, temp."""
        ...

    async def capacity_months(self, vehicle_id: int) -> Table:
        """month, charges, capacity_ah, p25_ah, p75_ah, odometer_km."""
        ...

    async def throughput(self, vehicle_id: int) -> Mapping[str, Any]:
        """Of all days: discharge_ah, charge_ah, covered_s, gap_s, first_day, last_day, days."""
        ...

    async def findings_by_day(self, table: str, vehicle_id: int, *, first: date, last: date, limit: int) -> Table:
        """Rows of cell_outliers, dc_resistance, cell_rests or alarm_episodes of local days [first, last]."""
        ...

    async def data_gaps(self, vehicle_id: int, *, since: datetime, until: datetime, gap_s: float, limit: int) -> Table:
        """start_at, end_at: neighbouring collection times further apart than ``gap_s``."""
        ...

    async def data_span(
        self, vehicle_id: int, *, since: datetime, until: datetime
    ) -> tuple[datetime | None, datetime | None]:
        """First and last collection time in [since, until)."""
        ...

    async def points(
        self,
        vehicle_id: int,
        *,
        since: datetime,
        until: datetime,
        columns: Sequence[str],
        step_s: int,
        located: bool,
        limit: int,
    ) -> Table:
        """time and signals of [since, until], rows of one second merged, at most one per ``step_s``.

        ``located``: only seconds with a valid position.
        """
        ...


class Queries(SessionQueries, FleetQueries, MapQueries, Protocol):
    """What the API asks of the store.  Nothing here writes, and everything is bounded by a limit and a time-out.

    Every method raises ``StoreUnavailable`` when the database is away or all connections stay busy,
    ``QueryTooSlow`` when the statement time-out ends the query, and ``SchemaMissing`` before the first
    migration.  ``limit`` is taken as given: the caller has checked it.  An ``after`` is the key of the
    last row that the caller has; None starts at the beginning.
    """

    async def vehicles(
        self,
        *,
        prefix: str,
        after: str,
        limit: int,
        fleets: Sequence[str] | None = None,
        wanted: StateFilter | None = None,
    ) -> Table:
        """Vehicles whose VIN starts with ``prefix``, by VIN, beyond ``after`` ("" = from the first)."""
        ...

    async def vehicle(self, vin: str) -> Mapping[str, Any] | None:
        """Registry entry and last state of one vehicle; None when the VIN is not known."""
        ...

    async def vehicle_counts(self, vehicle_id: int, vin: str) -> Mapping[str, Any]:
        """How many ``logins`` and ``dead_letters`` a vehicle has; counted up to 10,000 each."""
        ...

    async def prefix_counts(self, prefix: str, *, fleets: Sequence[str] | None = None) -> Mapping[str, Any]:
        """Of all VINs that start with ``prefix``: vehicles, ever_reported, reports, newest_data_time, and refused.

        ``reports`` are those stored, each once; ``refused`` how many dead letters claim such a VIN, by reason's code.
        """
        ...

    async def report(self, vehicle_id: int, time: datetime) -> Table:
        """Every row of one collection time (several when a cell list is split), all columns, in order."""
        ...

    async def telemetry(
        self,
        vehicle_id: int,
        *,
        since: datetime,
        until: datetime,
        columns: Sequence[str],
        after: tuple[datetime, int, int] | None,
        limit: int,
    ) -> Table:
        """Rows of [since, until) by (time, kind, part); those three columns come first, then ``columns``."""
        ...

    async def buckets(
        self,
        vehicle_id: int,
        *,
        since: datetime,
        until: datetime,
        bucket: timedelta,
        time_zone: str,
        columns: Sequence[str],
        limit: int,
    ) -> Table:
        """Aggregates of [since, until) by bucket start: time, count, then per column what ``signals.aggregates`` names.

        Buckets begin at local midnight of ``time_zone``; those of whole days follow its clock changes.
        Empty buckets are left out.
        """
        ...

    async def logins(self, vehicle_id: int, *, after: tuple[datetime, int, int, int] | None, limit: int) -> Table:
        """Logins and logouts of a vehicle, newest first, by (received_at, partition, offset, position)."""
        ...

    async def dead_letters(
        self,
        *,
        reason: int | None,
        vin: str | None,
        since: datetime | None,
        until: datetime | None,
        after: tuple[datetime, int, int, int] | None,
        limit: int,
    ) -> Table:
        """Refused frames, newest first, by (received_at, partition, offset, position); without their bytes."""
        ...

    async def dead_letter(self, partition: int, offset: int, position: int) -> Mapping[str, Any] | None:
        """One refused frame with its bytes, what was done about it, and the ``outcome`` of a requeue."""
        ...

    async def dead_letter_page(
        self, wanted: LetterFilter, *, after: tuple[datetime, int, int, int] | None, limit: int
    ) -> Table:
        """As :meth:`dead_letters`, by a filter."""
        ...

    async def dead_letter_frames(
        self, wanted: LetterFilter, *, after: tuple[datetime, int, int, int] | None, limit: int
    ) -> Table:
        """As :meth:`dead_letters`, oldest first and with the bytes."""
        ...

    async def dead_letter_counts(self, wanted: LetterFilter, *, by: str, limit: int) -> Table:
        """Refused frames by ``by`` (reason, vin, model, firmware), most first: keys, letters, vehicles, first, last."""
        ...

    async def flaw_counts(self, wanted: FlawFilter, *, by: str, limit: int) -> Table:
        """Flaws by ``by`` (signal, model, firmware, vin), signal and state, most first: keys, flaws, vehicles."""
        ...

    async def flaw_days(self, since: date, until: date) -> Table:
        """Of UTC days [since, until] that have rows: day, reports and counted_at (NULL: not yet), changed since."""
        ...

    async def rate_flaws(self, vehicle_id: int, *, since: datetime, until: datetime, limit: int) -> Table:
        """Values that moved faster than they can: time, kind, part, signal, previous_time, previous_value, value."""
        ...

    async def overview(self, *, reporting_since: datetime, fleets: Sequence[str] | None = None) -> Mapping[str, Any]:
        """Vehicles by what they do, totals of the ledger, newest times; of some fleets without the ledger (None)."""
        ...

    async def diagnosis(self, vin: str, *, now: datetime) -> Mapping[str, Any]:
        """Facts about one vehicle's connection and data; it need not be known.  See ``services.store.diagnosis``."""
        ...

    async def health(self) -> StoreHealth:
        """Whether the database answers, and which schema it has."""
        ...

    async def close(self) -> None: ...
