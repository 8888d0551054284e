"""Sheets as people have them: encodings, delimiters, names of columns, and every mistake at once."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas.registry.columns import MODELS, USAGES, VEHICLES, CellError
from schemas.registry.sheet import MISTAKES_MAX, Parsed, bad_lines, read_sheet, write_sheet

ZONE = ZoneInfo("Asia/Shanghai")
VIN = "LNEVA000XSA000001"


def rows(content: str | bytes, sheet: object = VEHICLES) -> list[dict[str, object]]:
    """What each line gives: name of a column to its value."""
    parsed = read_sheet(content.encode() if isinstance(content, str) else content, sheet, ZONE)  # type: ignore[arg-type]
    assert parsed.mistakes == []
    found = []
    for _, given_bits, key, *values in parsed.rows:
        columns = zip(parsed.sheet.columns, values, strict=True)
        found.append(
            {parsed.sheet.key.name: key, **{c.name: v for n, (c, v) in enumerate(columns) if given_bits >> n & 1}}
        )
    return found


def mistakes(content: str | bytes, sheet: object = VEHICLES) -> Parsed:
    return read_sheet(content.encode() if isinstance(content, str) else content, sheet, ZONE)  # type: ignore[arg-type]


TEXT = f"车架号,车型,用途,电池能量(kWh),车牌\r\n{VIN},秦PLUS,出租车,48.0,京A·D12345\r\n"
KNOWN = {"vin": VIN, "model": "秦PLUS", "usage": "taxi", "battery_kwh": 48.0, "plate": "京A·D12345"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "，"])
def test_encodings_and_delimiters(encoding: str, delimiter: str) -> None:
    assert rows(TEXT.replace(",", delimiter).encode(encoding)) == [KNOWN]


def test_excels_hint_counts_as_a_line() -> None:
    text = "sep=;\r\n" + TEXT.replace(",", ";")
    assert rows(text) == [KNOWN]
    assert mistakes(text + "x y;;;;\r\n").mistakes[0].line == 4


def test_an_empty_cell_is_not_given_and_a_dash_clears() -> None:
    assert rows(f"vin,model,battery_kwh,upload,fleet\n{VIN}, ,-,-,未知\n") == [
        {"vin": VIN, "battery_kwh": None, "upload": "periodic", "fleet": None}
    ]


def test_a_decimal_comma_where_the_delimiter_is_a_semicolon() -> None:
    assert rows(f"vin;battery_kwh\n{VIN};60,5\n")[0]["battery_kwh"] == 60.5
    assert mistakes(f'vin,battery_kwh\n{VIN},"60,5"\n').mistakes[0].wrong == "is not a number"


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("车辆识别代号", "vin"), ("VIN码", "vin"), (" Vin ", "vin"), ("Battery kWh", "battery_kwh"),
        ("电池容量（Ah）", "battery_ah"), ("电池容量(kWh)", "battery_kwh"), ("额定容量 (Ah)", "battery_ah"),
        ("电池能量kWh", "battery_kwh"), ("百公里电耗", "certified_kwh_per_100km"), ("温度探针数", "probes"),
        ("单体数", "cells"), ("登记日期", "registered_at"), ("车牌号码", "plate"), ("地区", "region"),
        ("车队", "fleet"),
    ],
)  # fmt: skip
def test_names_of_columns(title: str, name: str) -> None:
    key = "" if name == "vin" else ",车架号"
    value = {"vin": "V1", "registered_at": "2026-01-01"}.get(name, "1")
    assert name in rows(f"{title}{key}\n{value}{key and ',V1'}\n")[0]


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("私家车", "private"),
        ("Taxi", "taxi"),
        ("公交", "bus"),
        ("通勤", "coach"),
        ("物流", "logistics"),
        ("环卫", "special"),
    ],
)
def test_words_of_a_usage(word: str, value: str) -> None:
    assert rows(f"vin,usage\nV1,{word}\n")[0]["usage"] == value


def test_every_usage_of_the_table_can_be_written() -> None:
    assert set(USAGES.values()) == {"private", "taxi", "rental", "bus", "coach", "logistics", "special"}


def test_chemistry_has_words_and_takes_others() -> None:
    assert [row["chemistry"] for row in rows("vin,chemistry\nV1,磷酸铁锂\nV2,nmc\nV3,LMFP\n")] == ["LFP", "NCM", "LMFP"]


@pytest.mark.parametrize(
    ("written", "time"),
    [
        ("2026-05-31", datetime(2026, 5, 30, 16, tzinfo=UTC)), ("2026/5/1", datetime(2026, 4, 30, 16, tzinfo=UTC)),
        ("2026年5月1日", datetime(2026, 4, 30, 16, tzinfo=UTC)),
        ("2026-05-31T08:00:00Z", datetime(2026, 5, 31, 8, tzinfo=UTC)),
        ("2026/5/31 08:30", datetime(2026, 5, 31, 0, 30, tzinfo=UTC)),
    ],
)  # fmt: skip
def test_dates(written: str, time: datetime) -> None:
    assert rows(f"vin,registered_at\nV1,{written}\n")[0]["registered_at"] == time


def test_every_mistake_of_a_file_at_once_and_where() -> None:
    text = (
        "vin,model,usage,cells,battery_kwh\n"
        "V1,m,taxi,96,60\n"
        "V 2,m,tank,9.5,60 kWh\n"
        "V1,m,taxi,96,60\n"
        ",m,,,\n"
        "V3,m,taxi\n"
        "V4,m,taxi,0,nan\n"
        'V5,"two\nlines",taxi,1,1\n'
        "-,m,,,\n"
    )
    parsed = mistakes(text)
    assert [(m.line, m.column, m.value) for m in parsed.mistakes] == [
        (3, "vin", "V 2"), (3, "usage", "tank"), (3, "cells", "9.5"), (3, "battery_kwh", "60 kWh"), (4, "vin", "V1"),
        (5, "vin", ""), (6, "", ""), (7, "cells", "0"), (7, "battery_kwh", "nan"), (8, "model", "two\nlines"),
        (10, "vin", "-"),
    ]  # fmt: skip
    assert [row[2] for row in parsed.rows] == ["V1"]
    assert len(parsed.bad) == 7
    assert str(parsed.mistakes[1]) == (
        "line 3, usage: 'tank' is none of the words known here; "
        "give one of private, taxi, rental, bus, coach, logistics, special, or - for unknown"
    )
    assert "on line 2 already" in parsed.mistakes[4].wrong
    assert not parsed.fatal


def test_mistakes_are_bounded_and_counted() -> None:
    parsed = mistakes("vin,cells\n" + "V 1,x\n" * 500)
    assert (len(parsed.mistakes), parsed.mistakes_count, len(parsed.bad)) == (MISTAKES_MAX, 1000, 500)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "the file is empty"), (b"\n\n", "the file is empty"), (b"PK\x03\x04rest", "Excel workbook"),
        (b"vin,model\nV1,\xff\xff\n", "neither UTF-8 nor GB18030"), (b"vin,model\nV1,\0\n", "NUL"),
        (b"model,usage\nm,taxi\n", "there is no column vin"), (b"vin,modle\nV1,m\n", "did you mean model?"),
        ("vin,电池容量\nV1,60\n".encode(), "may be energy or capacity"), (b"vin,VIN\nV1,V1\n", "is there twice"),
        (b'vin,model\nV1,"m\n', "cannot be taken apart"),
        (b"vin,owner\nV1,me\n", "is not a column of this sheet"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read(content: bytes, told: str) -> None:
    parsed = mistakes(content)
    assert parsed.fatal
    assert told in str(parsed.mistakes[0])


def test_unknown_columns_can_be_left_out_by_name() -> None:
    parsed = read_sheet(b"vin,owner,model\nV1,me,m\n", VEHICLES, ZONE, ignore_unknown=True)
    assert (parsed.left_out, parsed.rows[0][2:4]) == (["owner"], ("V1", "m"))


def test_refused_lines_go_into_a_file_that_can_be_put_right() -> None:
    parsed = mistakes("vin,model,cells\nV1,车,x\nV2,m,1\nV3,m\n")
    again = bad_lines(parsed).decode("utf-8-sig")
    assert again.splitlines()[0] == "vin,model,cells,problem"
    assert "cells: is not a number" in again
    assert [row["vin"] for row in rows(again.replace("车,x", "车,96").replace("V3,m,,", "V3,m,1,"))] == ["V1", "V3"]


def test_a_model_sheet() -> None:
    assert rows("车型,生产企业,动力类型,续驶里程(km),整备质量,电流反向\nm1,甲,纯电动,505,1700,是\n", MODELS) == [
        {"model": "m1", "manufacturer": "甲", "powertrain": "BEV", "electric_range_km": 505.0, "kerb_mass_kg": 1700.0,
         "current_inverted": True}
    ]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
@example(b"vin\xef\xbc\x8c\n")
@example(b'"')
@example(b"sep=;\n")
def test_no_content_is_an_accident(content: bytes) -> None:
    parsed = read_sheet(content, VEHICLES, ZONE)
    assert parsed.rows or parsed.mistakes or parsed.lines <= 1
    bad_lines(parsed)


_values = {
    "text": st.text(st.characters(codec="utf-8", categories=["L", "N", "P"]), min_size=1, max_size=20).filter(
        lambda t: t.strip() == t and t.lower() not in ("unknown", "未知", "不详", "-", "–", "—", "－")
    ),
    "number": st.floats(0.001, 100),
    "integer": st.integers(1, 65_535),
    "flag": st.booleans(),
    "date": st.datetimes(datetime(1991, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)),
}


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from([VEHICLES, MODELS]))
def test_what_is_written_reads_back(data: st.DataObject, sheet: object) -> None:
    row: list[object] = ["V1"]
    for column in sheet.columns:  # type: ignore[attr-defined]
        values = st.sampled_from(column.values) if column.kind == "choice" else _values[column.kind]
        row.append(data.draw(st.none() | values if column.clears and column.cleared is None else values))
    text = write_sheet(sheet, [row], ZONE)  # type: ignore[arg-type]
    parsed = read_sheet(text.encode("gb18030"), sheet, ZONE)  # type: ignore[arg-type]
    assert parsed.mistakes == []
    assert list(parsed.rows[0][2:]) == row


def test_values_of_json() -> None:
    kwh, usage, plate = (VEHICLES.column(name) for name in ("battery_kwh", "usage", "plate"))
    assert (kwh.take(60, ZONE), kwh.take(None, ZONE), usage.take("出租车", ZONE)) == (60.0, None, "taxi")
    for column, value in ((kwh, float("nan")), (kwh, True), (plate, 5), (plate, " "), (usage, "tank"), (kwh, [1])):
        with pytest.raises(CellError):
            column.take(value, ZONE)


def test_a_header_that_is_made_to_be_slow_is_refused_at_once() -> None:
    for content in (b"[" * 200_000, b"a," * 50_000):
        parsed = read_sheet(content, MODELS, ZoneInfo("Asia/Shanghai"), False)
        assert parsed.fatal
        assert parsed.mistakes_count == 1
