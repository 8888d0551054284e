"""Commands that go down, against frames that EMQX publishes (``data/README.md``), and what is refused."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from schemas.gbt32960.downlink import (
    CONTROLS,
    QUERYABLE,
    SETTABLE,
    DownlinkError,
    build_command,
    check,
    encode_params,
)
from schemas.gbt32960.reference import decode_frame

GOLDEN = {
    one["id"]: bytes.fromhex(one["hex"])
    for one in json.loads((Path(__file__).parent / "data/frames.json").read_text("utf-8"))
}
NOW_S = 1_513_560_150
DOMAINS = {"storage_period_ms": 5000, "platform_domain": "google.com", "public_domain": "www.google.com"}
UPGRADE = {
    "control": "upgrade", "dial_name": "emqtt", "dial_user": "eusername", "dial_password": "password",
    "address": "192.168.1.1", "port": 8080, "maker": "vhid", "hardware_version": "1.0.0", "firmware_version": "0.0.1",
    "url": "ftp://emqtt.io/ftp/server", "minutes": 3000,
}  # fmt: skip


@pytest.mark.parametrize(
    ("golden", "kind", "body"),
    [
        ("emqx-param-query", "query", {"params": ["storage_period_ms", "report_period"]}),
        ("emqx-param-set", "set", {"params": DOMAINS}),
        ("emqx-control-alarm", "control", {"control": "warning", "level": 1, "text": "This is a alarm text!!!"}),
    ],
)
def test_as_others_send_it(golden: str, kind: str, body: dict[str, Any]) -> None:
    frame = GOLDEN[golden]
    tree = decode_frame(frame)
    now_s = int(datetime.fromisoformat(tree["body"]["time"]).timestamp())
    assert build_command(kind, body, 16, tree["vin"], now_s).hex() == frame.hex()


def test_an_upgrade() -> None:
    """EMQX's address is C0 A8 01 01 followed by 3B, a semicolon that its six bytes bring along."""
    made = decode_frame(build_command("control", UPGRADE, 16, "V", NOW_S))
    golden = decode_frame(GOLDEN["emqx-control-upgrade"])
    assert made["body"]["param"] == golden["body"]["param"]


def test_widths_of_the_2025_edition() -> None:
    """EMQX sets an alarm period of 5 s, which the edition's range does not have; the bytes are right."""
    unit = encode_params(25, [("report_period", 30), ("alarm_report_period", 5)])
    assert GOLDEN["emqx-param-set-2025"][30:-1] == unit
    check("set", {"params": {"report_period": 600}}, 16)
    with pytest.raises(DownlinkError, match="report_period = 600 is not 1 to 30"):
        check("set", {"params": {"report_period": 600}}, 25)
    check("set", {"params": {"report_period": 600}})  # an edition in which it can be sent


@pytest.mark.parametrize("edition", [16, 25])
def test_every_name_can_be_sent_and_is_read_back(edition: int) -> None:
    asked = decode_frame(build_command("query", {"params": list(QUERYABLE)}, edition, "V", NOW_S))["body"]
    assert asked["count"] == len(asked["ids"]) == 16
    assert asked["ids"] == sorted(asked["ids"])
    values: dict[str, Any] = dict.fromkeys(SETTABLE, 1) | {"platform_domain": "a.b", "public_domain": "c"}
    told = decode_frame(build_command("set", {"params": values}, edition, "V", NOW_S))["body"]
    read = {param["name"]: param["value"] for param in told["params"]}
    assert {name: read[name] for name in SETTABLE} == values
    assert "trailing" not in told
    for name, ident in CONTROLS.items():
        body = decode_frame(build_command("control", {"control": name}, edition, "V", NOW_S))["body"]
        assert body["control"] == ident
    custom = decode_frame(build_command("control", {"control": 0x81, "hex": "0a0b"}, edition, "V", NOW_S))["body"]
    assert (custom["control"], custom["param"]) == (0x81, "0a0b")


@pytest.mark.parametrize(
    ("kind", "body", "told"),
    [
        ("turn", {}, "is not one of query, set, control"),
        ("query", {}, "params is a list of names"),
        ("query", {"params": ["speed"]}, "'speed' is not a parameter"),
        ("query", {"params": [0x11]}, "17 is not a parameter"),
        ("query", {"params": [[]]}, "is not a parameter"),
        ("query", {"params": ["report_period"] * 253}, "a query holds 252"),
        ("query", {"params": ["report_period"], "x": 1}, "'x' is not part"),
        ("set", {"params": []}, "params is an object"),
        ("set", {"params": {"hardware_version": "1"}}, "cannot be set"),
        ("set", {"params": {"platform_domain_length": 3}}, "cannot be set"),
        ("set", {"params": {"report_period": 0}}, "is not 1 to"),
        ("set", {"params": {"report_period": True}}, "is not 1 to"),
        ("set", {"params": {"report_period": "10"}}, "is not 1 to"),
        ("set", {"params": {"platform_domain": ""}}, "1 to 255"),
        ("set", {"params": {"platform_domain": "中"}}, "not ASCII"),
        ("set", {"params": {"platform_domain": "a\0"}}, "NUL"),
        ("control", {"control": "warning", "level": 1, "text": "a\0b"}, "NUL"),
        ("control", {"control": "upgrade", "maker": "\0"}, "NUL"),
        ("control", {}, "control: None is not one of"),
        ("control", {"control": 8}, "control: 8 is not one of"),
        ("control", {"control": []}, "is not one of"),
        ("control", {"control": 200, "hex": "0"}, "not hex digits"),
        ("control", {"control": 200, "hex": "00" * 1025}, "at most 1024"),
        ("control", {"control": "warning", "level": 5}, "is not 0 to 4"),
        ("control", {"control": "warning", "level": 1, "text": 5}, "is not a text"),
        ("control", {"control": "warning", "level": 1, "text": "\ud800"}, "GB 18030"),
        ("control", {"control": "warning", "level": 1, "text": "x" * 1025}, "at most 1024"),
        ("control", {"control": "upgrade", "address": "example"}, "not an IPv4 address"),
        ("control", {"control": "upgrade", "port": 70000}, "is not 0 to 65535"),
        ("control", {"control": "upgrade", "url": "a;b"}, "without a semicolon"),
        ("control", {"control": "upgrade", "maker": "12345"}, "at most 4"),
        ("control", {"control": "reset", "level": 1}, "'level' is not part"),
    ],
)
def test_what_cannot_be_sent(kind: str, body: dict[str, Any], told: str) -> None:
    with pytest.raises(DownlinkError, match=told):
        check(kind, body)
