"""A door scan of the API: every path without a token, with a bad one, with another tenant's, with too low a role.

The paths come from the OpenAPI document, so a new one is scanned without anybody remembering it.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import httpx
import psycopg
import pytest
from psycopg.types.json import Jsonb

from schemas.access import NO_FLEET, Role, digest_of, new_token, without_secrets
from schemas.seams import Queries as QueriesSeam
from services.errors import SettingsError, StoreUnavailable, UsageError
from services.journal.postgres import PostgresJournal
from services.settings import Settings
from services.store.access import PostgresAudit, PostgresTokens
from services.store.alarms import PostgresAlarms
from services.store.commands import PostgresCommands
from services.store.letters import Letters
from services.store.queries import Queries
from services.store.registry import PostgresRegistry
from services.web import access, scope
from services.web.access import Reach, TokenBook
from services.web.app import create_app
from tests import statistics_rows as made
from tests.fix_db import Databases
from tests.web import rows
from tests.web.test_problems import Broken, problem

pytestmark = pytest.mark.database
NOW, HOUR = rows.NOW, timedelta(hours=1)
NORTH, SOUTH, NOBODYS, UNKNOWN = rows.VIN, "LSOUTH00000000001", rows.CHARGING, "LNONE000000000001"
FAR = "203.0.113.7"  # where clients of the internet come from, in books

_DOCUMENT = create_app(Settings(), Broken(RuntimeError())).openapi()
DESCRIBED = sorted((method.upper(), path) for path, methods in _DOCUMENT["paths"].items() for method in methods)
BODIES: dict[str, Any] = {
    "/v1/vehicles/{vin}/commands": {"kind": "query", "body": {"params": ["report_period"]}},
    "/v1/alarms/acknowledge": {"ids": [1]},
    "/v1/dead-letters/requeue": {"all": True},
    "/v1/credits/estimate": {"year": 2024, "models": []},
    "/v1/session": {"token": "nst_"},
}
QUERY = {"/v1/fleet/series": {"metric": "U1"}, "/v1/credits/fleet": {"year": "2024"}, "/v1/alarms/stream": {}}


class World:
    """A database with three vehicles: of a fleet, of another, of none; and the ids of what belongs to the first."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.tokens: dict[str, str] = {}
        with psycopg.connect(dsn) as db:
            rows.fleet(db, step_s=300)
            north = self._vehicle(db, NORTH)
            south = rows.vehicle(db, SOUTH, registered=True, fleet="south", model="E9", first_seen_at=NOW - HOUR)
            rows.report(db, south, NOW - HOUR, vehicle_state=1, charge_state=3, soc_pct=50, speed_kmh=10)
            rows.state(db, south, NOW - HOUR, 1, vehicle_state=1, charge_state=3, soc_pct=50, speed_kmh=10)
            start = NOW - 5 * HOUR
            db.execute("ALTER TABLE alarm_episodes ALTER episode_id RESTART 71001")
            letter = "0-101-2"
            self.ids = {
                "trip_id": made.trip(db, north, start, start + HOUR, distance_km=10),
                "charge_id": made.charge(db, north, start + HOUR, start + 2 * HOUR, energy_kwh=5),
                "/v1/alarms/{id}": made.episode(db, north, start, start + HOUR, 1, 5, level=3, settled_on=None),
                "/v1/dead-letters/{id}": letter,
                "model": "E1",
                "name": "telemetry",
                "/v1/fleet/metrics/{id}": "U1",
            }
            self.own = made.episode(db, south, start, start + HOUR, 1, 5, level=2)
            for number, vin in enumerate((NORTH, SOUTH), 1):
                rows.insert(
                    db, "alarm_events", event="raised", episode_id=self.own, occurred_at=NOW, level=1,
                    body=Jsonb({"alarm": {"vin": vin, "id": number, "source": "flag", "code": 5, "level": 3,
                                          "model": None, "fleet": "north", "region": None}}),
                )  # fmt: skip
            self.letter(db, 900)
            rows.insert(db, "models", model="E1")
            rows.insert(db, "models", model="E9")
            self._tokens(db)

    def _vehicle(self, db: psycopg.Connection[Any], vin: str) -> int:
        row = db.execute("SELECT vehicle_id FROM vehicles WHERE vin = %s", [vin]).fetchone()
        assert row is not None
        return int(row[0])

    def letter(self, db: psycopg.Connection[Any], offset: int) -> None:
        """A dead letter of the southern vehicle."""
        rows.insert(
            db, "dead_letters", partition=0, offset=offset, position=0, received_at=NOW, reason=1, detail=0, door=1,
            codec=1, vin=SOUTH, peer="127.0.0.1:5000", client=None, frame=b"##\x02\x01",
        )  # fmt: skip

    def _tokens(self, db: psycopg.Connection[Any]) -> None:
        for name, role, fleets, gone in (
            ("reader", "read", None, {}),
            ("operator", "operate", None, {}),
            ("admin", "admin", None, {}),
            ("south", "operate", ["south"], {}),
            ("north", "operate", ["north"], {}),
            ("expired", "admin", None, {"expires_at": NOW - HOUR}),
            ("revoked", "admin", None, {"revoked_at": NOW - HOUR}),
        ):
            secret = self.tokens[name] = new_token()
            # by the database's clock, which is not the tests'
            gone = {key: NOW - timedelta(days=3650) for key in gone}
            rows.insert(
                db, "api_tokens", name=name, digest=digest_of(secret), role=role, fleets=fleets, created_by="test",
                **gone,
            )  # fmt: skip

    def path(self, template: str, vin: str = NORTH, **other: Any) -> str:
        ids = {**self.ids, **other}

        def value(found: re.Match[str]) -> str:
            name = found[1]
            if name == "vin":
                return vin
            prefix = template[: found.end()]
            return str(ids.get(prefix, ids.get(name)))

        return re.sub(r"{(\w+)}", value, template)


