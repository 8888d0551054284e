"""Where the fleet is, for maps: the positions of all vehicles in arrays, sorted along a space-filling curve.

A map of a million vehicles cannot be read from ``vehicle_state`` within tens of milliseconds, merely counting its rows
takes 150; and an index on the position would be touched by every report of every vehicle (no HOT update).  So the
positions are read whole, a tenth of the time at most and only while somebody asks, and answered from memory: some 40
bytes a vehicle.  Clusters are as old as the answer says.  Vehicles one by one are looked up in the database as they are
now, filters included.  Must never write, and never name a vehicle outside the filters.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from schemas.map_view import ACTIVITIES, CELLS_MAX, CELLS_PER_TILE, MAP_DIMENSIONS, MapFilter, MapView
from schemas.seams import Table
from services.errors import NevstreamError

log = logging.getLogger(__name__)

Run = Callable[..., Awaitable[Table]]

REST: Final = 9.0  # times what reading took: a tenth of the time at most
FRESH_S: Final = 2.0  # nothing younger is read again
STALE_S: Final = 60.0  # nothing older is answered: whoever asks waits for newer
GROUPS_S: Final = 60.0  # models, fleets and regions are read again so seldom
LATITUDE_MAX: Final = 85.0511287798066  # where the Mercator square ends
_BITS: Final = 24  # of a coordinate on the curve: 2.4 m at the equator
_LEVELS_A_TILE: Final = CELLS_PER_TILE.bit_length() - 1
_ALARM: Final = 4  # beside the activity in `what`
_POSTGRES_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)

# A column an array, in the wire format of arrays: numpy reads that, a million rows one by one would take seconds.
_POSITIONS: Final = sql.SQL(
    """
    SELECT array_send(array_agg(vehicle_id)), array_send(array_agg(coalesce(longitude_deg, 'NaN'))),
           array_send(array_agg(coalesce(latitude_deg, 'NaN'))), array_send(array_agg(received_at)),
           array_send(array_agg((CASE WHEN charge_state = 1 THEN 2 WHEN vehicle_state = 1 THEN 1
                                      WHEN vehicle_state IN (2, 3) THEN 3 ELSE 0 END
                                 + CASE WHEN alarm_level BETWEEN 1 AND 3 THEN 4 ELSE 0 END)::smallint))
    FROM vehicle_state
    """
)
_HASH: Final = sql.SQL("hash_record_extended(ROW(model, fleet, region), %(seed)s)")
_GROUPS: Final = sql.SQL(
    "SELECT {} AS hash, model, fleet, region FROM (SELECT DISTINCT model, fleet, region FROM vehicles) v"
).format(_HASH)
_MEMBERS: Final = sql.SQL("SELECT array_send(array_agg(vehicle_id)), array_send(array_agg({})) FROM vehicles").format(
    _HASH
)

_VEHICLES: Final = sql.SQL(
    """
    SELECT v.vin, v.model, v.fleet, v.region, s.time, s.received_at, s.longitude_deg, s.latitude_deg, s.location_valid,
           s.vehicle_state, s.charge_state, s.speed_kmh, s.soc_pct, s.alarm_level
    FROM vehicles v JOIN vehicle_state s USING (vehicle_id)
    WHERE v.vehicle_id = ANY(%(ids)s) {filters} ORDER BY v.vin
    """
)


@dataclass(frozen=True, slots=True)
class Groups:
    """Which (model, fleet, region) each vehicle is of; ``ids`` rise, ``group`` counts ``names``."""

    ids: NDArray[np.int64]
    group: NDArray[np.int32]
    names: list[tuple[str, ...]]

    def of(self, ids: NDArray[np.int64]) -> NDArray[np.int32]:
        """Group by vehicle; -1 for vehicles that came since."""
        if not len(self.ids):
            return np.full(len(ids), -1, np.int32)
        at = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        return np.where(self.ids[at] == ids, self.group[at], -1).astype(np.int32)

    def within(self, filters: Mapping[str, Sequence[str]]) -> NDArray[np.bool_]:
        """By group, and at the end (-1) for none: whether the filters let it through."""
        wanted = [(MAP_DIMENSIONS.index(name), frozenset(values)) for name, values in filters.items()]
        return np.array([all(names[i] in values for i, values in wanted) for names in self.names] + [not wanted])


@dataclass(frozen=True, slots=True)
class Positions:
    """Vehicles with a position, in the order of ``curve``; ``lost``: the groups of those without one."""

    taken_at: datetime
    groups: Groups  # that ``group`` counts: groups that are read later number them otherwise
    curve: NDArray[np.uint64]
    ids: NDArray[np.int64]
    longitude: NDArray[np.float32]
    latitude: NDArray[np.float32]
    received_us: NDArray[np.int64]  # since 2000
    what: NDArray[np.int8]  # place in ACTIVITIES, plus _ALARM
    group: NDArray[np.int32]
    lost: NDArray[np.int32]


# -- arrays ------------------------------------------------------------------------------------------
def column(sent: bytes | None, kind: str) -> NDArray[Any]:
    """The elements of an array without NULLs as PostgreSQL sends it; None is the array of no rows."""
    if sent is None:
        return np.zeros(0, kind)
    head = 20  # dimensions, flags, type, length, lower bound: 4 bytes each; then length and bytes of each element
    return np.frombuffer(sent, [("length", ">i4"), ("value", ">" + kind)], offset=head)["value"].astype(kind)


def _spread(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Each bit of 24 moved to twice its place."""
    for shift, mask in (
        (16, 0x0000FFFF0000FFFF), (8, 0x00FF00FF00FF00FF), (4, 0x0F0F0F0F0F0F0F0F), (2, 0x3333333333333333),
        (1, 0x5555555555555555),
    ):  # fmt: skip
        bits = (bits | (bits << np.uint64(shift))) & np.uint64(mask)
    return bits


