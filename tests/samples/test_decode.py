"""Samples to rows: every signal, units, lists, wrong fields with their paths, against a plain reading."""

from __future__ import annotations

import json
import math
from itertools import permutations
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.batch import Codec
from schemas.custom.jsonfields import JsonFields
from schemas.custom.load import load
from schemas.samples.decode import Decoder
from schemas.samples.fields import FIELDS, FROM_CELLS, FROM_TEMPS, SampleField, meant_by
from schemas.samples.reference import read_sample
from schemas.samples.split import Limits
from schemas.signals import SIGNALS
from services.web.blocks import cell_packs, temp_packs
from tests.samples.making import VIN, decoded, frames_of, rows

T = 1_780_000_000
AT = {"time": T * 1000}


def one(sample: Any, **more: Any) -> Any:
    (only,) = rows([sample], **more)
    return only


# -- signals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.signal.name)
def test_every_signal_round_trips(field: SampleField) -> None:
    name, (low, high) = field.signal.name, field.bounds
    step = 1 / field.signal.div
    given_values = [low, high, (low + high) // 2, low + step, high - step]
    found = rows([AT | {name: value} for value in given_values])
    assert [row["signals"][name] for row in found] == pytest.approx(given_values, abs=step / 10)
    assert all(not row["flaws"] and not row["paths"] for row in found)
    for value in (low - step, high + step, 1e300, -1e300):
        word = "not_whole" if field.whole and value != math.floor(value) else "out_of_range"
        row = one(AT | {name: value})
        assert row["paths"] == {f"$.{name}": word}
        assert row["flaws"] == {name: "out_of_range" if word == "out_of_range" else "invalid"}
        assert row["signals"] == {}


def test_values_are_kept_to_the_resolution_of_the_signal() -> None:
    row = one(AT | {"speed_kmh": 65.3, "soc_pct": 55.4, "longitude_deg": -0.1234567, "alarm_flags": 2**32 - 1})
    assert row["signals"] == {"speed_kmh": 65.3, "soc_pct": 55, "longitude_deg": -0.123457, "alarm_flags": 2**32 - 1}


@pytest.mark.parametrize(
    ("text", "flaw", "state"),
    [
        ('"speed_kmh": "65"', {"$.speed_kmh": "wrong_type"}, {"speed_kmh": "invalid"}),
        ('"speed_kmh": true', {"$.speed_kmh": "wrong_type"}, {"speed_kmh": "invalid"}),
        ('"speed_kmh": [1]', {"$.speed_kmh": "wrong_type"}, {"speed_kmh": "invalid"}),
        ('"speed_kmh": NaN', {"$.speed_kmh": "not_finite"}, {"speed_kmh": "invalid"}),
        ('"speed_kmh": -Infinity', {"$.speed_kmh": "not_finite"}, {"speed_kmh": "invalid"}),
        ('"speed_kmh": 1e999', {"$.speed_kmh": "not_finite"}, {"speed_kmh": "invalid"}),
        ('"speed_kmh": 500.1', {"$.speed_kmh": "out_of_range"}, {"speed_kmh": "out_of_range"}),
        ('"speed_kmh": -1', {"$.speed_kmh": "out_of_range"}, {"speed_kmh": "out_of_range"}),
        ('"speed_kmh": ' + "9" * 5000, {"$.speed_kmh": "not_finite"}, {"speed_kmh": "invalid"}),
        ('"speed_kmh": ' + "9" * 100, {"$.speed_kmh": "out_of_range"}, {"speed_kmh": "out_of_range"}),
        ('"run_mode": 1.5', {"$.run_mode": "not_whole"}, {"run_mode": "invalid"}),
        ('"run_mode": 4', {"$.run_mode": "out_of_range"}, {"run_mode": "out_of_range"}),
        ('"speed_mph": 40', {"$.speed_mph": "wrong_unit"}, {"speed_kmh": "invalid"}),
        ('"speed": 40', {"$.speed": "wrong_unit"}, {"speed_kmh": "invalid"}),
        ('"max_temp_f": 40', {"$.max_temp_f": "wrong_unit"}, {"max_temp_c": "invalid"}),
        ('"cells_mv": [3300]', {"$.cells_mv": "wrong_unit"}, {}),
        ('"kind": "again"', {"$.kind": "unknown_kind"}, {}),
        ('"kind": 3', {"$.kind": "wrong_type"}, {}),
        ('"cells_v": 3.3', {"$.cells_v": "wrong_type"}, {}),
        ('"speed_kmh": null', {}, {}),
        ('"speed_mph": null, "cells_v": null, "kind": null, "temps_c": []', {}, {}),
    ],
)
def test_a_wrong_field_is_masked_and_the_others_stay(text: str, flaw: Any, state: Any) -> None:
    row = one(f'{{"time": {T * 1000}, "soc_pct": 50, {text}}}'.encode())
    assert row["signals"] == {"soc_pct": 50}
    assert (row["paths"], row["flaws"]) == (flaw, state)
    assert row["extra"] == {}


def test_a_right_name_beside_a_wrong_one_keeps_its_value() -> None:
    row = one(AT | {"speed_mph": 10, "speed_kmh": 16})
    assert (row["signals"], row["flaws"], row["paths"]) == ({"speed_kmh": 16}, {}, {"$.speed_mph": "wrong_unit"})


@pytest.mark.parametrize("name", ["tyre_kpa", "door_count", "speedometer_km", "v", "_v", "", "x_speed_kmh", "temp_c"])
def test_names_that_are_no_units_are_the_senders_own(name: str) -> None:
    assert meant_by(name) == ()
    row = one(AT | {name: {"a": [1, None, "b"]}})
    assert (row["extra"], row["paths"]) == ({name: {"a": [1, None, "b"]}}, {})


def test_what_a_jsonb_cannot_hold() -> None:
    row = one(AT | {"no\0te": ["\0", {"\0": "\\u0000"}], "_flaws": {"x": "y"}})
    assert row["extra"] == {"no\ufffdte": ["\ufffd", {"\ufffd": "\\u0000"}]}
    assert row["paths"] == {}


def test_flaws_are_bounded() -> None:
    row = one(AT | {"cells_v": [-1.0] * 400})
    assert len(row["paths"]) == 51
    assert row["paths"]["$"] == "and 350 more"
    assert row["paths"]["$.cells_v[49]"] == "out_of_range"


# -- time, kind, vin -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("moment", "second"),
    [
        ("1780000000000", T),
        ("1780000000999", T),
        ("1780000000999.5", T),
        ('"2026-05-28T20:26:40Z"', T),
        ('"2026-05-29T04:26:40.999+08:00"', T),
        ('"2026-05-28 20:26:40-00:00"', T),
        ("0", 0),
    ],
)
def test_times(moment: str, second: int) -> None:
    assert one(f'{{"time": {moment}}}'.encode())["time"] == second