@pytest.fixture(scope="module")
def world(databases: Databases) -> Iterator[World]:
    created = databases.create(migrated=True)
    yield World(created)
    databases.drop(created)


@asynccontextmanager
async def opened(dsn: str, peer: str = FAR, **web: Any) -> AsyncIterator[httpx.AsyncClient]:
    settings = Settings.read(overrides={"web": {"auth": "token", "host": "0.0.0.0"} | web})
    journal = PostgresJournal(dsn, settings.journal.partitions)
    app = create_app(
        settings, Queries(dsn), now=lambda: NOW, letters=Letters(dsn, journal, settings),
        commands=PostgresCommands(dsn), registry=PostgresRegistry(dsn), alarms=PostgresAlarms(dsn),
        tokens=PostgresTokens(dsn), audit=PostgresAudit(dsn),
    )  # fmt: skip
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False, client=(peer, 1))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="https://api.example") as client,
    ):
        yield client
    await journal.close()


@pytest.fixture
async def client(world: World) -> AsyncIterator[httpx.AsyncClient]:
    async with opened(world.dsn) as made_client:
        yield made_client


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


async def ask(
    client: httpx.AsyncClient, method: str, template: str, url: str, secret: str | None = None
) -> httpx.Response:
    """A request that is right in everything but, maybe, who makes it."""
    given: dict[str, Any] = {"headers": bearer(secret) if secret is not None else {}, "params": QUERY.get(template)}
    if template.endswith("/import"):
        given["headers"]["Content-Type"] = "text/csv"
        given["content"] = b"vin,model\nLSHEET0000000001,E1\n" if "vehicles" in template else b"model\nE5\n"
    elif method in ("POST", "PUT", "PATCH"):
        given["json"] = BODIES.get(template, {})
    if template == "/v1/alarms/stream":
        given["params"] = {"after": "x"}  # it would never end; what is asked here comes before it is begun
    return await client.request(method, url, **given)


def test_every_path_is_classified_and_none_that_is_not_there() -> None:
    assert set(DESCRIBED) == access.TABLE.keys() - {("GET", "/"), ("GET", "/openapi.json")}