def curve(longitude: NDArray[np.float64], latitude: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Place on the Z-curve of the Mercator square: cells of any zoom are runs of neighbours."""
    x, y = _square(longitude, latitude)
    edge = float(1 << _BITS)
    return _spread(np.clip(x * edge, 0, edge - 1).astype(np.uint64)) | (
        _spread(np.clip(y * edge, 0, edge - 1).astype(np.uint64)) << np.uint64(1)
    )


def _square(longitude: Any, latitude: Any) -> tuple[Any, Any]:
    """Web Mercator within [0, 1], y to the south."""
    sine = np.sin(np.radians(np.clip(latitude, -LATITUDE_MAX, LATITUDE_MAX)))
    return (np.asarray(longitude) + 180) / 360, 0.5 - np.log((1 + sine) / (1 - sine)) / (4 * np.pi)


def fitting(bbox: tuple[float, float, float, float], zoom: int) -> int:
    """``zoom``, or the nearest lower one at which the box has no more than ``CELLS_MAX`` cells."""
    west, south, east, north = bbox
    (x0, y1), (x1, y0) = _square(west, south), _square(east, north)
    wide = x1 - x0 if west <= east else 1 + x1 - x0
    while zoom and (wide * CELLS_PER_TILE * 2**zoom + 1) * ((y1 - y0) * CELLS_PER_TILE * 2**zoom + 1) > CELLS_MAX:
        zoom -= 1
    return zoom


def taken(rows: Sequence[bytes | None], groups: Groups, taken_at: datetime) -> Positions:
    """The columns of :data:`_POSITIONS`, sorted."""
    ids, longitude, latitude, received, what = (
        column(sent, kind) for sent, kind in zip(rows, ("i8", "f8", "f8", "i8", "i2"), strict=True)
    )
    group = groups.of(ids)
    located = (np.abs(latitude) <= 90) & (np.abs(longitude) <= 180)  # NaN is not
    lost = group[~located]
    at = np.flatnonzero(located)
    place = curve(longitude[at], latitude[at])
    order = np.argsort(place, kind="stable")
    at = at[order]
    return Positions(
        taken_at, groups, place[order], ids[at], longitude[at].astype(np.float32), latitude[at].astype(np.float32),
        received[at], what[at].astype(np.int8), group[at], lost,
    )  # fmt: skip


def chosen(of: Positions, filters: Mapping[str, Sequence[str]], wanted: MapFilter) -> NDArray[np.int64]:
    """Where in the arrays the vehicles are that are wanted."""
    west, south, east, north = wanted.bbox
    mask = (of.latitude >= south) & (of.latitude <= north)
    if west <= east:
        if west > -180 or east < 180:
            mask &= (of.longitude >= west) & (of.longitude <= east)
    else:
        mask &= (of.longitude >= west) | (of.longitude <= east)
    if filters:
        mask &= of.groups.within(filters)[of.group]
    if wanted.activities is not None:
        among = np.zeros(2 * _ALARM, bool)
        for name in wanted.activities:
            among[[ACTIVITIES.index(name), ACTIVITIES.index(name) + _ALARM]] = True
        mask &= among[of.what]
    if wanted.received_since is not None:
        mask &= of.received_us >= _since_2000(wanted.received_since)
    return np.flatnonzero(mask)


def _since_2000(moment: datetime) -> int:
    return (moment - _POSTGRES_EPOCH) // timedelta(microseconds=1)


CLUSTER: Final = (
    "longitude_deg", "latitude_deg", "west", "south", "east", "north", "count", *ACTIVITIES, "reporting", "alarms",
)  # fmt: skip


def clusters(of: Positions, at: NDArray[np.int64], zoom: int, reporting_since: datetime) -> Table:
    """The vehicles at ``at`` by cell of ``zoom``."""
    if not len(at):
        return Table(CLUSTER, [])
    part: Any = slice(None) if len(at) == len(of.ids) else at
    cell = of.curve[part] >> np.uint64(2 * (_BITS - min(_BITS, zoom + _LEVELS_A_TILE)))
    new = np.concatenate([[True], cell[1:] != cell[:-1]])
    starts = np.flatnonzero(new)
    number = np.cumsum(new) - 1
    count = np.diff(np.append(starts, len(at)))
    longitude, latitude, what = of.longitude[part], of.latitude[part], of.what[part]
    doing = np.bincount(number * 4 + (what & 3), minlength=4 * len(starts)).reshape(-1, 4)
    late = of.received_us[part] >= _since_2000(reporting_since)
    columns = [
        np.bincount(number, longitude) / count, np.bincount(number, latitude) / count,
        np.minimum.reduceat(longitude, starts), np.minimum.reduceat(latitude, starts),
        np.maximum.reduceat(longitude, starts), np.maximum.reduceat(latitude, starts),
    ]  # fmt: skip
    whole = [
        count,
        *doing.T,
        np.bincount(number[late], minlength=len(starts)),
        np.bincount(number[what >= _ALARM], minlength=len(starts)),
    ]
    degrees = [np.round(each.astype(np.float64), 5).tolist() for each in columns]
    return Table(CLUSTER, list(zip(*degrees, *(each.tolist() for each in whole), strict=True)))


# -- what is kept ------------------------------------------------------------------------------------
class VehicleMap:
    """The positions that are kept, and how they are renewed.  ``run`` asks the database, as ``Connections.run``."""

    def __init__(self, run: Run, clock: Callable[[], float] = time.monotonic) -> None:
        self._run, self._clock = run, clock
        self._groups: Groups | None = None
        self._groups_due = 0.0
        self._positions: Positions | None = None
        self._read_at = self._due = 0.0
        self._reading: asyncio.Task[None] | None = None

    async def view(
        self,
        filters: Mapping[str, Sequence[str]],
        *,
        wanted: MapFilter,
        zoom: int,
        vehicles_max: int,
        reporting_since: datetime,
    ) -> MapView:
        positions = await self._kept()

        def look() -> tuple[NDArray[np.int64], int, Table | None]:
            at = chosen(positions, filters, wanted)
            lost = len(positions.lost) if not filters else int(positions.groups.within(filters)[positions.lost].sum())
            many = len(at) > vehicles_max
            return at, lost, clusters(positions, at, zoom, reporting_since) if many else None

        zoom = fitting(wanted.bbox, zoom)
        at, lost, found = await asyncio.to_thread(look)
        vehicles = None
        if found is None:
            parts = [sql.SQL("AND coalesce(v.{0}, 'unknown') = ANY(%({0})s)").format(sql.SQL(name)) for name in filters]
            given: dict[str, Any] = {name: list(values) for name, values in filters.items()}
            query = _VEHICLES.format(filters=sql.SQL(" ").join(parts))
            vehicles = await self._run(query, given | {"ids": positions.ids[at].tolist()})
        return MapView(positions.taken_at, zoom, len(at), lost, found, vehicles)

    async def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def _kept(self) -> Positions:
        now = self._clock()
        if self._positions is None or now >= self._due:
            if self._reading is None or self._reading.done():
                self._reading = asyncio.create_task(self._read(), name="positions of the map")
                self._reading.add_done_callback(_told)
            if self._positions is None or now - self._read_at > STALE_S:
                await asyncio.shield(self._reading)
        assert self._positions is not None
        return self._positions

    async def _read(self) -> None:
        """Renew what is kept; raises what the database says when it cannot."""
        begun = self._clock()
        if self._groups is None or begun >= self._groups_due:
            self._groups = await self._read_groups()
            self._groups_due = begun + max(GROUPS_S, REST * (self._clock() - begun))
        now = datetime.now(UTC)
        rows = (await self._run(_POSITIONS, {}, binary=True)).rows[0]
        positions = await asyncio.to_thread(taken, rows, self._groups, now)
        if (positions.group < 0).any() or (positions.lost < 0).any():
            self._groups_due = min(self._groups_due, begun + REST)  # vehicles of which nothing is known came since
        self._positions, self._read_at = positions, begun
        self._due = self._clock() + max(FRESH_S, REST * (self._clock() - begun))

    async def _read_groups(self) -> Groups:
        seed = 0
        while True:
            table = await self._run(_GROUPS, {"seed": seed})
            hashes = np.array([row[0] for row in table.rows], np.int64)
            if len(np.unique(hashes)) == len(hashes):
                break
            seed += 1  # two groups look alike: never mind how unlikely, a tenant must not see another's
        members = (await self._run(_MEMBERS, {"seed": seed}, binary=True)).rows[0]
        names = [tuple(name if name is not None else "unknown" for name in row[1:]) for row in table.rows]

        def sorted_() -> Groups:
            ids, hash_of = column(members[0], "i8"), column(members[1], "i8")
            order, rank = np.argsort(ids), np.argsort(hashes)
            at = np.minimum(np.searchsorted(hashes[rank], hash_of[order]), max(0, len(hashes) - 1))
            group = np.where(hashes[rank][at] == hash_of[order], rank[at], -1) if len(hashes) else at * 0 - 1
            return Groups(ids[order], group.astype(np.int32), names)

        return await asyncio.to_thread(sorted_)


def _told(reading: asyncio.Task[None]) -> None:
    """A reading that nobody waited for: its failure is logged; a map that grows too old will say so itself."""
    error = None if reading.cancelled() else reading.exception()
    if isinstance(error, NevstreamError):
        log.warning("positions for maps could not be read: %s", error)
    elif error is not None:
        log.error("positions for maps could not be read", exc_info=error)