@pytest.mark.parametrize(
    "moment",
    ["null", '"2026-05-28T20:26:40"', '"28.5.2026"', '""', "true", "[1]", "-1", "NaN", "1e300", '"1960-01-01T00:00Z"',
     "7258118400000", '"0001-01-01T00:00:00+14:00"', '"9999-12-31T23:59:59-14:00"'],
)  # fmt: skip
def test_a_sample_without_a_time_is_refused_where_the_time_stands(moment: str) -> None:
    assert one(f'{{"a": 1, "time": {moment}}}'.encode()) == {"refused": ("bad_json", 17 + 9)}


def test_kind_part_and_edition() -> None:
    assert [one(AT | {"kind": kind})["kind"] for kind in ("realtime", "reissue")] == [2, 3]
    telemetry, bms = one(AT), one(AT, codec=Codec.JSON_BMS)
    assert (telemetry["part"], bms["part"], telemetry["edition"], bms["edition"]) == (1, 0, 0, 0)


def test_a_sample_may_name_its_own_vehicle_only() -> None:
    assert one(AT | {"vin": VIN})["extra"] == {}
    text = b'{"time": 1780000000000, "speed_mph": 3, "kind": "reissue", "vin": "LNBSCB3F4JW000002"}'
    assert one(text) == {"refused": ("foreign_vin", 17 + text.index(b'"vin"'))}