async def test_a_path_that_nobody_classified_is_not_there(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    less = {key: value for key, value in access.TABLE.items() if key != ("GET", "/v1/overview")}
    monkeypatch.setattr(access, "TABLE", less)
    async with opened(world.dsn) as client:
        problem(await client.get("/v1/overview", headers=bearer(world.tokens["admin"])), 404)


def test_what_is_asked_for_is_found_as_the_router_does() -> None:
    for method, path in DESCRIBED:
        assert access.classified(method, path.replace("{", "").replace("}", "")) == path
    assert access.classified("GET", "/v1/registry/vehicles/import") == "/v1/registry/vehicles/{vin}"
    assert access.classified("POST", "/v1/registry/vehicles/import") == "/v1/registry/vehicles/import"
    for path in ("/v1/vehicles/", "/v1/vehicles//latest", "/v1/audit\n", "/v1/vehicles/a/b/latest", "//v1/vehicles"):
        assert access.classified("GET", path) is None


async def test_a_token_is_needed(client: httpx.AsyncClient, world: World) -> None:
    for method, template in DESCRIBED:
        url = world.path(template)
        public = access.TABLE[method, template].reach is Reach.PUBLIC
        for secret in (None, "", "nst_", new_token(), world.tokens["expired"], world.tokens["revoked"]):
            answer = await ask(client, method, template, url, secret)
            if public:
                assert answer.status_code != 403, (method, url)
                assert answer.status_code < 500, (method, url)
                continue
            assert answer.status_code == 401, (method, url, answer.text)
            assert "nevstream tokens add" in problem(answer, 401).how_to_fix
            assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_roles(client: httpx.AsyncClient, world: World) -> None:
    for method, template in DESCRIBED:
        needed = access.TABLE[method, template]
        names = {Role.READ: [], Role.OPERATE: ["reader"], Role.ADMIN: ["reader", "operator"]}[needed.role]
        for name in names:
            answer = await ask(client, method, template, world.path(template), world.tokens[name])
            assert answer.status_code == 403, (method, template, answer.text)
            told = problem(answer, 403)
            assert told.type.endswith("role")
            assert needed.role in told.detail
        if needed.role is Role.READ and method == "GET":
            answer = await ask(client, method, template, world.path(template), world.tokens["reader"])
            expected = 422 if template == "/v1/alarms/stream" else 200
            assert answer.status_code == expected, (method, template, answer.text)


async def test_another_tenants_vehicle_is_no_vehicle(client: httpx.AsyncClient, world: World) -> None:
    for method, template in DESCRIBED:
        reach = access.TABLE[method, template].reach
        url, secret = world.path(template), world.tokens["south"]
        answer = await ask(client, method, template, url, secret)
        where = (method, template, answer.status_code, answer.text)
        if access.TABLE[method, template].role is Role.ADMIN:
            assert answer.status_code == 403, where
        elif reach is Reach.WHOLE:
            assert problem(answer, 403).type.endswith("tenant"), where
        elif reach is Reach.VEHICLE:
            assert answer.status_code == 404, where
            strange = world.path(template, UNKNOWN, **{"/v1/alarms/{id}": 98765, "/v1/dead-letters/{id}": "0-98765-1"})
            unknown = plain(await ask(client, method, template, strange, secret), strange, UNKNOWN)
            assert plain(answer, url, NORTH) == unknown, where
            if "{vin}" in template:  # nor does a vehicle of no fleet answer
                url = world.path(template, NOBODYS)
                assert plain(await ask(client, method, template, url, secret), url, NOBODYS) == unknown, where
        else:
            assert answer.status_code < 500, where
            assert not [vin for vin in (NORTH, NOBODYS, rows.SILENT, rows.IMPORTED) if vin in answer.text], where


def plain(answer: httpx.Response, url: str, vin: str) -> tuple[int, str, dict[str, str]]:
    """An answer without what was asked for, which it repeats."""
    text = answer.text.replace(url, "PATH").replace(vin, "VIN").replace(vin[:8], "V")
    for number in re.findall(r"\d+-\d+-\d+|\d{5,}", url.replace(vin, "")):
        text = text.replace(number, "ID")
    headers = {name: value for name, value in answer.headers.items() if name != "content-length"}
    return answer.status_code, text, headers


async def test_a_tenant_sees_its_own(client: httpx.AsyncClient, world: World) -> None:
    south = bearer(world.tokens["south"])

    async def get(path: str) -> Any:
        answer = await client.get(path, headers=south)
        assert answer.status_code == 200, answer.text
        return answer.json()

    assert [each["vin"] for each in (await get("/v1/vehicles"))["vehicles"]] == [SOUTH]
    assert (await get(f"/v1/vehicles/{SOUTH}/latest"))["signals"]["soc_pct"] == 50
    overview = await get("/v1/overview?reporting_within_s=86400")
    assert (overview["vehicles"], overview["ever_reported"], overview["reporting"]["total"]) == (1, 1, 1)
    assert overview["ledger"] is None
    assert [each["vin"] for each in (await get("/v1/dead-letters?limit=1"))["dead_letters"]] == [SOUTH]
    assert (await get("/v1/dead-letters/counts?by=vin"))["groups"][0]["letters"] == 1
    assert [(await get("/v1/counts"))[name] for name in ("vehicles", "rejected")] == [1, 1]
    assert (await get("/v1/dead-letters/0-900-0"))["vin"] == SOUTH
    assert [each["id"] for each in (await get("/v1/alarms"))["alarms"]] == [world.own]
    assert (await get(f"/v1/alarms/{world.own}"))["deliveries"] == []
    assert (await get("/v1/alarms/summary"))["episodes"] == 1
    assert [each["vin"] for each in (await get("/v1/registry/vehicles"))["vehicles"]] == [SOUTH]
    found = await get("/v1/registry/models")
    assert [(each["model"], each["vehicles"]) for each in found["models"]] == [("E9", 1)]
    assert (await client.get("/v1/registry/models/E1", headers=south)).status_code == 404
    assert (await get("/v1/fleet/lists/offline?days=1"))["vehicles"] == []
    assert (await get("/v1/fleet/metrics/U1?fleet=north"))["filters"] == {"fleet": ["north"]}
    assert (await get("/v1/session"))["fleets"] == ["south"]
    assert (await get("/v1/alarms?fleet=north"))["alarms"] == []
    assert (await get("/v1/registry/vehicles?fleet=north"))["vehicles"] == []
    for vin in (NORTH, UNKNOWN):
        assert (await get(f"/v1/dead-letters?vin={vin}"))["dead_letters"] == []
        assert (await get(f"/v1/alarms?vin={vin}"))["alarms"] == []


async def test_what_a_tenant_may_change(world: World) -> None:
    south = bearer(world.tokens["south"])
    with psycopg.connect(world.dsn) as db:
        world.letter(db, 901)
    async with opened(world.dsn) as client:
        path = f"/v1/registry/vehicles/{SOUTH}"
        whole = await client.put(path, json={"model": "E9", "cells": 100}, headers=south)
        assert whole.status_code == 200, whole.text
        assert (whole.json()["fleet"], whole.json()["cells"]) == ("south", 100)
        for body in ({"fleet": "north"}, {"fleet": None}):
            assert problem(await client.patch(path, json=body, headers=south), 403).type.endswith("not-your-fleet")
        problem(await client.put(f"/v1/registry/vehicles/{UNKNOWN}", json={"fleet": "south"}, headers=south), 404)
        queued = await client.post(
            f"/v1/vehicles/{SOUTH}/commands", json=BODIES["/v1/vehicles/{vin}/commands"], headers=south
        )
        assert queued.status_code == 202, queued.text
        found = (await client.get(f"/v1/vehicles/{SOUTH}/commands", headers=south)).json()["commands"]
        assert [each["created_by"] for each in found] == ["south"]
        theirs = world.ids["/v1/alarms/{id}"]
        both = await client.post(
            "/v1/alarms/acknowledge", json={"ids": [theirs, world.own], "by": "Ann"}, headers=south
        )
        outcomes = {each["id"]: each["outcome"] for each in both.json()["results"]}
        assert outcomes == {theirs: "missing", world.own: "done"}
        story = (await client.get(f"/v1/alarms/{world.own}", headers=south)).json()
        assert story["acknowledged_by"] == "south: Ann"
        done = await client.post("/v1/dead-letters/requeue", json={"all": True}, headers=south)
        assert "0-901-0" in [each["id"] for each in done.json()["requeued"]], done.text
        assert {each["id"] for each in done.json()["requeued"]} <= {"0-900-0", "0-901-0"}
        told = problem(
            await client.post("/v1/dead-letters/requeue", json={"reason": "foreign_vin"}, headers=south), 403
        )
        assert told.type.endswith("tenant")


async def test_changes_from_afar_go_by_role(world: World) -> None:
    async with opened(world.dsn) as client:
        body = {"model": "E2"}
        path = "/v1/registry/vehicles/LFAR0000000000001"
        told = await client.put(path, json=body, headers=bearer(world.tokens["operator"]))
        assert told.status_code == 201, told.text
    async with opened(world.dsn, allow_changes=False) as client:
        told = await client.put(path, json=body, headers=bearer(world.tokens["admin"]))
        assert problem(told, 403).type.endswith("changes-off")


# -- tokens ------------------------------------------------------------------------------------------
async def test_only_one_bearer_token_counts(client: httpx.AsyncClient, world: World) -> None:
    good = world.tokens["reader"]
    for value in (f"Basic {good}", good, f"Bearer  x{good}", f"Bearer {good} x", "Bearer", f"Bearer {good[:-1]}"):
        problem(await client.get("/v1/vehicles", headers={"Authorization": value}), 401)
    twice = [("Authorization", f"Bearer {good}"), ("Authorization", f"Bearer {good}")]
    problem(await client.get("/v1/vehicles", headers=twice), 401)
    assert (await client.get("/v1/vehicles", headers={"Authorization": f"bearer {good}"})).status_code == 200
    problem(await client.get(f"/v1/vehicles?token={good}"), 401)  # never from the address, which is logged
    problem(await client.get("/no/such/path"), 401)
    problem(await client.get("/no/such/path", headers=bearer(good)), 404)
    problem(await client.post("/v1/vehicles", headers=bearer(good)), 405)
    for path in ("/", "/static/app.js", "/openapi.json", "/healthz"):
        assert (await client.get(path)).status_code == 200, path


async def test_a_cookie_for_browsers(world: World) -> None:
    async with opened(world.dsn) as client:
        bad = await client.post("/v1/session", json={"token": new_token()})
        problem(bad, 401)
        for content in (b"", b"[]", b'{"token": 1}', b"x" * 5000):
            answer = await client.post("/v1/session", content=content, headers={"Content-Type": "application/json"})
            assert answer.status_code in (413, 422)
        problem(await client.post("/v1/session", content=b"{}", headers={"Content-Type": "text/plain"}), 415)
        logged_in = await client.post("/v1/session", json={"token": world.tokens["operator"]})
        assert logged_in.status_code == 200, logged_in.text
        assert world.tokens["operator"] not in logged_in.text
        cookie = logged_in.headers["set-cookie"].lower()
        assert all(word in cookie for word in ("httponly", "samesite=strict", "secure", "path=/"))
        assert (await client.get("/v1/session")).json()["name"] == "operator"
        path, body = "/v1/registry/vehicles/LCOOKIE0000000001", {"model": "E2"}
        for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}):
            assert problem(await client.put(path, json=body, headers=headers), 403).type.endswith("cross-site")
            problem(await client.post("/v1/session", json={"token": "x"}, headers=headers), 403)
        own = {"Origin": "https://api.example", "Sec-Fetch-Site": "same-origin"}
        assert (await client.put(path, json=body, headers=own)).status_code == 201
        assert (await client.delete("/v1/session")).status_code == 204
        problem(await client.get("/v1/vehicles"), 401)


