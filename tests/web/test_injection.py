"""What attackers put where a VIN, a name, a number or a header belongs: refused with 4xx, at every path there is."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any, Final
from urllib.parse import quote

import httpx
import pytest

from services.settings import Settings
from services.web.app import create_app
from tests.fix_db import Databases
from tests.web import rows
from tests.web.test_access import BODIES, DESCRIBED, QUERY, opened
from tests.web.test_problems import Broken

pytestmark = pytest.mark.database

VINS: Final = (
    "' OR '1'='1", "1;DROP TABLE vehicles", "x'||pg_sleep(9)||'", "\\'; --", "%s%(vin)s{}", "../../etc/passwd",
    "..%2f..%2fetc", "LTEST/../LTEST", "a\r\nSet-Cookie: x=1", "a\nb", "a\0b", "LTESTÄ00000000001", "ＬＴＥＳＴ",
    "L\u202eTEST", "\ud7ff\uffff", "<script>", "x" * 18, "x" * 5000, " ", "\t", "${jndi:ldap://x}", "\x7f",
)  # fmt: skip
# Printable ASCII without space and slash is what a vehicle may call itself: such a one is merely not there.
HARMLESS: Final = frozenset(text for text in VINS if re.fullmatch(r"[!-.0-~]{1,17}", text))
TEXTS: Final = ("' OR 1=1 --", "a\r\nX: y", "a\0b", "\ud7ff\u202e", "1e999", "-1", "9" * 400, "../..", "{}")
_DOCUMENT: Final = create_app(Settings(), Broken(RuntimeError())).openapi()


@pytest.fixture
async def client(databases: Databases) -> AsyncIterator[httpx.AsyncClient]:
    created = databases.create(migrated=True)
    async with opened(created, "127.0.0.1", auth="open", host="127.0.0.1") as made:
        made.base_url = httpx.URL("http://127.0.0.1")
        yield made
    databases.drop(created)


async def ask(client: httpx.AsyncClient, method: str, template: str, url: str, **given: Any) -> httpx.Response:
    if template.endswith("/import"):
        given |= {"content": given.get("content", b"vin\n"), "headers": {"Content-Type": "text/csv"}}
    elif method in ("POST", "PUT", "PATCH"):
        given |= {"json": BODIES.get(template, {})}
    answer = await client.request(method, url, **given)
    assert answer.status_code < 500, (method, url, answer.status_code, answer.text)
    assert "set-cookie" not in answer.headers
    assert "x=1" not in str(answer.headers)
    return answer


async def test_paths(client: httpx.AsyncClient) -> None:
    for method, template in DESCRIBED:
        for text in VINS if "{" in template else ():
            url = re.sub(r"{(\w+)}", lambda _, text=text: quote(text, safe=""), template)  # type: ignore[misc]
            answer = await ask(client, method, template, url, params=QUERY.get(template))
            named = "{model}" in template and method == "PUT"  # a model may have any name that can be shown
            changed = method == "PUT" and text in HARMLESS
            empty = text in HARMLESS and template.endswith(("/commands", "/diagnosis"))
            if not (named or changed or empty):
                assert 400 <= answer.status_code < 500, (method, url, answer.status_code)


async def test_parameters(client: httpx.AsyncClient) -> None:
    count = 0
    for path, methods in _DOCUMENT["paths"].items():
        if "get" not in methods or path == "/v1/alarms/stream":
            continue
        url = re.sub(r"{(\w+)}", rows.VIN, path)
        for parameter in methods["get"].get("parameters", []):
            if parameter["in"] != "query":
                continue
            count += 1
            for text in (TEXTS[count % len(TEXTS)], TEXTS[(count + 4) % len(TEXTS)]):  # every text somewhere
                params = {**QUERY.get(path, {}), parameter["name"]: text}
                answer = await ask(client, "GET", path, url, params=params)
                # the cursor of the catalogue is the name of a model, which may be anything
                if parameter["name"] in ("vin", "cursor", "from", "to", "limit") and path != "/v1/registry/models":
                    assert 400 <= answer.status_code < 500 or text in ("../..", "{}", "-1", "1e999"), (path, params)


async def test_headers(client: httpx.AsyncClient) -> None:
    for name in ("accept", "authorization", "cookie", "host", "origin", "last-event-id", "content-type", "range",
                 "x-forwarded-for", "if-none-match", "accept-encoding"):  # fmt: skip
        for value in (b"' OR 1=1", b"\xff\xfe", b"a" * 20_000, b"text/csv;q=nan", b'nevstream="\\;;=', b"\0"):
            for url in ("/v1/vehicles", "/v1/overview", "/v1/session", "/", "/metrics"):
                answer = await client.get(url, headers=[(name.encode(), value)])  # type: ignore[list-item]
                assert answer.status_code < 500, (url, name, value, answer.text)
            answer = await client.post(
                "/v1/registry/models/import",
                content=b"\xff",
                headers=[(name.encode(), value)],  # type: ignore[list-item]
            )
            assert 400 <= answer.status_code < 500, (name, value, answer.text)


async def test_bodies(client: httpx.AsyncClient) -> None:
    deep = b"[" * 100_000
    for method, template in DESCRIBED:
        if method not in ("POST", "PUT", "PATCH"):
            continue
        url = re.sub(r"{(\w+)}", rows.VIN, template)
        texts = (
            b"",
            b"{",
            b"\xff\xfe",
            b'"x"',
            b"[]",
            b"null",
            b'{"a":1}',
            b'{"note":"\\ud800"}',
            b'{"\\u0000":1}',
            b"1e999",
        )
        for content in (*texts, deep):
            kind = "text/csv" if template.endswith("/import") else "application/json"
            answer = await client.request(method, url, content=content, headers={"Content-Type": kind})
            assert 400 <= answer.status_code < 500, (method, url, content[:20], answer.status_code, answer.text)