# -- what cannot be read ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "refusals"),
    [
        (b"", [("bad_json", 17)]),
        (b"hello", [("bad_json", 17)]),
        (b'"x"', [("bad_json", 17)]),
        (b"[]", [("bad_json", 18)]),
        (b"{}", [("bad_json", 17)]),
        (b'{"time": 1780000000000, "a": }', [("bad_json", 17 + 29)]),
        (b'{"time": 1780000000000, "a": 01}', [("bad_json", 17 + 30)]),
        ('{"ä": 1, x}'.encode(), [("bad_json", 17 + 10)]),
        (b'{"time": 1, "a": "\xff"}', [("bad_json", 17 + 18)]),
        (b'{"time": 1, "a": "\\ud800"}', [("bad_json", 17 + 18)]),
        (b"[" * 100, [("json_limit", 17 + 9)]),
        (b'[1, {"time": 1780000000000}, {"tim": 1}]', [("bad_json", 17), None, ("bad_json", 17)]),
        (b"[" + b",".join([b'{"time":1}'] * 501) + b"]", [("json_limit", 17 + 1 + 500 * 11)]),
    ],
)
def test_unreadable(payload: bytes, refusals: list[Any]) -> None:
    assert [row.get("refused") for row in rows([payload])] == refusals


def test_a_sample_with_too_many_values_is_refused_alone() -> None:
    decoder = Decoder(limits=Limits(values_max=10))
    found = rows([[AT, AT | {"cells_v": [3.3] * 11}, AT]], decoder=decoder)
    assert [row.get("refused", (None,))[0] for row in found] == [None, "json_limit", None]


def test_short_frames_of_a_journal_are_refused() -> None:
    frames = frames_of([b""], vin="LNB")
    frames, _, batch = decoded(frames)
    assert batch.reason[0] != 0


# -- lists -------------------------------------------------------------------------------------------


def test_lists_are_read_as_those_of_frames_are() -> None:
    row = one(AT | {"cells_v": [3.3, 3.3011, None, 0, 60], "temps_c": [25, -40, None, 210, 24.6]}, codec=3)
    (pack,) = cell_packs(row["cells"], 0)
    assert (pack.no, pack.total, pack.voltage_v, pack.current_a) == (1, 5, None, None)
    assert pack.values() == [3.3, 3.301, None, 0, 60]
    assert pack.flaws() == {3: "invalid"}
    (probes,) = temp_packs(row["temps"], 0)
    assert probes.values() == [25, -40, None, 210, 25]
    assert row["signals"] == {
        "pack_count": 1, "pack_cell_total": 5, "cell_count": 5, "cell_max_v": 60, "cell_min_v": 3.3,
        "cell_sum_v": 66.601, "probe_count": 5, "probe_max_c": 210, "probe_min_c": 25,
    }  # fmt: skip
    assert row["paths"] == {}


