"""Dead letters: filters, pages, one with its bytes."""

from __future__ import annotations

import httpx
import pytest

from services.web import models
from tests.web import rows


async def test_newest_first_with_reason_and_remedy(client: httpx.AsyncClient) -> None:
    page = models.DeadLetterPage.model_validate((await client.get("/v1/dead-letters")).json())
    assert page.count == 7
    assert [letter.received_at for letter in page.dead_letters] == sorted(
        (letter.received_at for letter in page.dead_letters), reverse=True
    )
    first = page.dead_letters[0]
    assert (first.id, first.reason, first.door, first.error_offset) == ("1-100-1", "clock_future", "mqtt", 1)
    assert "clock" in first.how_to_fix


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
async def test_pages_have_no_holes_and_no_doubles(client: httpx.AsyncClient, limit: int) -> None:
    whole = (await client.get("/v1/dead-letters")).json()["dead_letters"]
    seen = []
    following: str | None = f"/v1/dead-letters?limit={limit}"
    while following:
        page = (await client.get(following)).json()
        seen += page["dead_letters"]
        following = page["next"]
    assert seen == whole


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        ({"reason": "bad_bcc"}, 4),
        ({"vin": rows.VIN}, 4),
        ({"vin": rows.VIN, "reason": "bad_bcc"}, 2),
        ({"from": "2026-11-24T11:59:00+08:00"}, 4),
        ({"to": "2026-11-24T11:59:00+08:00"}, 3),
        ({"from": "2026-11-24T11:58:00+08:00", "to": "2026-11-24T12:00:00+08:00"}, 4),
        ({"reason": "oversize"}, 0),
    ],
)
async def test_filters(client: httpx.AsyncClient, filters: dict[str, str], count: int) -> None:
    assert (await client.get("/v1/dead-letters", params=filters)).json()["count"] == count


async def test_one_with_its_bytes(client: httpx.AsyncClient) -> None:
    letter = models.DeadLetterDetail.model_validate((await client.get("/v1/dead-letters/1-100-1")).json())
    assert (letter.frame_hex, letter.frame_bytes) == ("23230201", 4)


@pytest.mark.parametrize(("letter", "status"), [("1-100-2", 404), ("1-100", 422), ("a-b-c", 422), ("-1-1-1", 422)])
async def test_one_that_is_not_there(client: httpx.AsyncClient, letter: str, status: int) -> None:
    assert (await client.get(f"/v1/dead-letters/{letter}")).status_code == status


async def test_a_reason_that_is_none(client: httpx.AsyncClient) -> None:
    answer = (await client.get("/v1/dead-letters", params={"reason": "bad_bbc"})).json()
    assert "bad_bcc" in answer["detail"]
