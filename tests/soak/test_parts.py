"""Schedule, relay, slopes, and above all the account: does it see what is wrong?"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.soak import report
from services.soak.faults import BY_NAME, FAULTS, schedule
from services.soak.injector import children_of
from services.soak.line import Line
from services.soak.memory import slope_mb_per_min
from services.soak.reckoning import ALL, Stored, differences
from services.soak.run import SoakSettings, account

# -- the schedule --------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 1 << 30),
    seconds=st.floats(1, 10_000),
    count=st.integers(0, 600),
    without=st.sets(st.sampled_from(sorted(BY_NAME)), max_size=6),
)
def test_a_schedule(seed: int, seconds: float, count: int, without: set[str]) -> None:
    plan = schedule(seed, seconds, count, without)
    assert len(plan) == count
    assert plan == schedule(seed, seconds, count, without)
    assert [one.at_s for one in plan] == sorted(one.at_s for one in plan)
    assert all(0 <= one.at_s <= seconds + 0.001 for one in plan)
    names = Counter(one.name for one in plan)
    assert not without & set(names)
    kinds = [fault for fault in FAULTS if fault.name not in without]
    if count >= len(kinds):
        assert set(names) == {fault.name for fault in kinds}
    for one in plan:
        low, high = BY_NAME[one.name].lasts_s
        assert low <= one.lasts_s <= high
    if count > 100:
        odds = sum(fault.odds for fault in kinds)
        for fault in kinds:
            assert abs(names[fault.name] - count * fault.odds / odds) <= 2 + len(kinds) / 2


def test_two_hundred_kills_are_in_the_length_that_is_documented() -> None:
    planned = SoakSettings(minutes=12).planned
    assert sum(BY_NAME[one.name].kill for one in schedule(1, 600, planned)) >= 200


# -- the relay -----------------------------------------------------------------------------------------------


@pytest.fixture
def door() -> Iterator[tuple[str, int]]:
    """A server that sends back what it hears."""
    server = socket.create_server(("127.0.0.1", 0))

    def answer(one: socket.socket) -> None:
        with one:
            while True:
                try:
                    data = one.recv(65536)
                except ConnectionResetError:
                    return
                if not data:
                    return
                one.sendall(data)

    def serve() -> None:
        while True:
            try:
                one, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(one,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield server.getsockname()[:2]
    server.shutdown(socket.SHUT_RDWR)
    server.close()


@pytest.fixture
def start_line() -> Iterator[Callable[..., Line]]:
    started: list[Line] = []

    def start(**doors: tuple[str, int]) -> Line:
        started.append(Line(doors))
        started[-1].start()
        return started[-1]

    yield start
    for line in started:
        line.stop()


def received(vehicle: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        got = vehicle.recv(65536)
        if not got:
            break
        data += got
    return data


def test_the_relay_forwards_bytes_as_they_are(start_line: Callable[..., Line], door: tuple[str, int]) -> None:
    line = start_line(mqtt=door)
    data = bytes(range(256)) * 8192
    with socket.create_connection(line.addresses["mqtt"], 20) as vehicle:
        sending = threading.Thread(target=vehicle.sendall, args=(data,))
        sending.start()
        assert received(vehicle, len(data)) == data
        sending.join()


def test_the_relay_is_cut(start_line: Callable[..., Line], door: tuple[str, int]) -> None:
    line = start_line(mqtt=door, gbt32960=door)
    vehicles = [socket.create_connection(line.addresses[name], 20) for name in ("mqtt", "gbt32960") for _ in range(6)]
    for vehicle in vehicles:
        vehicle.sendall(b"here")
        assert received(vehicle, 4) == b"here"
    assert line.cut(1 / 3, 5) == 4

    def alive(vehicle: socket.socket) -> bool:
        try:
            vehicle.sendall(b"still")
            return received(vehicle, 5) == b"still"
        except OSError:
            return False

    assert sum(alive(vehicle) for vehicle in vehicles) == 8
    assert line.cut(1.0, 5) == 8
    assert not any(alive(vehicle) for vehicle in vehicles)
    for vehicle in vehicles:
        vehicle.close()


def test_a_door_that_is_shut_is_a_lost_connection(start_line: Callable[..., Line]) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        line = start_line(mqtt=nobody.getsockname())
        with contextlib.suppress(ConnectionResetError), socket.create_connection(line.addresses["mqtt"], 20) as vehicle:
            assert vehicle.recv(1) == b""


# -- processes and memory ------------------------------------------------------------------------------------


def test_children() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert child.pid in children_of(os.getpid())
        assert children_of(child.pid) == []
        child.kill()


def test_slope_is_that_within_lives() -> None:
    def life(begin_s: float, level_mb: float, per_min: float, seconds: int = 60) -> list[tuple[float, float]]:
        young = [(begin_s + t, level_mb * t / 10) for t in range(10)]  # loading is no leak
        return young + [(begin_s + t, level_mb + per_min * t / 60) for t in range(10, seconds)]

    assert slope_mb_per_min([life(0, 80, 3.0), life(100, 95, 3.0)]) == pytest.approx(3.0)
    assert slope_mb_per_min([life(0, 80, 0.0), life(100, 195, 0.0)]) == pytest.approx(0.0)
    assert slope_mb_per_min([life(0, 80, 1.0), life(100, 95, 3.0)]) == pytest.approx(2.0)
    assert slope_mb_per_min([life(0, 80, 1.0, 12)]) is None
    assert slope_mb_per_min([]) is None


# -- the account ---------------------------------------------------------------------------------------------

SENT = {
    "complete": True, "sent": 110, "acked": 110, "resent": 5, "expected_stored": 100, "expected_rejected": 3,
    "connects": 9, "drops": 4, "ack_p50_ms": 10.0, "ack_p99_ms": 900.0, "planned": {"loss": 0, "corrupt": 3},
    "last_error": "",
}  # fmt: skip
LEDGER = {"frames": 130, "rows": 100, "duplicates": 6, "conflicts": 0, "rejected": 4, "sessions": 9, "other": 11}
STORED = Stored(100, 100, 3, {"bad_bcc": 4}, 0, LEDGER, 100, 100, 8)
TOLD: dict[str, list[tuple[Any, ...]]] = {table: [("vin", "day", "x"), ("V1", 1, 2.0)] for table in ALL}


def judged(sent: dict[str, Any] = SENT, found: Stored = STORED, told: Any = TOLD, anew: Any = TOLD) -> dict[str, Any]:
    return account(SoakSettings(), sent, found, told, anew)


def test_all_is_well() -> None:
    found = judged()
    assert found["problems"] == []
    assert report.passed(found)
    assert (found["lost"], found["duplicated"], found["statistics_equal"]) == (0, 0, True)
    assert (found["sent"], found["acked"], found["stored"], found["rejected"]) == (110, 110, 100, 3)
    assert found["planted"] == {"corrupt": 3}


@pytest.mark.parametrize(
    ("found", "lost", "duplicated", "said"),
    [
        (replace(STORED, rows=99, keys=99, reports=99, day_rows=99), 1, 0, "99 reports are stored, 100 were"),
        (replace(STORED, rejected=2), 1, 0, "2 frames refused, 3 were planted"),
        (replace(STORED, rows=101, reports=101, day_rows=101), 0, 1, "telemetry 101"),
        (replace(STORED, day_rows=98), 2, 0, "vehicle_day counts 98 rows"),
        (replace(STORED, day_rows=102), 0, 2, "vehicle_day counts 102 rows"),
        (replace(STORED, reports=101), 0, 1, "vehicle_state counts 101"),
        (replace(STORED, unplanted=1, letters={"bad_bcc": 4, "poison": 1}), 0, 0, "1 frames refused that were sound"),
        (replace(STORED, ledger=LEDGER | {"rows": 101}), 0, 1, "the ledger does not add up"),
        (replace(STORED, ledger=LEDGER | {"conflicts": 1, "frames": 131}), 0, 0, "1 conflicts"),
        (replace(STORED, letters={"bad_bcc": 5}), 0, 0, "not the dead letters"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_seen(found: Stored, lost: int, duplicated: int, said: str) -> None:
    result = judged(found=found)
    assert any(said in problem for problem in result["problems"]), result["problems"]
    assert (result["lost"], result["duplicated"]) == (lost, duplicated)
    assert not report.passed(result)


def test_more_than_was_answered_is_no_fault_when_not_all_was() -> None:
    found = replace(STORED, rows=104, keys=104, reports=104, day_rows=104, ledger=LEDGER | {"rows": 104, "frames": 134})
    result = judged(sent=SENT | {"complete": False, "last_error": "V1: no answer"}, found=found)
    assert result["problems"] == ["not everything sent was answered: V1: no answer"]


def test_statistics_that_differ_are_told() -> None:
    other = TOLD | {"trips": [("vin", "day", "x"), ("V1", 1, 2.5)], "charges": [("vin", "day", "x")]}
    result = judged(anew=other)
    assert not result["statistics_equal"]
    assert result["problems"] == [
        "statistics: trips V1 1: {'x': (2.0, 2.5)}",
        "statistics: charges: 1 rows, 0 when made anew",
    ]
    nan = float("nan")
    same = TOLD | {"trips": [("vin", "day", "x"), ("V1", 1, nan)]}
    assert differences(same, same | {"trips": [("vin", "day", "x"), ("V1", 1, float("nan"))]}) == []


def test_the_fleets_figures_are_compared_too() -> None:
    """Sums over vehicles come in any order, so their last digit is let go; of one vehicle nothing is."""
    names = ("facts", "of_edition", "span", "start", "x")
    told = TOLD | {"cohort_period": [names, ("m/f", "2016", "D", 1, 0.1 + 0.2)]}
    assert differences(told, told | {"cohort_period": [names, ("m/f", "2016", "D", 1, 0.3)]}) == []
    (said,) = differences(told, told | {"cohort_period": [names, ("m/f", "2016", "D", 1, 0.3001)]})
    assert said.startswith("cohort_period m/f 2016: {'x': (0.30")
    trips = [("vin", "day", "x"), ("V1", 1, 0.3)]
    assert differences(TOLD | {"trips": [*trips[:1], ("V1", 1, 0.1 + 0.2)]}, TOLD | {"trips": trips})
