"""One contract for both sinks: what a committed batch leaves behind, what it counts, what it refuses."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.rows import dict_row

from schemas.batch import Changes, CopyStream, DeadLetter, Login, RowBatch
from schemas.keys import order_key, partition_of_vin
from services.errors import PositionsMoved, StoreUnavailable
from services.settings import Settings
from services.store import postgres as store_postgres
from services.store.columns import KEY, LEDGER, TELEMETRY, VEHICLE_STATE
from services.store.copyformat import encode_copy
from services.store.memory import MemorySink
from services.store.postgres import PostgresSink

Sink = MemorySink | PostgresSink
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
PARTITIONS = 8
FIXED = ("vehicle_id", "time", "received_at", "kind", "part", "edition", "door", "digest")
VINS = ["LSVNEVTEST0000001", "LSVNEVTEST0000002", "SHORT"]


class Store:
    """A sink, and a way to look into it."""

    def __init__(self, sink: Sink, dsn: str | None) -> None:
        self.sink, self._dsn = sink, dsn

    def _all(self, table: str) -> list[dict[str, Any]]:
        assert self._dsn is not None
        with psycopg.connect(self._dsn, row_factory=dict_row) as connection:
            return connection.execute(f"SELECT * FROM {table}").fetchall()

    def telemetry(self) -> dict[tuple[Any, ...], dict[str, Any]]:
        rows = self.sink.telemetry.values() if isinstance(self.sink, MemorySink) else self._all("telemetry")
        return {tuple(row[name] for name in KEY): {name: row.get(name) for name in TELEMETRY} for row in rows}

    def states(self) -> dict[int, dict[str, Any]]:
        rows = self.sink.states.values() if isinstance(self.sink, MemorySink) else self._all("vehicle_state")
        return {row["vehicle_id"]: {name: row.get(name) for name in VEHICLE_STATE} for row in rows}

    def ledger(self) -> dict[int, dict[str, int]]:
        if isinstance(self.sink, MemorySink):
            return {partition: {name: line[name] for name in LEDGER} for partition, line in self.sink.ledger.items()}
        return {row.pop("partition"): row for row in self._all("ledger")}

    def changes(self) -> list[tuple[int, int, int, bool]]:
        """(vehicle, earliest, latest second after noon, urgent) told to the statistics."""
        found: list[tuple[int, int, int, bool]] = []
        if isinstance(self.sink, MemorySink):
            found = list(self.sink.changes)
        else:
            for row in self._all("statistics_changes"):
                columns = [np.frombuffer(row[name], "<i8").tolist() for name in ("vehicles", "from_s", "to_s")]
                found += [(*line, row["urgent"]) for line in zip(*columns, strict=True)]
                assert {vehicle % 8 for vehicle in columns[0]} == {row["share"]}
        noon = int(NOON.timestamp())
        return sorted((vehicle, begin - noon, end - noon, urgent) for vehicle, begin, end, urgent in found)

    def events(self, table: str) -> list[tuple[Any, ...]]:
        """(partition, offset, position, vin) of logins or dead letters."""
        if isinstance(self.sink, MemorySink):
            rows = getattr(self.sink, table).values()
            return sorted((row.partition, row.offset, row.position, row.vin) for row in rows)
        return sorted((row["partition"], row["offset"], row["position"], row["vin"]) for row in self._all(table))


@pytest.fixture(params=["memory", pytest.param("postgres", marks=pytest.mark.database)])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    if request.param == "memory":
        made = Store(MemorySink(PARTITIONS), None)
    else:
        dsn = request.getfixturevalue("dsn")
        made = Store(PostgresSink(dsn, Settings()), dsn)
    await made.sink.open()
    await made.sink.register(VINS)
    yield made
    await made.sink.close()


def report(vehicle_id: int, second: int, digest: int, **values: Any) -> dict[str, Any]:
    return {
        "vehicle_id": vehicle_id,
        "time": NOON + timedelta(seconds=second),
        "received_at": NOON + timedelta(days=1),
        "kind": 2,
        "part": 0,
        "edition": 16,
        "door": 1,
        "digest": digest,
        **values,
    }


def stream(table: str, rows: Sequence[Mapping[str, Any]], fixed: Iterable[str]) -> CopyStream | None:
    if not rows:
        return None
    present = set().union(*rows)
    columns = [name for name in (TELEMETRY if table == "telemetry" else VEHICLE_STATE) if name in {*fixed, *present}]
    return encode_copy(table, columns, rows)


def states_of(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The state rows of a batch, as the pipeline makes them: the newest of each vehicle, and how many it had."""
    newest: dict[int, dict[str, Any]] = {}
    for row in rows:
        kept = newest.get(row["vehicle_id"])
        taken = row if kept is None or _order(row) > _order(kept) else kept
        newest[row["vehicle_id"]] = {**taken, "reports": (kept["reports"] if kept else 0) + 1}
    return [{name: row.get(name) for name in VEHICLE_STATE} for row in newest.values()]


