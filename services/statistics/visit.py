"""One visit to a chunk of vehicles: read what is needed, fold it day by day, say what the tables are to hold.

A vehicle is either *continued* from its checkpoint, or *recomputed* from the begin of a local day with the state at
the end of the day before, until the state at the end of a day is what it was (later days are then as they were), or to
the end.  Every day is folded the same way whichever it is, so the outcome does not depend on it.

The checkpoint is taken ``reorder_s`` behind the newest record.  What lies behind it is folded on to the newest record
and thrown away again: it comes once more with the next visit.  Nothing here writes; what is decided goes to the store
as one swap.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from schemas.seams import StatisticsStore
from schemas.statistics.measures import INDEX, MEASURES, TALLY_WIDTH
from schemas.statistics.records import DAY_ENDS, F64, GOES_ON, HOUR_ENDS, I64, PEEK, U8, Jobs, Records
from schemas.statistics.sessions import FINDINGS, SESSION_HEAD, TABLE
from schemas.statistics.work import (
    FAR_S,
    FIRST_S,
    Carry,
    Checkpoint,
    DayRows,
    FoundRow,
    HourRows,
    Range,
    Standing,
    Swap,
    Window,
)
from services.statistics.calendar import Calendar
from services.statistics.folds import Fold
from services.statistics.making import make
from services.statistics.reading import Rows, rows_of
from services.statistics.standing import (
    BLANK,
    OpenDay,
    join,
    pack_carry,
    pack_checkpoint,
    unpack_carry,
    unpack_checkpoint,
)

log = logging.getLogger(__name__)

_CURRENT: Final = 6
_HEAD: Final = len(SESSION_HEAD)
_RECORDS: Final = INDEX["records"]
_EXPECTED: Final = INDEX["expected"]


@dataclass(frozen=True, slots=True)
class Bounds:
    """Memory: telemetry rows held at a time, rows of one vehicle read at first, and days of a swap."""

    rows_max: int = 60_000
    vehicle_rows_max: int = 20_000
    days_max: int = 4_000


@dataclass(slots=True)
class _DayResult:
    day: int
    first_s: int
    last_s: int
    edition: int
    values: F64
    tallies: I64
    carry: bytes | None
    hours: list[tuple[int, F64]]

    @property
    def tells(self) -> bool:
        """A logout alone, just after midnight, makes no day: nothing was recorded, and nothing was due."""
        return bool(self.values[_RECORDS] > 0 or self.values[_EXPECTED] > 0)


@dataclass(slots=True)
class _Vehicle:
    """A vehicle on its way through a visit."""

    standing: Standing
    place: int  # row of the state matrices
    after_s: int  # everything up to here is in the state
    until_s: int
    first_day: int  # what the swap replaces begins with this day
    from_s: int  # and with this hour
    rows_max: int
    open: OpenDay | None = None
    must_day: int | None = None  # recompute up to this day at least; None: to the end
    until_day: int = 0
    ahead: int = 1
    before: Carry | None = None  # the day before the first
    old: list[Carry] = field(default_factory=list)
    blob: bytes | None = None  # of the checkpoint, while it still holds
    finished: bool = False
    last_day: int | None = None  # last day of what is replaced; None: to the end
    days: list[_DayResult] = field(default_factory=list)
    findings: list[tuple[int | None, F64]] = field(default_factory=list)  # settled on, finding
    checkpoint: Checkpoint | None = None
    newest_s: int = 0
    vanished: bool = False
    postponed: list[tuple[int, int]] = field(default_factory=list)

    @property
    def vehicle_id(self) -> int:
        return self.standing.vehicle_id


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a visit comes to.  records: how many were folded · unfinished: vehicles that are to be visited again ·
    rebuilt: vehicles that were begun from their first row, perhaps because they are of another model now."""

    swap: Swap
    records: int
    unfinished: int
    rebuilt: list[int]


