"""Topics: the uplink's length is fixed, and a vehicle hears only its own downlink."""

from __future__ import annotations

import pytest

from schemas.mqtt.topics import UPLINK_BYTES, is_own_downlink, uplink

VIN = "LNBSCB3F4JW000001"


def test_uplink() -> None:
    assert uplink(VIN) == "nev/v1/LNBSCB3F4JW000001/gbt32960"
    assert len(uplink(VIN)) == UPLINK_BYTES


@pytest.mark.parametrize(
    ("topic_filter", "own"),
    [
        (f"nev/v1/{VIN}/down/#", True),
        (f"nev/v1/{VIN}/down/command", True),
        (f"nev/v1/{VIN}/down/+/x", True),
        (f"nev/v1/{VIN}/down/a#", False),
        (f"nev/v1/{VIN}/down/#/a", False),
        (f"nev/v1/{VIN}/down/a+", False),
        (f"nev/v1/{VIN}/down", False),
        (f"nev/v1/{VIN}/#", False),
        ("nev/v1/LNBSCB3F4JW000002/down/#", False),
        ("nev/v1/+/down/#", False),
        ("#", False),
        (f"$share/g/nev/v1/{VIN}/down/#", False),
    ],
)
def test_own_downlink(topic_filter: str, own: bool) -> None:
    assert is_own_downlink(topic_filter, VIN) is own
