"""The benchmarks' own honesty: the baseline reads what the reference reads, and results say where they come from."""

from __future__ import annotations

import numpy as np
import pytest
from rich.console import Console

from benchmarks import obvious, runner
from benchmarks.generator import MODEL
from benchmarks.sending import PACKET_BYTES
from schemas.gbt32960.reference import decode_frame
from schemas.signals import INDEX
from services.errors import UsageError
from services.fleetsim import faults, wire
from services.fleetsim.chunks import Chunks
from services.fleetsim.vehicle import make_fleet

pytestmark = pytest.mark.slow


def frames(count: int, odds: str = "none") -> list[bytes]:
    chunks = Chunks(
        make_fleet(4, 2, MODEL), np.full(4, 1_780_000_000, np.int64), 10, np.full(4, wire.GBT_TCP, np.int64),
        faults.odds_of(odds), None,
    )  # fmt: skip
    found = []
    for segment in chunks.make(count):
        begins = [0, *segment.ends[:-1]]
        found += [segment.data[a:b].tobytes() for a, b in zip(begins, segment.ends, strict=True)]
    return found


def program() -> obvious.Program:
    made = object.__new__(obvious.Program)  # without its database
    made.vehicles = {}
    return made


def test_the_obvious_program_reads_what_the_reference_reads() -> None:
    judge = program()
    for frame in frames(20):
        found = judge.row(frame)
        assert found is not None
        row = dict(zip(obvious.COLUMNS, found, strict=True))
        infos = {info["name"]: info for info in decode_frame(frame)["body"]["infos"]}
        vehicle, motor = infos["vehicle"], infos["drive_motor"]["motors"][0]
        pack, location, extremes = infos["cell_voltages"]["packs"][0], infos["location"], infos["extremes"]
        assert row["time"].isoformat() == decode_frame(frame)["body"]["time"]
        for name in ("speed_kmh", "total_voltage_v", "total_current_a", "soc_pct", "insulation_resistance_kohm"):
            assert row[name] == pytest.approx(vehicle[name]), name
        assert row["odometer_km"] == pytest.approx(vehicle["mileage_km"])
        assert row["motor_speed_rpm"] == motor["speed_rpm"]
        assert row["motor_torque_nm"] == pytest.approx(motor["torque_nm"])
        assert row["longitude_deg"] == pytest.approx(location["longitude_deg"])
        assert row["location_valid"] == int(location["valid"])
        assert row["max_temp_c"] == extremes["max_temp_c"]
        assert row["min_voltage_cell"] == extremes["min_voltage_cell"]
        assert row["alarm_level"] == infos["alarm"]["max_level"]
        assert row["pack_current_a"] == pytest.approx(pack["current_a"])
        assert row["cell_max_v"] == pytest.approx(max(pack["cells_v"]))
        assert row["probe_min_c"] == min(infos["cell_temperatures"]["packs"][0]["temps_c"])
        # what the frame has is in the row
        assert len(row["cells"]) == 1 + 2 * 96
        assert {name for name in row if name in INDEX} >= {"gear", "brake_pct", "motor_bus_current_a", "cell_sum_v"}


def test_the_obvious_program_refuses_what_is_broken() -> None:
    judge, whole = program(), frames(1)[0]
    assert judge.row(whole[:-1]) is None
    assert judge.row(whole[:-1] + bytes([whole[-1] ^ 1])) is None


def test_the_sink_knows_the_size_of_a_packet() -> None:
    chunks = Chunks(
        make_fleet(1, 2, MODEL), np.full(1, 1_780_000_000, np.int64), 10, np.full(1, wire.MQTT_311, np.int64), {}, None
    )
    assert chunks.make(3)[0].ends == [PACKET_BYTES, 2 * PACKET_BYTES, 3 * PACKET_BYTES]


def test_benchmarks_are_listed_and_unknown_ones_named() -> None:
    assert {"journey", "sending", "generation"} <= set(runner.available())
    with pytest.raises(UsageError, match="journey"):
        runner.run("nothing")


def test_a_result_remembers_where_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "benchmarks.generation.run", lambda quick, progress: {"frames_per_s": 12.5, "notes": ["a note"]}
    )
    result = runner.run("generation", quick=True)
    assert result["machine"]["cores"] >= 1
    assert result["machine"]["versions"]["numba"]
    assert result["benchmark"] == "generation"
    assert result["quick"] is True
    console = Console(width=100, record=True, file=None, quiet=False)
    with console.capture() as shown:
        console.print(runner.table(result))
    assert "12.50" in shown.get()
    assert "a note" in shown.get()