class Visitor:
    """Visits vehicles.  Holds no state between visits but the calendar."""

    def __init__(
        self, store: StatisticsStore, folds: Sequence[Fold], calendar: Calendar, layout: int, reorder_s: int,
        bounds: Bounds | None = None,
    ) -> None:  # fmt: skip
        self._store, self.folds, self.calendar, self._layout = store, folds, calendar, layout
        self.reorder_s = reorder_s
        self._bounds = bounds or Bounds()
        self._sizes = [fold.state for fold in folds]
        self._initial = [fold.initial_state() for fold in folds]
        self.states: list[F64] = []
        self._records = 0

    def visit(self, dirty: dict[int, list[tuple[int, int]]]) -> Outcome:
        """Bring these vehicles up to date: vehicle → spans of seconds [from, to] in which something has changed."""
        vehicles = self._planned(dirty)
        rebuilt = [v.vehicle_id for v in vehicles if v.first_day == 0]
        self._records = 0
        while (active := [v for v in vehicles if not v.finished]) and self._gathered(vehicles) < self._bounds.days_max:
            self._round(active)
        return Outcome(self._swap(vehicles), self._records, sum(not v.finished for v in vehicles), rebuilt)

    # -- where each vehicle begins ---------------------------------------------------------------------

    def _planned(self, dirty: dict[int, list[tuple[int, int]]]) -> list[_Vehicle]:
        standings = sorted(self._store.standings(sorted(dirty)), key=lambda one: one.vehicle_id)
        self.states = [np.tile(initial, (len(standings), 1)) for initial in self._initial]
        vehicles, recomputed = [], []
        for place, standing in enumerate(standings):
            point = standing.checkpoint
            spans = sorted(dirty[standing.vehicle_id])
            if point is None or point.layout != self._layout or point.inverted != standing.inverted:
                vehicle = self._from_the_first_row(standing, place)
            elif spans[0][0] > point.through_s:
                vehicle = self._continued(standing, place, point)
            else:
                vehicle = self._from_the_first_row(standing, place)
                self._aim(vehicle, spans, point)
                recomputed.append(vehicle)
            vehicles.append(vehicle)
        if recomputed:
            befores = self._store.carries_before([(v.vehicle_id, v.first_day) for v in recomputed], self._layout)
            for vehicle in recomputed:
                self._begin_at_day(vehicle, befores.get(vehicle.vehicle_id))
        return vehicles

    def _from_the_first_row(self, standing: Standing, place: int) -> _Vehicle:
        return _Vehicle(standing, place, FIRST_S - 1, FAR_S, 0, FIRST_S, self._bounds.vehicle_rows_max)

    def _continued(self, standing: Standing, place: int, point: Checkpoint) -> _Vehicle:
        states, day = unpack_checkpoint(point.state, self._sizes)
        self._put(place, states)
        vehicle = _Vehicle(
            standing, place, point.through_s, FAR_S, point.day, self.calendar.start_s(point.day),
            self._likely_rows(point.newest_s - point.through_s), open=day, blob=point.state,
        )  # fmt: skip
        if day is not None:
            vehicle.first_day, vehicle.from_s = day.day, day.hour_s
            vehicle.findings = [(day.day, finding) for finding in day.findings]
        return vehicle

    def _aim(self, vehicle: _Vehicle, spans: list[tuple[int, int]], point: Checkpoint) -> None:
        """The first days that have changed, next to each other; what lies beyond is another visit's."""
        first = self.calendar.day_of(spans[0][0])
        last = first
        for begin, end in spans:
            end_day = point.day if end >= self.calendar.start_s(point.day) else self.calendar.day_of(end)
            if begin > point.through_s:
                vehicle.postponed.append((begin, end))
            elif self.calendar.day_of(begin) <= last + 1:
                last = max(last, end_day)
            else:
                vehicle.postponed.append((begin, end))
        vehicle.first_day = first
        vehicle.must_day = None if last >= point.day else last
        vehicle.until_day = last

    def _begin_at_day(self, vehicle: _Vehicle, before: Carry | None) -> None:
        """Begin with the state at the end of the day before; without a usable one, with the first row."""
        if before is not None and before.state is None:
            vehicle.first_day, vehicle.must_day, vehicle.postponed = 0, None, []
            return
        if before is None:
            self._put(vehicle.place, self._initial)
            vehicle.after_s = FIRST_S - 1
        else:
            assert before.state is not None
            self._put(vehicle.place, unpack_carry(before.state, self._sizes))
            vehicle.after_s = self.calendar.start_s(vehicle.first_day) - 1
        vehicle.before = before
        vehicle.from_s = self.calendar.start_s(vehicle.first_day)
        self._look_until(vehicle)

    def _look_until(self, vehicle: _Vehicle) -> None:
        point = vehicle.standing.checkpoint
        if vehicle.must_day is None or (point is not None and vehicle.until_day >= point.day):
            vehicle.must_day, vehicle.until_s = None, FAR_S
        else:
            vehicle.until_s = self.calendar.start_s(vehicle.until_day + 1) - 1

    def _likely_rows(self, span_s: int) -> int:
        """Room for what may have come since: a row a second, several parts, and then twice as much the next time."""
        return min(self._bounds.vehicle_rows_max, max(500, 2 * (span_s + 120)))

    # -- one round: read a window of each, fold its days -------------------------------------------------

    def _round(self, active: list[_Vehicle]) -> None:
        room = self._bounds.rows_max
        chosen: list[_Vehicle] = []
        for vehicle in active:
            if chosen and vehicle.rows_max > room:
                break
            chosen.append(vehicle)
            room -= vehicle.rows_max
        bounded = [v for v in chosen if v.must_day is not None]
        if bounded:
            wanted = [(v.vehicle_id, self.calendar.day_of(v.after_s + 1), v.until_day) for v in bounded]
            old = self._store.carries(wanted, self._layout)
            for vehicle in bounded:
                vehicle.old += old.get(vehicle.vehicle_id, [])
        windows = [Window(v.vehicle_id, v.after_s, v.until_s, v.rows_max) for v in chosen]
        rows = _in_order(rows_of(self._store.telemetry(windows)))
        outs = self._store.logouts(windows)
        rows, outs, ready = self._whole_days(chosen, rows, outs)
        records, edition = make(
            rows, np.ascontiguousarray(outs[:, 0], np.int32), np.ascontiguousarray(outs[:, 1]),
            np.ascontiguousarray(outs[:, 2]).astype(np.uint8),
        )  # fmt: skip
        del rows
        self._records += records.n
        _Steps(self, chosen, ready, records, edition).fold()

    def _whole_days(
        self, chosen: list[_Vehicle], rows: Rows, outs: I64
    ) -> tuple[Rows, I64, list[tuple[_Vehicle, int, bool]]]:
        """Cut windows that were full back to whole days; (vehicle, number of its window, is it the last window)."""
        counts = np.bincount(rows.window, minlength=len(chosen))
        ends = np.cumsum(counts)
        keep = np.ones(rows.n, bool)
        keep_out = np.ones(len(outs), bool)
        ready = []
        for number, vehicle in enumerate(chosen):
            end = int(ends[number])
            begin = end - int(counts[number])
            if counts[number] < vehicle.rows_max:
                vehicle.after_s = vehicle.until_s if vehicle.until_s != FAR_S else vehicle.after_s
                ready.append((vehicle, number, vehicle.until_s == FAR_S))
                continue
            of_it = np.arange(begin, end)
            day = self.calendar.day_of(int(rows.time_s[end - 1]))
            start_s = self.calendar.start_s(day)
            beyond = rows.time_s[of_it] >= start_s
            keep[of_it[beyond]] = False
            keep_out[(outs[:, 0] == number) & (outs[:, 1] >= start_s)] = False
            if beyond.all():  # a day alone is more than that
                vehicle.rows_max *= 4
                keep_out[outs[:, 0] == number] = False
                continue
            vehicle.after_s = start_s - 1
            vehicle.rows_max = max(vehicle.rows_max, self._bounds.vehicle_rows_max)
            ready.append((vehicle, number, False))
        if not keep.all():
            rows = rows.take(keep)
        return rows, outs[keep_out], ready

    def _put(self, place: int, states: Sequence[F64]) -> None:
        for matrix, state in zip(self.states, states, strict=True):
            matrix[place] = state

    def state_of(self, place: int) -> list[F64]:
        """A copy of a vehicle's state."""
        return [matrix[place].copy() for matrix in self.states]

    # -- after a window -----------------------------------------------------------------------------------

    def is_as_before(self, vehicle: _Vehicle, day: int) -> bool:
        """Is the state at the end of ``day`` what it was: are the days after it as they were?"""
        known = [carry for carry in vehicle.old if carry.day <= day]
        carry = known[-1] if known else vehicle.before
        old = self._initial if carry is None else None
        if old is None:
            assert carry is not None
            if carry.state is None:
                return False
            old = unpack_carry(carry.state, self._sizes)
        return all(a.tobytes() == b.tobytes() for a, b in zip(old, self.state_of(vehicle.place), strict=True))

    def end_of_window(self, vehicle: _Vehicle) -> None:
        """A bounded window is folded and the state is another than it was: look further."""
        if vehicle.must_day is None or vehicle.finished or vehicle.after_s < vehicle.until_s:
            return
        if self.is_as_before(vehicle, vehicle.until_day):
            vehicle.finished, vehicle.last_day = True, vehicle.until_day
            return
        vehicle.until_day += vehicle.ahead
        vehicle.ahead *= 2
        self._look_until(vehicle)

    def nothing_left(self, vehicle: _Vehicle) -> None:
        """No record from the first day on: the day before is the newest now, or the vehicle has none."""
        before = self._store.carries_before([(vehicle.vehicle_id, vehicle.first_day)], self._layout)
        previous = before.get(vehicle.vehicle_id)
        vehicle.blob = None
        if previous is None:
            vehicle.finished = vehicle.vanished = True
            return
        vehicle.first_day = previous.day
        further = self._store.carries_before([(vehicle.vehicle_id, previous.day)], self._layout)
        vehicle.must_day = None
        self._begin_at_day(vehicle, further.get(vehicle.vehicle_id))

    def save_checkpoint(self, vehicle: _Vehicle, through_s: int, newest_s: int, day: OpenDay | None, at: int) -> None:
        """Where the next visit goes on; ``at``: the day, when none is open."""
        state = pack_checkpoint(self.state_of(vehicle.place), day)
        vehicle.checkpoint = Checkpoint(
            at if day is None else day.day, through_s, newest_s, self._layout, vehicle.standing.inverted, state
        )

    # -- the swap -----------------------------------------------------------------------------------------

    def _gathered(self, vehicles: list[_Vehicle]) -> int:
        return sum(len(vehicle.days) for vehicle in vehicles)

    def _swap(self, vehicles: list[_Vehicle]) -> Swap:
        ranges: list[Range] = []
        checkpoints: dict[int, Checkpoint | None] = {}
        follow_ups: list[tuple[int, int, int]] = []
        findings: dict[str, list[FoundRow]] = {}
        for v in vehicles:
            follow_ups += [(v.vehicle_id, begin, end) for begin, end in v.postponed]
            if not v.finished:
                self._interrupt(v, follow_ups)
                if not v.days:
                    continue
            until_s = FAR_S if v.last_day is None else self.calendar.start_s(v.last_day + 1)
            ranges.append(Range(v.vehicle_id, v.first_day, v.last_day, v.from_s, until_s))
            if v.vanished:
                checkpoints[v.vehicle_id] = None
            elif v.checkpoint is not None:
                checkpoints[v.vehicle_id] = v.checkpoint
            for settled_on, finding in v.findings:
                table = FINDINGS[int(finding[1])]
                values = tuple(finding[_HEAD : _HEAD + len(table.columns)].tolist())
                findings.setdefault(table.table, []).append(
                    FoundRow(v.vehicle_id, self.calendar.day_of(int(values[0])), settled_on, values)
                )
        days = [(v, day) for v in vehicles for day in v.days if day.tells]
        hours = [(v, day.day, at, values) for v, day in days for at, values in day.hours]
        return Swap(
            ranges,
            HourRows(
                np.array([v.vehicle_id for v, *_ in hours], np.int64),
                np.array([at for _, _, at, _ in hours], np.int64),
                np.array([day for _, day, *_ in hours], np.int64),
                np.array([values for *_, values in hours]).reshape(-1, len(MEASURES)),
            ),
            DayRows(
                np.array([v.vehicle_id for v, _ in days], np.int64), np.array([d.day for _, d in days], np.int64),
                np.array([d.first_s for _, d in days], np.int64), np.array([d.last_s for _, d in days], np.int64),
                np.array([d.edition for _, d in days], np.int64),
                np.array([d.values for _, d in days]).reshape(-1, len(MEASURES)),
                np.array([d.tallies for _, d in days], np.int64).reshape(-1, TALLY_WIDTH),
                [d.carry for _, d in days],
            ),
            findings, self._layout, checkpoints, follow_ups,
        )  # fmt: skip

    def _interrupt(self, v: _Vehicle, follow_ups: list[tuple[int, int, int]]) -> None:
        """Days enough for one swap: the rest is a change of its own, told in the same transaction."""
        if not v.days:
            until = FAR_S if v.must_day is None else v.until_s
            follow_ups.append((v.vehicle_id, max(FIRST_S, v.after_s + 1), until))
            return
        v.last_day = max(v.days[-1].day, self.calendar.day_of(v.after_s))
        begin = self.calendar.start_s(v.last_day + 1)
        point = v.standing.checkpoint
        usable = point is not None and point.layout == self._layout and point.inverted == v.standing.inverted
        if not usable or v.blob is not None:
            self.save_checkpoint(v, begin - 1, begin - 1, None, v.last_day + 1)
            follow_ups.append((v.vehicle_id, begin, FAR_S))
        else:
            end = FAR_S if v.must_day is None else max(begin, self.calendar.start_s(v.must_day + 1) - 1)
            follow_ups.append((v.vehicle_id, begin, end))