def test_packs() -> None:
    row = one(
        AT
        | {
            "cells_v": [
                {"no": 3, "cells_v": [3.1, -1, "x"], "voltage_v": 350.25, "current_a": -12.3, "odd": 1},
                {"cells_v": [3.2], "voltage_v": 1e9},
                {"no": 99},
                7,
                [3.4],
            ],
            "temps_c": [[20, 300], {"no": 2, "temps_c": [21]}],
        },
    )
    packs = cell_packs(row["cells"], 0)
    assert [(pack.no, pack.values()) for pack in packs] == [
        (3, [3.1, None, None]), (2, [3.2]), (3, []), (4, []), (5, [3.4]),
    ]  # fmt: skip
    assert packs[0].flaws() == {2: "out_of_range", 3: "invalid"}
    assert (packs[0].voltage_v, packs[0].current_a, packs[1].voltage_v) == (350.2, -12.3, None)
    assert [(pack.no, pack.values()) for pack in temp_packs(row["temps"], 0)] == [(1, [20, None]), (2, [21])]
    assert row["signals"]["pack_voltage_v"] == 350.2
    assert row["signals"]["pack_count"] == 5
    assert row["signals"]["pack_cell_total"] == 3
    assert row["paths"] == {
        "$.cells_v[0].cells_v[1]": "out_of_range",
        "$.cells_v[0].cells_v[2]": "wrong_type",
        "$.cells_v[0].odd": "unknown_field",
        "$.cells_v[1].voltage_v": "out_of_range",
        "$.cells_v[2].no": "out_of_range",
        "$.cells_v[3]": "wrong_type",
        "$.temps_c[0][1]": "out_of_range",
    }


def test_the_pack_takes_voltage_and_current_from_the_signals() -> None:
    row = one(AT | {"cells_v": [3.1], "pack_voltage_v": 350.2, "pack_current_a": -5})
    (pack,) = cell_packs(row["cells"], 0)
    assert (pack.voltage_v, pack.current_a) == (350.2, -5)


def test_what_contradicts_the_list_is_named_and_the_list_holds() -> None:
    row = one(AT | {"cells_v": [3.1, 3.2], "cell_max_v": 3.2, "cell_count": 9, "probe_max_c": 30})
    assert row["paths"] == {"$.cell_count": "contradicts_list"}
    assert row["signals"]["cell_count"] == 2
    assert row["signals"]["probe_max_c"] == 30


def test_too_many_packs() -> None:
    row = one(AT | {"cells_v": [[3.3]] * 51})
    assert row["paths"] == {"$.cells_v": "out_of_range"}
    assert "cells" not in row


def test_large_packs() -> None:
    row = one(AT | {"cells_v": [3.0] * 400, "temps_c": [20] * 300})
    assert len(cell_packs(row["cells"], 0)[0].values()) == 400
    assert len(temp_packs(row["temps"], 0)[0].values()) == 300


# -- a sample depends on itself alone --------------------------------------------------------------------

_NAMES = [signal.name for signal in SIGNALS if signal.name not in (*FROM_CELLS, *FROM_TEMPS)]
_NUMBER = st.one_of(
    st.integers(-5, 300), st.floats(-50, 700, allow_nan=False).map(lambda x: round(x, 4)), st.floats(), st.integers()
)
_SCALAR = st.one_of(_NUMBER, _NUMBER, _NUMBER, st.none(), st.booleans(), st.text(max_size=3), st.just([]))
_CELLS = st.lists(st.one_of(st.floats(-1, 70), st.none(), st.integers(0, 5)), min_size=1, max_size=8)
_SAMPLES = st.fixed_dictionaries(
    {"time": st.one_of(st.integers(T * 1000, T * 1000 + 10_000), st.just("2026-05-29T04:26:40+08:00"), st.none())},
    optional={
        **dict.fromkeys(_NAMES[::5], _SCALAR),
        "cells_v": _CELLS,
        "temps_c": _CELLS,
        "kind": st.sampled_from(["reissue", "realtime", "?", 1]),
        "note": st.one_of(st.text(max_size=3), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2)),
        "speed_mph": st.integers(),
    },
)