async def test_a_revoked_token_ends_within_its_time(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = PostgresTokens(dsn)
    _, secret = await desk.add("one", Role.READ, None, None, by="test")
    async with opened(dsn) as client:
        assert (await client.get("/v1/vehicles", headers=bearer(secret))).status_code == 200
        assert [token.name for token in await desk.revoke("one")] == ["one"]
        monkeypatch.setattr(access, "FRESH_S", 0.0)
        problem(await client.get("/v1/vehicles", headers=bearer(secret)), 401)
    assert (await desk.listed())[0].last_used_at == NOW
    await desk.close()


async def test_names_fleets_and_rotation(dsn: str) -> None:
    desk = PostgresTokens(dsn)
    first, old = await desk.add("acme", Role.OPERATE, ["a", "b"], None, by="test")
    assert (first.fleets, first.digest) == (("a", "b"), b"")
    for name, role, fleets in (
        ("acme", Role.READ, None), ("", Role.READ, None), ("1", Role.READ, None), ("a b", Role.READ, None),
        ("boss", Role.ADMIN, ["a"]), ("x", Role.READ, []), ("x", Role.READ, [""]), ("x", Role.READ, [NO_FLEET]),
    ):  # fmt: skip
        with pytest.raises(UsageError):
            await desk.add(name, role, fleets, None, by="test")
    second, new = await desk.rotate("acme", overlap_s=3600, expires_at=None, by="test")
    assert (second.role, second.fleets) == (first.role, first.fleets)
    assert {token.digest for token in await desk.tokens()} == {digest_of(old), digest_of(new)}
    await desk.rotate("acme", overlap_s=0, expires_at=None, by="test")
    assert [token.token_id for token in await desk.tokens()] == [second.token_id + 1]
    with pytest.raises(UsageError, match="no valid token"):
        await desk.rotate("nobody", overlap_s=0, expires_at=None, by="test")
    await desk.close()


async def test_guessing_costs_the_database_nothing() -> None:
    class Desk:
        asked = 0

        async def tokens(self) -> list[Any]:
            self.asked += 1
            return []

    desk = Desk()
    book = TokenBook(desk, lambda: NOW)  # type: ignore[arg-type]
    for _ in range(100):
        assert await book.caller(new_token()) is None
    assert await book.caller("nst_short") is None
    assert desk.asked == 1


async def test_without_the_table_of_tokens_nobody_is_let_in(world: World) -> None:
    with pytest.raises(SettingsError, match="tokens"):
        create_app(Settings.read(overrides={"web": {"auth": "token"}}), Broken(RuntimeError()))

    class Away(PostgresTokens):
        async def tokens(self) -> list[Any]:
            raise StoreUnavailable("away")

    settings = Settings.read(overrides={"web": {"auth": "token"}})
    app = create_app(settings, Broken(RuntimeError()), tokens=Away("host=127.0.0.1 port=1"))
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        problem(await client.get("/v1/vehicles", headers=bearer(world.tokens["admin"])), 503)


def test_a_question_that_nobody_narrowed_does_not_exist_for_tenants() -> None:
    seam = {name for name in dir(QueriesSeam) if not name.startswith("_")}
    assert seam == scope.GENERIC.keys() | (vars(scope.ScopedQueries).keys() & seam)
    narrowed = scope.ScopedQueries(Broken(RuntimeError()), ["a"])
    with pytest.raises(AttributeError, match="not a question that a tenant may ask"):
        narrowed.everything  # noqa: B018


async def test_a_vehicle_that_was_not_looked_up_through_the_scope_has_no_answers() -> None:
    narrowed = scope.ScopedQueries(Broken(RuntimeError("must not be asked")), ["a"])
    with pytest.raises(access.ProblemError) as caught:
        await narrowed.report(1, NOW)
    assert caught.value.status == 404


# -- the stream --------------------------------------------------------------------------------------
async def test_a_tenants_stream_has_its_own_news(world: World) -> None:
    from services.web.alarm_feed import AlarmFeed

    alarms = PostgresAlarms(world.dsn)
    feed = AlarmFeed(alarms, 1)
    for fleets, vins in ((("south",), [SOUTH]), (None, [NORTH, SOUTH]), (("north", "south"), [NORTH, SOUTH])):
        async with feed.client():
            async for news in feed.follow(0, fleets):
                assert isinstance(news, list)
                if news:
                    assert [told.document["alarm"]["vin"] for told in news] == vins
                    break
    feed.close()
    await alarms.close()


# -- the audit log -----------------------------------------------------------------------------------
async def test_changes_are_kept_with_who_and_what(dsn: str) -> None:
    desk = PostgresTokens(dsn)
    _, admin = await desk.add("boss", Role.ADMIN, None, None, by="test")
    _, reader = await desk.add("guest", Role.READ, None, None, by="test")
    await desk.close()
    async with opened(dsn) as client:
        path = "/v1/registry/vehicles/V1"
        await client.put(path, json={"model": "E1", "plate": "京A1"}, headers=bearer(admin))
        await client.put(path, json={"cells": 0}, headers=bearer(admin))
        await client.delete(path, headers=bearer(reader))
        await client.put(path, json={"cells": 1}, headers=bearer(new_token()))  # nobody known: counted, not kept
        await client.post(
            "/v1/registry/vehicles/import?dry_run=true", content=b"vin\nV2\n",
            headers=bearer(admin) | {"Content-Type": "text/csv"},
        )  # fmt: skip
        await client.get("/v1/vehicles", headers=bearer(admin))
        await client.post("/v1/session", json={"token": admin})
        problem(await client.get("/v1/audit", headers=bearer(reader)), 403)
        found = (await client.get("/v1/audit", headers=bearer(admin))).json()["entries"]
        assert [(each["who"], each["action"], each["status"], each["outcome"]) for each in found[::-1]] == [
            ("boss", "PUT /v1/registry/vehicles/{vin}", 201, "done"),
            ("boss", "PUT /v1/registry/vehicles/{vin}", 422, "refused"),
            ("guest", "DELETE /v1/registry/vehicles/{vin}", 403, "refused"),
            ("boss", "POST /v1/registry/vehicles/import", 200, "done"),
        ]
        assert found[-1]["change"] == '{"model":"E1","plate":"京A1"}'
        assert (found[-1]["target"], found[-1]["origin"]) == (path, FAR)
        assert found[0]["change"] == "?dry_run=true 7 bytes of text/csv"
        only = (await client.get("/v1/audit?who=guest&limit=1", headers=bearer(admin))).json()
        assert [each["who"] for each in only["entries"]] == ["guest"]
        paged = (await client.get("/v1/audit?limit=3", headers=bearer(admin))).json()
        rest = (await client.get(paged["next"], headers=bearer(admin))).json()
        assert [each["id"] for each in paged["entries"] + rest["entries"]] == [each["id"] for each in found]
        assert admin not in str(found)


async def test_without_tokens_the_log_says_local(dsn: str) -> None:
    async with opened(dsn, "127.0.0.1", auth="open", host="127.0.0.1") as client:
        client.base_url = httpx.URL("http://127.0.0.1")
        assert (await client.put("/v1/registry/vehicles/V1", json={})).status_code == 201
        (one,) = (await client.get("/v1/audit")).json()["entries"]
        assert (one["who"], one["token_id"], one["outcome"]) == ("local", None, "done")
        assert (await client.get("/v1/session")).json()["auth"] == "open"
    audit = PostgresAudit(dsn)
    assert await audit.prune(1) == 0
    await audit.close()


def test_secrets_are_blotted_out_of_what_is_kept() -> None:
    given = {"password": "p", "note": "n", "deep": [{"api_key": "k", "token": "t", "vin": "V"}]}
    assert without_secrets(given) == {
        "password": "…",
        "note": "n",
        "deep": [{"api_key": "…", "token": "…", "vin": "V"}],
    }