class _Steps:
    """The windows of a round, folded day by day: first days of all vehicles, then their second days, and so on."""

    def __init__(
        self, visitor: Visitor, chosen: list[_Vehicle], ready: list[tuple[_Vehicle, int, bool]], records: Records,
        edition: U8,
    ) -> None:  # fmt: skip
        self._visitor = visitor
        self._ready, self._records, self._edition = ready, records, edition
        window = records.vehicle
        self._ends = np.cumsum(np.bincount(window, minlength=len(chosen)))
        self._begins = np.concatenate([[0], self._ends[:-1]])
        records.vehicle = np.array([v.place for v in chosen], np.int32)[window]
        self._day, self._hour = visitor.calendar.days_of(records.time_s)
        signs = np.array([-1.0 if v.standing.inverted else 1.0 for v in chosen])
        if (signs < 0).any():
            records.x[:, _CURRENT] *= signs[window]
        # a new hour begins at these records
        new = np.ones(records.n, bool)
        new[1:] = (self._hour[1:] != self._hour[:-1]) | (window[1:] != window[:-1])
        self._hour_at = np.flatnonzero(new)
        self._gap_limit: F64 = np.zeros(records.n)
        self._mode: U8 = np.zeros(records.n, np.uint8)

    def fold(self) -> None:
        visitor, time_s = self._visitor, self._records.time_s
        plans: list[tuple[_Vehicle, list[tuple[int, int, int]], int | None]] = []
        for vehicle, number, last in self._ready:
            begin, end = int(self._begins[number]), int(self._ends[number])
            days = self._days_of(begin, end)
            if vehicle.open is not None and (not days or days[0][0] != vehicle.open.day):
                days.insert(0, (vehicle.open.day, begin, begin))
            cut: int | None = None
            if last:
                if not days:
                    visitor.nothing_left(vehicle)
                    continue
                newest_s = int(time_s[end - 1]) if end > begin else vehicle.after_s
                vehicle.newest_s = newest_s
                cut = begin + int(np.searchsorted(time_s[begin:end], newest_s - visitor.reorder_s, side="right"))
                if cut == begin:
                    self._stand_still(vehicle, newest_s, days[0][0])
                    cut = None
            plans.append((vehicle, days, cut))
        final = {id(vehicle) for vehicle, _, last in self._ready if last}
        for step in range(max((len(days) for _, days, _ in plans), default=0)):
            pieces = [
                _Piece(vehicle, *days[step], self._cut_in(days[step], cut), id(vehicle) in final, step == len(days) - 1)
                for vehicle, days, cut in plans
                if step < len(days) and not vehicle.finished
            ]
            self._fold_day(pieces)
        for vehicle, _, _ in plans:
            if id(vehicle) in final:
                vehicle.finished, vehicle.last_day = True, None
            else:
                visitor.end_of_window(vehicle)

    def _stand_still(self, vehicle: _Vehicle, newest_s: int, day: int) -> None:
        """Nothing is old enough to move the checkpoint."""
        if vehicle.blob is not None:
            old = vehicle.standing.checkpoint
            assert old is not None
            vehicle.checkpoint = Checkpoint(old.day, old.through_s, newest_s, old.layout, old.inverted, vehicle.blob)
            return
        through_s = max(vehicle.after_s, self._visitor.calendar.start_s(day) - 1)
        self._visitor.save_checkpoint(vehicle, through_s, newest_s, None, day)

    def _days_of(self, begin: int, end: int) -> list[tuple[int, int, int]]:
        """(day, first record, end) of the records [begin, end)."""
        if begin == end:
            return []
        days = self._day[begin:end]
        at = [0, *(np.flatnonzero(days[1:] != days[:-1]) + 1).tolist(), end - begin]
        return [(int(days[a]), begin + a, begin + b) for a, b in itertools.pairwise(at)]

    @staticmethod
    def _cut_in(day: tuple[int, int, int], cut: int | None) -> int | None:
        return cut if cut is not None and day[1] < cut <= day[2] else None

    def _fold_day(self, pieces: list[_Piece]) -> None:
        """One local day of each vehicle: up to the checkpoint, the checkpoint, and the rest."""
        hours: list[F64] = []
        first, second = _JobList(), _JobList()
        for number, piece in enumerate(pieces):
            self._lay_out(number, piece, hours, first, second)
        matrix = np.array(hours).reshape(-1, len(MEASURES))
        tallies = np.zeros((len(pieces), TALLY_WIDTH), np.int64)
        for number, piece in enumerate(pieces):
            if piece.open is not None:
                tallies[number] = piece.open.tallies
        self._run(first, pieces, matrix, tallies)
        for number, piece in enumerate(pieces):
            if piece.cut is not None:
                self._checkpoint(number, piece, matrix, tallies)
        self._run(second, pieces, matrix, tallies)
        for number, piece in enumerate(pieces):
            self._finish(number, piece, matrix, tallies)

    def _lay_out(self, number: int, piece: _Piece, hours: list[F64], first: _JobList, second: _JobList) -> None:
        vehicle = piece.vehicle
        piece.open, vehicle.open = vehicle.open, None
        pieces: list[tuple[int, int, int]] = []  # begin, end, hour
        low, high = np.searchsorted(self._hour_at, [piece.begin, piece.end])
        at = self._hour_at[low:high].tolist()
        if piece.end > piece.begin and (not at or at[0] != piece.begin):
            at.insert(0, piece.begin)
        if piece.open is not None and (not at or int(self._hour[at[0]]) != piece.open.hour_s):
            pieces.append((piece.begin, piece.begin, piece.open.hour_s))
        if at:
            pieces += [(a, b, int(self._hour[a])) for a, b in itertools.pairwise([*at, piece.end])]
        day_start_s = self._visitor.calendar.start_s(piece.day)
        sign = -1.0 if vehicle.standing.inverted else 1.0
        for k, (begin, end, hour_s) in enumerate(pieces):
            last = PEEK if piece.final and piece.newest else DAY_ENDS
            close = HOUR_ENDS if k < len(pieces) - 1 else last
            row = len(hours)
            continued = piece.open is not None and piece.open.hour_s == hour_s
            hours.append(piece.open.hour.copy() if piece.open is not None and continued else BLANK.copy())
            piece.hours.append((hour_s, row))
            fixed = (vehicle.place, row, number, hour_s, day_start_s, sign)
            if piece.cut is None or end < piece.cut:
                first.add(begin, end, *fixed, close)
            elif begin < piece.cut:
                piece.cut_hour = k
                first.add(begin, piece.cut, *fixed, GOES_ON)
                second.add(piece.cut, end, *fixed, close)
            else:
                second.add(begin, end, *fixed, close)

    def _run(self, jobs: _JobList, pieces: list[_Piece], hours: F64, tallies: I64) -> None:
        if not jobs.lines:
            return
        made = jobs.jobs()
        calendar = self._visitor.calendar
        for matrix, fold in zip(self._visitor.states, self._visitor.folds, strict=True):
            found = fold.run(self._records, made, self._gap_limit, self._mode, matrix, hours, tallies)
            for finding in found:
                piece = pieces[int(made.day[int(finding[0])])]
                settled = None if np.isnan(finding[2]) else calendar.day_of(int(finding[2]))
                assert 0 <= int(finding[1]) < len(TABLE), f"fold {fold.name} found for a table that is not there"
                kept = finding.copy()
                kept[0] = 0.0  # which job it was is nobody's business any more
                piece.findings.append((settled, kept))

    def _checkpoint(self, number: int, piece: _Piece, hours: F64, tallies: I64) -> None:
        assert piece.cut is not None
        so_far = piece.open.so_far if piece.open is not None else BLANK
        for _, row in piece.hours[: piece.cut_hour]:
            so_far = join(so_far, hours[row])
        hour_s, row = piece.hours[piece.cut_hour]
        time_s = self._records.time_s
        through_s = int(time_s[piece.cut - 1])
        earlier = piece.open.findings if piece.open is not None else []
        day = OpenDay(
            piece.day, piece.open.first_s if piece.open is not None else int(time_s[piece.begin]), through_s,
            int(self._edition[piece.cut - 1]), hour_s, so_far, hours[row].copy(), tallies[number].copy(),
            [*earlier, *(finding for settled, finding in piece.findings if settled is not None)],
        )  # fmt: skip
        self._visitor.save_checkpoint(piece.vehicle, through_s, piece.vehicle.newest_s, day, piece.day)

    def _finish(self, number: int, piece: _Piece, hours: F64, tallies: I64) -> None:
        vehicle, time_s = piece.vehicle, self._records.time_s
        values = piece.open.so_far if piece.open is not None else BLANK
        for _, row in piece.hours:
            values = join(values, hours[row])
        some = piece.end > piece.begin
        assert some or piece.open is not None
        newest = piece.final and piece.newest
        if some:
            last_s, edition = int(time_s[piece.end - 1]), int(self._edition[piece.end - 1])
        else:
            assert piece.open is not None
            last_s, edition = piece.open.last_s, piece.open.edition
        vehicle.days.append(
            _DayResult(
                piece.day, piece.open.first_s if piece.open is not None else int(time_s[piece.begin]), last_s, edition,
                values, tallies[number].copy(), None if newest else pack_carry(self._visitor.state_of(vehicle.place)),
                [(hour_s, hours[row].copy()) for hour_s, row in piece.hours],
            )
        )  # fmt: skip
        vehicle.findings += piece.findings
        settled = not piece.final and vehicle.must_day is not None and piece.day >= vehicle.must_day
        if settled and self._visitor.is_as_before(vehicle, piece.day):
            vehicle.finished, vehicle.last_day = True, piece.day