def _order(row: Mapping[str, Any]) -> int:
    return order_key(int(row["time"].timestamp()), row["kind"], row["part"])


OFFSETS = itertools.count(1)


def batch(
    fast: Sequence[dict[str, Any]] = (),
    late: Sequence[dict[str, Any]] = (),
    positions: Mapping[int, tuple[int, int]] | None = None,
    counts: Mapping[int, Mapping[str, int]] | None = None,
    **more: Any,
) -> RowBatch:
    everything = [*fast, *late]
    return RowBatch(
        telemetry=stream("telemetry", fast, FIXED),
        late=stream("telemetry", late, FIXED),
        states=stream("vehicle_state", states_of(everything), VEHICLE_STATE),
        days=sorted({int(row["time"].timestamp()) // 86400 for row in everything}),
        logins=more.get("logins", ()),
        dead_letters=more.get("dead_letters", ()),
        positions=positions or {},
        counts=counts or {},
        changes=more.get("changes") or changes_of(fast, more.get("urgent", ()), more.get("late_urgent", ())),
    )


def changes_of(fast: Sequence[dict[str, Any]], urgent: Iterable[int], late_urgent: Iterable[int]) -> Changes:
    """As the pipeline makes them: earliest and latest second of each vehicle's fast rows."""
    seconds: dict[int, list[int]] = {}
    for row in fast:
        seconds.setdefault(row["vehicle_id"], []).append(int(row["time"].timestamp()))
    return Changes(
        np.array(list(seconds), np.int64),
        np.array([min(of) for of in seconds.values()], np.int64),
        np.array([max(of) for of in seconds.values()], np.int64),
        np.array([vehicle in set(urgent) for vehicle in seconds], np.uint8),
        np.array(sorted(late_urgent), np.int64),
    )


async def test_positions_begin_at_minus_one_and_move(store: Store) -> None:
    assert await store.sink.positions([0, 3]) == {0: -1, 3: -1}
    await store.sink.commit(batch(positions={0: (-1, 7), 3: (-1, 9)}))
    await store.sink.commit(batch(positions={3: (9, 12)}))
    assert await store.sink.positions([0, 1, 3]) == {0: 7, 1: -1, 3: 12}


@pytest.mark.parametrize("stale", [{0: (-1, 8)}, {0: (6, 8)}, {0: (7, 8), 1: (3, 4)}])
async def test_an_overtaken_owner_writes_nothing(store: Store, stale: dict[int, tuple[int, int]]) -> None:
    await store.sink.commit(batch(positions={0: (-1, 7)}))
    with pytest.raises(PositionsMoved, match="stored up to"):
        await store.sink.commit(batch([report(1, 0, 5)], positions=stale, counts={0: {"frames": 1, "rows": 1}}))
    assert store.telemetry() == {}
    assert store.ledger() == {}
    assert store.changes() == []
    assert store.states() == {}
    assert await store.sink.positions([0, 1]) == {0: 7, 1: -1}
    await store.sink.commit(batch([report(1, 0, 5)], positions={0: (7, 8)}))  # the sink is still good
    assert len(store.telemetry()) == 1


def beside(store: Store) -> Sink:
    """A sink of another process on the same tables."""
    return store.sink.beside() if isinstance(store.sink, MemorySink) else PostgresSink(store.sink._dsn, Settings())


async def test_who_claims_a_partition_is_its_only_owner(store: Store) -> None:
    """A process that was away while another claimed its partitions: what it has read is not stored."""
    other = beside(store)
    await store.sink.claim([0, 1])
    await store.sink.commit(batch([report(1, 0, 5)], positions={0: (-1, 7)}))
    await other.claim([1, 2])
    with pytest.raises(PositionsMoved, match="another process has claimed"):  # though nobody moved the positions
        await store.sink.commit(batch([report(1, 9, 5)], positions={0: (7, 8), 1: (-1, 3)}))
    assert await store.sink.positions([0, 1]) == {0: 7, 1: -1}
    assert len(store.telemetry()) == 1
    await store.sink.commit(batch([report(1, 1, 5)], positions={0: (7, 8)}))  # this one is still its own
    await other.commit(batch([report(2, 0, 5)], positions={1: (-1, 3)}))
    await store.sink.claim([1])  # and back
    with pytest.raises(PositionsMoved):
        await other.commit(batch(positions={1: (3, 4)}))
    await store.sink.commit(batch(positions={1: (3, 4)}))
    assert len(store.telemetry()) == 3
    await other.close()


@pytest.mark.database
async def test_a_claim_waits_for_the_commit_under_way(dsn: str, db: psycopg.Connection[Any]) -> None:
    """Else the new owner would read a position that the old one is about to move."""
    old, new = PostgresSink(dsn, Settings()), PostgresSink(dsn, Settings())
    await old.claim([0])
    with psycopg.connect(dsn) as holding:  # the old owner in the middle of its transaction
        holding.execute("SELECT FROM partition_owner WHERE partition = 0 FOR SHARE")
        claiming = asyncio.ensure_future(new.claim([0]))
        while db.execute(  # noqa: ASYNC110 - the event is in the server
            "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype IN ('tuple', 'transactionid')"
        ).fetchone() == (0,):
            await asyncio.sleep(0.005)
        assert not claiming.done()
    await claiming
    assert db.execute("SELECT epoch FROM partition_owner").fetchall() == [(2,)]
    await old.close()
    await new.close()


@pytest.mark.database
async def test_an_owner_that_stands_still_in_its_transaction_is_ended(
    dsn: str, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was paused in the middle of a commit, and wakes when another has its partitions."""
    old, new = PostgresSink(dsn, Settings()), PostgresSink(dsn, Settings())
    await old.register(VINS)
    await old.claim([0])
    monkeypatch.setattr(store_postgres, "_CLAIM_PATIENCE_MS", 100)
    woken, write = threading.Event(), store_postgres._write_events

    def paused(*given: Any) -> None:
        monkeypatch.setattr(store_postgres, "_write_events", write)
        woken.wait(60)
        write(*given)

    monkeypatch.setattr(store_postgres, "_write_events", paused)
    commit = asyncio.ensure_future(old.commit(batch([report(1, 0, 5)], positions={0: (-1, 7)})))
    while store_postgres._write_events is paused:  # noqa: ASYNC110 - a thread of the sink's own
        await asyncio.sleep(0.005)
    await new.claim([0])
    assert await new.positions([0]) == {0: -1}
    await new.commit(batch([report(1, 0, 5)], positions={0: (-1, 7)}))
    woken.set()
    with pytest.raises(StoreUnavailable):
        await commit
    with pytest.raises(PositionsMoved, match="another process has claimed"):
        await old.commit(batch([report(1, 9, 5)], positions={0: (7, 8)}))
    assert db.execute("SELECT count(*) FROM telemetry").fetchone() == (1,)
    assert db.execute('SELECT "offset" FROM journal_positions').fetchall() == [(7,)]
    await old.close()
    await new.close()


async def test_register_is_idempotent_and_keeps_order(store: Store) -> None:
    first = await store.sink.register(["B", "A", "C"])
    assert await store.sink.register(["C", "D", "A", "A"]) == [
        first[2],
        (await store.sink.register(["D"]))[0],
        first[1],
        first[1],
    ]
    assert len(set(first)) == 3
    assert await store.sink.register([]) == []


async def test_known_vehicles(store: Store) -> None:
    one, _, short = await store.sink.register(VINS)
    await store.sink.commit(batch([report(one, 0, 5), report(one, 3, 6, kind=3, part=201)]))
    known = await store.sink.known_vehicles()
    found = {
        bytes(vin).rstrip(b"\0").decode(): (int(i), int(k))
        for vin, i, k in zip(known.vin, known.vehicle_id, known.last_key, strict=True)
    }
    assert known.vin.shape == (3, 17)
    assert found[VINS[0]] == (one, order_key(int(NOON.timestamp()) + 3, 3, 201))
    assert found["SHORT"] == (short, 0)


async def test_rows_are_stored_with_their_values(store: Store) -> None:
    row = report(
        1, 0, -(2**63), notes=3, edition=25, speed_kmh=65.5, odometer_km=123456.7, soc_pct=87, alarm_flags=2**32 - 1,
        insulation_resistance_kohm=60000, longitude_deg=-121.123456, cells=b"\x01\x02\x03", rest=b"", flaws=b"\x00\x02",
    )  # fmt: skip
    committed = await store.sink.commit(batch([row], counts={2: {"frames": 1, "rows": 1}}))
    assert (committed.rows, committed.duplicates, committed.conflicts) == (1, 0, 0)
    (stored,) = store.telemetry().values()
    assert stored == {name: row.get(name) for name in TELEMETRY}
    assert store.states()[1] == {name: row.get(name) for name in VEHICLE_STATE if name != "reports"} | {"reports": 1}
    assert store.ledger() == {2: dict.fromkeys(LEDGER, 0) | {"frames": 1, "rows": 1}}


async def test_an_empty_batch(store: Store) -> None:
    committed = await store.sink.commit(batch())
    assert (committed.rows, committed.duplicates, committed.conflicts) == (0, 0, 0)


async def test_old_and_far_days(store: Store) -> None:
    await store.sink.commit(batch([report(1, -86400 * 400, 1), report(1, 0, 2), report(1, 86400 * 30, 3)]))
    assert len(store.telemetry()) == 3


CASES = [
    # stored before, then one late batch of (second, digest); → rows, duplicates, conflicts, digests kept
    ([], [(0, 5)], (1, 0, 0), {0: 5}),
    ([(0, 5)], [(0, 5)], (0, 1, 0), {0: 5}),
    ([(0, 5)], [(0, 4)], (0, 0, 1), {0: 4}),
    ([(0, 5)], [(0, 6)], (0, 0, 1), {0: 5}),
    ([], [(0, 5), (0, 5), (0, 5)], (1, 2, 0), {0: 5}),
    ([], [(0, 6), (0, 5), (0, 7)], (1, 0, 2), {0: 5}),
    ([(0, 5)], [(0, 5), (0, 4), (0, 4), (0, 5)], (0, 3, 1), {0: 4}),
    ([(0, 5), (1, -1)], [(2, 1), (1, -1), (1, -2), (3, 1), (0, 9)], (2, 1, 2), {0: 5, 1: -2, 2: 1, 3: 1}),
]


@pytest.mark.parametrize(("before", "late", "counted", "kept"), CASES)
async def test_late_rows_are_merged_and_counted(
    store: Store,
    before: list[tuple[int, int]],
    late: list[tuple[int, int]],
    counted: tuple[int, int, int],
    kept: dict[int, int],
) -> None:
    vehicle, *_ = await store.sink.register(VINS)
    partition = partition_of_vin(VINS[0], PARTITIONS)
    await store.sink.commit(batch([report(vehicle, *row) for row in before]))
    committed = await store.sink.commit(
        batch(
            late=[report(vehicle, second, digest, soc_pct=digest) for second, digest in late],
            counts={partition: {"frames": len(late) + 2, "rows": len(late), "other": 2}},
        )
    )
    assert (committed.rows, committed.duplicates, committed.conflicts) == counted
    assert {int((key[1] - NOON).total_seconds()): row["digest"] for key, row in store.telemetry().items()} == kept
    state = store.states()[vehicle]
    assert state["reports"] == len(kept)
    newest = max(kept)
    assert state["time"] == NOON + timedelta(seconds=newest)
    assert state["soc_pct"] == store.telemetry()[vehicle, NOON + timedelta(seconds=newest), 2, 0]["soc_pct"]
    line = store.ledger()[partition]
    assert (line["rows"], line["duplicates"], line["conflicts"]) == counted
    assert line["frames"] == sum(line[name] for name in LEDGER if name != "frames")


async def test_a_replaced_row_keeps_nothing_of_the_old_one(store: Store) -> None:
    await store.sink.commit(batch([report(1, 0, 5, speed_kmh=10.0, cells=b"old")]))
    await store.sink.commit(batch(late=[report(1, 0, 4, soc_pct=50)]))
    (row,) = store.telemetry().values()
    assert (row["digest"], row["soc_pct"], row["speed_kmh"], row["cells"]) == (4, 50, None, None)
    state = store.states()[1]
    assert (state["soc_pct"], state["speed_kmh"], state["reports"]) == (50, None, 1)


async def test_a_row_that_should_be_new_and_is_not(store: Store) -> None:
    """The caller's table of vehicles was behind: counted as what it is, nothing fails."""
    await store.sink.commit(batch([report(1, 0, 5)]))
    committed = await store.sink.commit(batch([report(1, 0, 5), report(1, 1, 6)], [report(2, 0, 1)]))
    assert (committed.rows, committed.duplicates, committed.conflicts) == (2, 1, 0)
    assert len(store.telemetry()) == 3
    assert {vehicle: state["reports"] for vehicle, state in store.states().items()} == {1: 2, 2: 1}


async def test_state_never_goes_backwards(store: Store) -> None:
    await store.sink.commit(batch([report(1, 10, 1, soc_pct=50)]))
    await store.sink.commit(batch(late=[report(1, 5, 2, soc_pct=60)]))
    await store.sink.commit(batch([report(1, 10, 3, kind=3, soc_pct=70)]))
    state = store.states()[1]
    assert (state["soc_pct"], state["kind"], state["reports"]) == (70, 3, 3)


async def test_fast_rows_are_told_to_the_statistics(store: Store) -> None:
    await store.sink.commit(batch([report(1, 0, 5), report(1, 7, 6), report(2, 3, 7)], urgent=[2]))
    assert store.changes() == [(1, 0, 7, False), (2, 3, 3, True)]


async def test_late_rows_are_told_only_when_they_are_news(store: Store) -> None:
    day = 86_400
    await store.sink.commit(batch([report(1, 0, 5), report(1, 60, 5), report(2, 0, 5)]))
    before = store.changes()
    late = [
        report(1, 0, 5),  # a duplicate
        report(1, 60, 9),  # a conflict that loses
        report(2, 0, 3),  # one that wins
        report(2, -10, 4),
        report(2, -day, 4),  # a day earlier, a line of its own
    ]
    await store.sink.commit(batch(late=late, late_urgent=[1, 2]))
    assert sorted(set(store.changes()) - set(before)) == [(2, -day, -day, True), (2, -10, 0, True)]


async def test_a_row_that_is_stored_already_is_no_news(store: Store) -> None:
    rows = [report(1, 0, 5), report(1, 9, 5)]
    await store.sink.commit(batch(rows))
    await store.sink.commit(batch([*rows, report(2, 4, 6)], urgent=[2]))  # the caller's table was behind
    assert store.changes() == [(1, 0, 9, False), (2, 4, 4, True)]


async def test_logouts_are_told_to_the_statistics(store: Store) -> None:
    logins = [
        login(1, vehicle_id=1, command=4, time=NOON), login(2, vehicle_id=2, command=1, time=NOON),
        login(3, vehicle_id=None, command=6, time=NOON),
    ]  # fmt: skip
    await store.sink.commit(batch(logins=logins))
    assert store.changes() == [(1, 1, 1, False)]  # from the second after it on


def login(offset: int, position: int = 0, **values: Any) -> Login:
    return Login(**{
        "partition": 1, "offset": offset, "position": position, "received": NOON, "time": NOON, "command": 1,
        "edition": 16, "door": 1, "vin": VINS[0], "vehicle_id": 1, "serial": 3, "iccid": "8986",
        "pack_codes": ["A1", "B2"], **values,
    })  # fmt: skip


def letter(offset: int, position: int = 0, **values: Any) -> DeadLetter:
    return DeadLetter(**{
        "partition": 1, "offset": offset, "position": position, "received": NOON, "reason": 1, "detail": 2**32 - 1,
        "door": 2, "codec": 1, "vin": VINS[0], "peer": "10.0.0.1:5", "client": None, "frame": b"\x23\x23\0", **values,
    })  # fmt: skip


async def test_events_are_stored_once(store: Store) -> None:
    events: dict[str, Any] = {"logins": [login(5), login(5, 1)], "dead_letters": [letter(6), letter(6, 1, vin=None)]}
    await store.sink.commit(batch(**events))
    await store.sink.commit(batch(logins=[login(5), login(7)], dead_letters=[letter(6)]))
    assert store.events("logins") == [(1, 5, 0, VINS[0]), (1, 5, 1, VINS[0]), (1, 7, 0, VINS[0])]
    assert [row[:3] for row in store.events("dead_letters")] == [(1, 6, 0), (1, 6, 1)]


async def test_an_unknown_ledger_column(store: Store) -> None:
    with pytest.raises(ValueError, match=r"no column \['lost'\]"):
        await store.sink.commit(batch(counts={0: {"lost": 1}}))


@pytest.mark.database
@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
async def test_order_does_not_matter(dsn: str, data: st.DataObject) -> None:
    """Any order, cut into any batches, leaves the same rows and states; memory and server count alike."""
    key = st.tuples(st.integers(1, 3), st.integers(0, 4))
    reports = data.draw(st.lists(st.tuples(key, st.integers(-2, 2)), min_size=1, max_size=14))
    results = []
    for _ in range(2):
        order = data.draw(st.permutations(reports))
        cuts = data.draw(st.lists(st.booleans(), min_size=len(order), max_size=len(order)))
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(
                "TRUNCATE telemetry, vehicle_state, vehicles, ledger, journal_positions RESTART IDENTITY"
            )
        stores = [Store(MemorySink(PARTITIONS), None), Store(PostgresSink(dsn, Settings()), dsn)]
        committed = [await _play(store, order, cuts) for store in stores]
        memory, server = ((store.telemetry(), store.states(), store.ledger()) for store in stores)
        assert memory == server
        assert committed[0] == committed[1]
        results.append(memory[:2])
    assert results[0] == results[1]


async def _play(
    store: Store, order: Sequence[tuple[tuple[int, int], int]], cuts: Sequence[bool]
) -> list[tuple[int, ...]]:
    await store.sink.open()
    await store.sink.register(VINS)
    last: dict[int, int] = {}
    committed = []
    fast: list[dict[str, Any]] = []
    late: list[dict[str, Any]] = []
    for ((vehicle, second), digest), cut in zip(order, [*cuts[1:], True], strict=True):
        row = report(vehicle, second, digest, soc_pct=digest + 50)
        if _order(row) > last.get(vehicle, 0):
            last[vehicle] = _order(row)
            fast.append(row)
        else:
            late.append(row)
        if cut:
            counts = {0: {"frames": len(fast) + len(late), "rows": len(fast) + len(late)}}
            done = await store.sink.commit(batch(fast, late, counts=counts))
            committed.append((done.rows, done.duplicates, done.conflicts))
            fast, late = [], []
    await store.sink.close()
    return committed