@settings(max_examples=150, deadline=None)
@given(st.lists(_SAMPLES, min_size=1, max_size=6))
def test_against_a_plain_reading(samples: list[dict[str, Any]]) -> None:
    texts = [json.dumps(sample) for sample in samples]
    found = rows([text.encode() for text in texts])
    for text, row in zip(texts, found, strict=True):
        plain = read_sample(text)
        if plain is None:
            assert row["refused"][0] == "bad_json"
            continue
        assert (row["time"], row["kind"]) == (plain["time"], plain["kind"])
        plain["extra"].pop("speed_mph", None)
        # a NUL is no text of a jsonb, and NaN no number of it
        assert row["extra"] == json.loads(json.dumps(plain["extra"]).replace("\\u0000", "\\ufffd"))
        for name in _NAMES:
            state, value = plain["signals"].get(name, (None, None))
            if state == "valid":
                assert row["signals"][name] == value, name
                assert name not in row["flaws"]
            else:
                assert name not in row["signals"]
                if name != "speed_kmh":  # speed_mph marks it
                    assert row["flaws"].get(name) == state, name
        paths = {path: word for path, word in row["paths"].items() if "[" not in path and path != "$.speed_mph"}
        assert paths == plain["flaws"]
        for key, column, head, width in (("cells_v", "cells", 8, 2), ("temps_c", "temps", 4, 1)):
            body = row.get(column, b"")[head:]
            raw = [int.from_bytes(body[i : i + width], "big") for i in range(0, len(body), width)]
            assert raw == plain["lists"].get(key, [])


@settings(max_examples=60, deadline=None)
@given(st.lists(_SAMPLES.filter(lambda sample: sample["time"] is not None), min_size=2, max_size=5), st.randoms())
def test_neighbours_and_arrays_change_nothing(samples: list[dict[str, Any]], rng: Any) -> None:
    alone = [one(json.dumps(sample).encode()) for sample in samples]
    in_array = rows([json.dumps(samples).encode()])
    assert in_array == alone
    order = list(range(len(samples)))
    rng.shuffle(order)
    mixed = rows([json.dumps([samples[i] for i in order], indent=2, ensure_ascii=False).encode()])
    assert mixed == [alone[i] for i in order]


def test_the_order_of_fields_does_not_count() -> None:
    fields = list({**AT, "soc_pct": 5, "x": {"b": 1, "a": 2}}.items())
    digests = {one(json.dumps(dict(order)).encode())["digest"] for order in permutations(fields)}
    assert len(digests) == 1
    assert one(AT | {"soc_pct": 6, "x": {"b": 1, "a": 2}})["digest"] not in digests


def test_positions_tell_samples_apart() -> None:
    frames = frames_of([orjson.dumps([AT] * 3), orjson.dumps(AT), b"?", orjson.dumps([AT] * 500)])
    frames, samples, _ = decoded(frames)
    assert frames.n == 3 + 1 + 1 + 500
    assert len(np.unique(frames.position)) == frames.n
    assert frames.position.min() >= 0
    assert frames.position[[0, 3, 4, 5]].tolist() == [0, 1, 2, 3]
    assert len(samples.line) == frames.n


def test_many_shapes_do_not_pile_up() -> None:
    decoder = Decoder(limits=Limits())
    rows([AT | {f"n{i}": 1} for i in range(5000)], decoder=decoder)
    assert len(decoder.shapes) <= 2000


# -- a signals file ------------------------------------------------------------------------------------


def test_fields_of_a_signals_file(tmp_path: Any) -> None:
    file = tmp_path / "signals.toml"
    file.write_text(
        '[[json]]\nfield = "cabin"\nname = "cabin_temp_c"\nunit = "°C"\nscale = 0.1\nrange = [-40, 85]\n'
        '[[json]]\nfield = "speed_mph"\nname = "own_speed_mph"\nunit = "mph"\nrange = [0, 300]\n',
        "utf-8",
    )
    loaded = load(file)
    decoder = Decoder(JsonFields(loaded).apply, frozenset(field.source for field in loaded.json), Limits())
    good, bad = rows([AT | {"cabin": 215, "speed_mph": 40}, AT | {"cabin": 9000, "speed_kmh": 1e6}], decoder=decoder)
    assert (good["extra"], good["paths"]) == ({"cabin_temp_c": 21.5, "own_speed_mph": 40}, {})
    assert bad["extra"] == {}
    assert bad["paths"] == {"cabin_temp_c": "out_of_range", "$.speed_kmh": "out_of_range"}