@dataclass(slots=True)
class _Piece:
    """A local day of a vehicle in a step.  final: the vehicle's last window; newest: the last day in its window."""

    vehicle: _Vehicle
    day: int
    begin: int
    end: int
    cut: int | None
    final: bool
    newest: bool
    open: OpenDay | None = None
    hours: list[tuple[int, int]] = field(default_factory=list)  # begin, row of the accumulators
    cut_hour: int = 0
    findings: list[tuple[int | None, F64]] = field(default_factory=list)


class _JobList:
    """Jobs, a line each, until they become arrays."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, int, int, int, int, int, int, float, int]] = []

    def add(
        self, begin: int, end: int, vehicle: int, hour: int, day: int, hour_s: int, day_s: int, sign: float, close: int
    ) -> None:
        self.lines.append((begin, end, vehicle, hour, day, hour_s, day_s, sign, close))

    def jobs(self) -> Jobs:
        begin, end, vehicle, hour, day, hour_s, day_s, sign, close = zip(*self.lines, strict=True)
        return Jobs(
            np.array(begin, np.int64), np.array(end, np.int64), np.array(vehicle, np.int32), np.array(hour, np.int32),
            np.array(day, np.int32), np.array(hour_s, np.int64), np.array(day_s, np.int64), np.array(sign),
            np.array(close, np.uint8),
        )  # fmt: skip


def _in_order(rows: Rows) -> Rows:
    """Rows by window, time, kind and part: as the server reads them along its index, which it does not promise."""
    key = rows.time_s << 24 | rows.kind.astype(np.int64) << 16 | rows.part
    same = rows.window[1:] == rows.window[:-1]
    if ((rows.window[1:] > rows.window[:-1]) | (same & (key[1:] > key[:-1]))).all():
        return rows
    return rows.take(np.lexsort((key, rows.window)))
