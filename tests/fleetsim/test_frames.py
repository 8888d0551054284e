"""What leaves the simulator decodes to what the model said, and faults add up to the frame."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from schemas.gbt32960.frame import FRAME, next_frame
from schemas.gbt32960.reference import decode_frame
from schemas.mqtt.packets import parse_puback, parse_publish, split
from schemas.signals import INDEX
from services.fleetsim import faults, wire
from services.fleetsim.chunks import Chunks, Segment
from services.fleetsim.model import FleetModel
from services.fleetsim.vehicle import CATALOGUE, make_fleet

pytestmark = pytest.mark.slow

T0 = 1_780_000_000


def frames_of(segment: Segment, speech: int) -> list[bytes]:
    """The frames in a vehicle's stream, taken out of their PUBLISH packets."""
    found, at, data = [], 0, segment.data.tobytes()
    while at < len(data):
        if speech == wire.GBT_TCP:
            length = 25 + int.from_bytes(data[at + 22 : at + 24], "big")
            found.append(data[at : at + length])
            at += length
            continue
        whole = split(data, at)
        assert whole is not None
        first, body, at = whole
        publish = parse_publish(first, body, 5 if speech == wire.MQTT_5 else 4)
        assert publish.qos == 1
        found.append(publish.payload)
    return found


def chunks_of(
    vehicles: int, seed: int = 3, odds: Any = "none", reports: int | None = None
) -> tuple[Chunks, np.ndarray]:
    speech = np.arange(vehicles, dtype=np.int64) % 3
    fleet = make_fleet(vehicles, seed)
    return Chunks(fleet, np.full(vehicles, T0, np.int64), 10, speech, faults.odds_of(odds), reports), speech


