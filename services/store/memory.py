"""The sink in memory: the twin of :class:`services.store.postgres.PostgresSink`, for tests.

Same contract, same counts: it reads the very COPY streams that the server would, so a stream that is
wrong fails here too.  It must never be used to keep anything.
"""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from schemas import keyring
from schemas.batch import VIN_BYTES, Committed, CopyStream, DeadLetter, Login, RowBatch
from schemas.keys import order_key, partition_of_vin
from schemas.link_events import LinkEvent
from schemas.seams import KnownVehicles
from services.errors import PositionsMoved, StoreUnavailable
from services.store.changes import logouts_of
from services.store.columns import KEY, LEDGER, VEHICLE_STATE
from services.store.copyformat import decode_copy

Row = dict[str, Any]
Key = tuple[Any, ...]


class MemorySink:
    """Tables as dictionaries: ``telemetry`` by (vehicle_id, time, kind, part), ``states`` by vehicle_id,
    ``vehicles`` VIN → id, ``logins`` and ``dead_letters`` by (partition, offset, position), ``link_events`` by
    (origin, number), ``keys`` that vehicles exchanged, ``ledger`` by partition, ``commits`` in order, ``changes``
    told to the statistics: (vehicle_id, earliest, latest second, urgent).
    ``away = True`` makes every call raise ``StoreUnavailable``.
    """

    def __init__(self, partitions: int = 8) -> None:
        self.partitions = partitions
        self.away = False
        self.telemetry: dict[Key, Row] = {}
        self.states: dict[int, Row] = {}
        self.vehicles: dict[str, int] = {}
        self.logins: dict[tuple[int, int, int], Login] = {}
        self.dead_letters: dict[tuple[int, int, int], DeadLetter] = {}
        self.link_events: dict[tuple[int, int], LinkEvent] = {}
        self.keys: list[keyring.Key] = []
        self.ledger: dict[int, Counter[str]] = {}
        self.commits: list[Committed] = []
        self.changes: list[tuple[int, int, int, bool]] = []
        self._positions: dict[int, int] = {}
        self._owners: dict[int, int] = {}
        self._epochs: dict[int, int] = {}

    async def open(self) -> None:
        self._check()

    def beside(self) -> MemorySink:
        """Another sink on the same tables, as a second process has one."""
        other = MemorySink(self.partitions)
        other.__dict__.update({name: value for name, value in vars(self).items() if name != "_epochs"})
        return other

    async def claim(self, partitions: Sequence[int]) -> None:
        """From now on only this sink commits to ``partitions``, and to no others."""
        self._check()
        for partition in partitions:
            self._owners[partition] = self._owners.get(partition, 0) + 1
        self._epochs = {partition: self._owners[partition] for partition in partitions}

    async def positions(self, partitions: Sequence[int]) -> dict[int, int]:
        self._check()
        return {partition: self._positions.get(partition, -1) for partition in partitions}

    async def known_vehicles(self) -> KnownVehicles:
        self._check()
        vin = np.zeros((len(self.vehicles), VIN_BYTES), np.uint8)
        last_key = np.zeros(len(self.vehicles), np.int64)
        for i, (text, vehicle_id) in enumerate(self.vehicles.items()):
            vin[i] = np.frombuffer(text.encode("ascii").ljust(VIN_BYTES, b"\0"), np.uint8)
            state = self.states.get(vehicle_id)
            last_key[i] = _order(state) if state else 0
        return KnownVehicles(vin, np.fromiter(self.vehicles.values(), np.int64, len(self.vehicles)), last_key)

    async def register(self, vins: Sequence[str]) -> list[int]:
        self._check()
        return [self.vehicles.setdefault(vin, len(self.vehicles) + 1) for vin in vins]

    async def commit(self, batch: RowBatch, *, keep: bool = True) -> Committed:
        """Apply ``batch`` whole or not at all; see ``schemas.seams.Sink``."""
        self._check()
        if not keep:
            trial = MemorySink(self.partitions)
            trial.__dict__.update({name: copy.deepcopy(getattr(self, name)) for name in vars(trial)})
            return await trial.commit(batch)
        if self._epochs and any(self._epochs[partition] != self._owners[partition] for partition in batch.positions):
            raise PositionsMoved("another process has claimed these partitions: what this one read is not stored")
        for partition, (previous, _) in batch.positions.items():
            stored = self._positions.get(partition, -1)
            if stored != previous:
                raise PositionsMoved(
                    f"partition {partition} is stored up to offset {stored}, this batch begins after {previous}"
                )
        for partition, counts in batch.counts.items():
            if unknown := set(counts) - set(LEDGER):
                raise ValueError(
                    f"the ledger of partition {partition} has no column {sorted(unknown)}; it has {LEDGER}"
                )
        fast, late, states = _rows(batch.telemetry), _rows(batch.late), _rows(batch.states)
        changes = batch.changes
        if any(_key(row) in self.telemetry for row in fast) or len({_key(row) for row in fast}) < len(fast):
            fast, late = [], fast + late  # as the server's unique index has it; see PostgresSink.commit
        elif changes is not None:
            self.changes += zip(
                changes.vehicle_id.tolist(), changes.from_s.tolist(), changes.to_s.tolist(),
                (changes.urgent != 0).tolist(), strict=True,
            )  # fmt: skip
        hurried = set(changes.late_urgent.tolist()) if changes is not None else set()
        if changes is not None and not fast:
            hurried |= set(changes.vehicle_id[changes.urgent != 0].tolist())
        self.telemetry.update((_key(row), row) for row in fast)
        before = {_key(row): self.telemetry.get(_key(row)) for row in late}
        duplicates, conflicts = self._merge(late)
        written = sorted(
            (row["vehicle_id"], int(row["time"].timestamp()))
            for key in before
            if (row := self.telemetry[key]) is not before[key]
        )
        for (vehicle_id, _), of_day in itertools.groupby(written, lambda one: (one[0], one[1] // 86_400)):
            seconds = [second for _, second in of_day]
            self.changes.append((vehicle_id, seconds[0], seconds[-1], vehicle_id in hurried))
        self.changes += [(*entry, entry[0] in hurried) for entry in logouts_of(batch.logins)]
        self._apply_states(states, duplicates + conflicts)
        for vehicle_id in conflicts:  # the winner may be what the vehicle's state was not taken from
            state = self.states.get(vehicle_id)
            winner = self.telemetry.get(_key(state)) if state else None
            if state is not None and winner is not None:
                state.update({name: winner.get(name) for name in VEHICLE_STATE if name != "reports"})
        for login in batch.logins:
            self.logins.setdefault((login.partition, login.offset, login.position), login)
        for letter in batch.dead_letters:
            self.dead_letters.setdefault((letter.partition, letter.offset, letter.position), letter)
        for event in batch.link_events:
            self.link_events.setdefault((event.origin, event.number), event)
        self.keys += [one.key for one in batch.keys if one.key not in self.keys]
        self._count(batch.counts, duplicates, conflicts)
        self._positions.update((partition, new) for partition, (_, new) in batch.positions.items())
        known = duplicates.total() + conflicts.total()
        committed = Committed(len(fast) + len(late) - known, duplicates.total(), conflicts.total())
        self.commits.append(committed)
        return committed

    async def close(self) -> None:
        """Nothing to release; the tables stay to be looked at."""

    def _merge(self, late: list[Row]) -> tuple[Counter[int], Counter[int]]:
        """Late rows into ``telemetry``; duplicates and conflicts by vehicle."""
        duplicates: Counter[int] = Counter()
        conflicts: Counter[int] = Counter()
        digests: dict[Key, set[int]] = {}
        for row in late:
            key, digest, vehicle_id = _key(row), row["digest"], row["vehicle_id"]
            stored = self.telemetry.get(key)
            seen = digests.setdefault(key, {stored["digest"]} if stored else set())
            if stored is None:
                self.telemetry[key] = row
            elif digest in seen:
                duplicates[vehicle_id] += 1
            else:
                conflicts[vehicle_id] += 1
                if digest < stored["digest"]:
                    self.telemetry[key] = row
            seen.add(digest)
        return duplicates, conflicts

    def _apply_states(self, states: list[Row], not_new: Counter[int]) -> None:
        for row in states:
            vehicle_id = row["vehicle_id"]
            stored = self.states.get(vehicle_id)
            reports = row["reports"] - not_new[vehicle_id] + (stored["reports"] if stored else 0)
            newest = dict(row) if stored is None or _order(row) > _order(stored) else stored
            newest["reports"] = reports
            self.states[vehicle_id] = newest

    def _count(
        self, counts: Mapping[int, Mapping[str, int]], duplicates: Counter[int], conflicts: Counter[int]
    ) -> None:
        for partition, added in counts.items():
            self.ledger.setdefault(partition, Counter()).update(added)
        vin_of = {vehicle_id: vin for vin, vehicle_id in self.vehicles.items()} if duplicates or conflicts else {}
        for name, found in (("duplicates", duplicates), ("conflicts", conflicts)):
            for vehicle_id, n in found.items():
                line = self.ledger.setdefault(partition_of_vin(vin_of[vehicle_id], self.partitions), Counter())
                line[name] += n
                line["rows"] -= n

    def _check(self) -> None:
        if self.away:
            raise StoreUnavailable("the store in memory was told to be away")


def _rows(stream: CopyStream | None) -> list[Row]:
    return decode_copy(stream) if stream is not None else []


def _key(row: Row) -> Key:
    return tuple(row[name] for name in KEY)


def _order(row: Row) -> int:
    return order_key(int(row["time"].timestamp()), row["kind"], row["part"])