def infos(tree: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {info["name"]: info for info in tree["body"]["infos"]}


def test_frames_decode_to_what_the_model_said() -> None:
    chunks, speech = chunks_of(24)
    segments = chunks.make(3)
    said = FleetModel(chunks.fleet, T0).samples(T0 + np.arange(3) * 10)
    editions = Counter()
    for v, segment in enumerate(segments):
        model = CATALOGUE[chunks.fleet.model[v]]
        frames = frames_of(segment, int(speech[v]))
        assert len(frames) == 3
        for k, frame in enumerate(frames):
            row = 3 * v + k
            tree = decode_frame(frame)
            assert (tree["bcc_ok"], tree["length_ok"], tree["cmd"], tree["ack_name"]) == (True, True, 2, "command")
            assert tree["vin"] == chunks.fleet.vins[v]
            assert tree["edition"] == {16: "2016", 25: "2025"}[model.edition]
            editions[model.edition] += 1
            got = infos(tree)

            def num(name: str, div: float, row: int = row) -> float:
                return float(said.num[row, INDEX[name]] / div)

            vehicle, motor = got["vehicle"], got["drive_motor"]["motors"][0]
            assert vehicle["speed_kmh"] == pytest.approx(num("speed_kmh", 10))
            assert vehicle["mileage_km"] == pytest.approx(num("odometer_km", 10))
            assert vehicle["total_voltage_v"] == pytest.approx(num("total_voltage_v", 10))
            assert vehicle["total_current_a"] == pytest.approx(num("total_current_a", 10))
            assert vehicle["soc_pct"] == num("soc_pct", 1)
            assert motor["speed_rpm"] == num("motor_speed_rpm", 1)
            assert motor["torque_nm"] == pytest.approx(num("motor_torque_nm", 10))
            assert motor["motor_temp_c"] == num("motor_temp_c", 1)
            assert got["location"]["longitude_deg"] == pytest.approx(num("longitude_deg", 1e6))
            assert got["location"]["valid"] == bool(num("location_valid", 1))
            assert got["alarm"]["max_level"] == num("alarm_level", 1)
            pack = got["cell_voltages"]["packs"][0]
            assert pack["current_a"] == pytest.approx(num("total_current_a", 10))
            assert pack["cells_v"] == pytest.approx((said.cells[row, : model.cells] / 1000).tolist())
            temps = got["cell_temperatures"]["packs"][0]["temps_c"]
            assert temps == (said.temps[row, : model.probes].astype(int) - 40).tolist()
            if model.edition == 16:
                assert got["extremes"]["max_cell_voltage_v"] == pytest.approx(max(pack["cells_v"]))
                assert pack["cells_v"][got["extremes"]["min_voltage_cell"] - 1] == min(pack["cells_v"])
    assert set(editions) == {16, 25}


def test_typical_frame_of_the_benchmarks() -> None:
    fleet = make_fleet(1, 1, "sedan-ncm-96")
    chunks = Chunks(fleet, np.array([T0]), 10, np.array([wire.GBT_TCP]), {}, 1)
    assert len(frames_of(chunks.make()[0], wire.GBT_TCP)[0]) == pytest.approx(330, abs=15)


def test_streams_expect_the_answers_the_protocol_has() -> None:
    chunks, speech = chunks_of(6)
    chunks.make(4)
    for v, segment in enumerate(chunks.make(4)):
        assert segment.first == 4
        if speech[v] == wire.GBT_TCP:
            data = np.frombuffer(bytearray(segment.answers), np.uint8)
            at = 0
            for frame in frames_of(segment, wire.GBT_TCP):
                kind, start, length = next_frame(data, at, len(data), 4096)
                assert (kind, length) == (FRAME, 31)
                tree = decode_frame(bytes(data[start : start + length]))
                assert (tree["ack_name"], tree["vin"]) == ("success", chunks.fleet.vins[v])
                assert bytes(data[start + 24 : start + 30]) == frame[24:30]
                at = start + length
        else:
            ids = []
            for at in range(0, len(segment.answers), 4):
                whole = split(segment.answers, at)
                assert whole is not None
                assert whole[0] == 0x40
                ids.append(parse_puback(whole[1], 4).packet_id)
            assert ids == [5, 6, 7, 8]


def test_packet_ids_come_round_without_zero() -> None:
    fleet = make_fleet(1, 1)
    chunks = Chunks(fleet, np.array([T0]), 1, np.array([wire.MQTT_311]), {}, None)
    chunks._sequence[:] = 65_533
    answers = chunks.make(4)[0].answers
    assert [int.from_bytes(answers[at + 2 : at + 4], "big") for at in range(0, 16, 4)] == [65534, 65535, 1, 2]


def all_sent(chunks: Chunks, speech: np.ndarray, rounds: int, reports: int) -> list[tuple[str, bytes]]:
    sent = []
    for _ in range(rounds):
        for v, segment in enumerate(chunks.make(reports)):
            sent += [(chunks.fleet.vins[v], frame) for frame in frames_of(segment, int(speech[v]))]
    return sent


@pytest.mark.parametrize("name", faults.NAMES)
def test_each_fault_is_counted_to_the_frame(name: str) -> None:
    # blackouts end with the last report: then all that was held goes out
    chunks, speech = chunks_of(12, odds={name: 0.05}, reports=180)
    sent, fates = [], b""
    for _ in range(3):
        for v, segment in enumerate(chunks.make(60)):
            sent += [(chunks.fleet.vins[v], frame) for frame in frames_of(segment, int(speech[v]))]
            fates += segment.fates
    counts = chunks.counts
    stored, rejected = faults.expected(counts)
    good, bad = set(), 0
    for vin, frame in sent:
        tree = decode_frame(frame)
        year = int(tree["body"]["time"][:4]) if tree["bcc_ok"] else 0
        if not tree["bcc_ok"] or year in (2000, 2099):
            bad += 1
        else:
            good.add((vin, frame[24:30], frame[2]))
    assert counts["reports"] == 12 * 180
    assert counts[name] > 5, "the fault occurs"
    assert len(sent) == counts["messages"]
    assert (len(good), bad) == (stored, rejected)
    assert (fates.count(faults.ROW), fates.count(faults.REFUSED)) == (stored, rejected)
    match name:
        case "loss":
            assert stored == counts["reports"] - counts["loss"]
        case "duplicate":
            assert len(sent) == counts["reports"] + counts["duplicate"]
        case "wrong_clock" | "corrupt":
            assert rejected == counts[name]
        case "outage" | "blackout":
            assert {kind for _, _, kind in good} == {2, 3}
            assert stored == counts["reports"]
        case "burst":
            assert stored > counts["reports"]
        case _:
            assert stored == counts["reports"]


def test_disorder_and_outage_send_late_what_was_collected_early() -> None:
    for name in ("disorder", "outage"):
        chunks, speech = chunks_of(6, odds={name: 0.1})
        times: dict[str, list[bytes]] = {}
        for vin, frame in all_sent(chunks, speech, 1, 100):
            times.setdefault(vin, []).append(frame[24:30])
        assert any(list_ != sorted(list_) for list_ in times.values())
        assert all(len(set(list_)) == 100 for list_ in times.values())


def test_burst_is_level_three_at_one_hertz() -> None:
    chunks, speech = chunks_of(6, odds={"burst": 0.02})
    levels, kinds = Counter(), Counter()
    for _, frame in all_sent(chunks, speech, 1, 100):
        levels[infos(decode_frame(frame))["alarm"]["max_level"]] += 1
        kinds[frame[2]] += 1
    assert levels[3] >= 30 * chunks.counts["burst"] * 0.7
    assert kinds[3] > 10


def test_sentinels_read_as_such() -> None:
    chunks, speech = chunks_of(6, odds={"sentinel": 0.2})
    seen = Counter()
    for _, frame in all_sent(chunks, speech, 1, 50):
        got = infos(decode_frame(frame))
        seen.update(v for v in got["vehicle"].values() if v in ("abnormal", "invalid"))
        seen.update("cell " + v for v in got["cell_voltages"]["packs"][0]["cells_v"] if v in ("abnormal", "invalid"))
    assert set(seen) == {"abnormal", "invalid", "cell abnormal", "cell invalid"}


def test_faults_are_those_of_the_seed() -> None:
    one = all_sent(*chunks_of(5, odds="dirty"), 1, 200)
    assert one == all_sent(*chunks_of(5, odds="dirty"), 1, 200)
    assert one != all_sent(*chunks_of(5, seed=4, odds="dirty"), 1, 200)


def test_no_message_is_due_before_its_report() -> None:
    chunks, _ = chunks_of(8, odds={"burst": 0.01, "outage": 0.02, "disorder": 0.05})
    for segment in chunks.make(100):
        assert segment.due == sorted(segment.due)
        assert segment.due[0] >= 1
        assert segment.due[-1] <= 100
