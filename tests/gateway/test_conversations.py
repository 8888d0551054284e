"""Annex B as conversations: what a terminal and the platform say to each other when things do not go smoothly.

Each is a script over real sockets, GB/T 32960 over TCP and the same over MQTT.  Nothing here waits for a clock:
silence is made by setting back when a connection was last heard.
"""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from schemas.gbt32960.frame import build_frame
from schemas.mqtt.packets import PINGREQ, PINGRESP, encode_disconnect, parse_disconnect
from schemas.mqtt.wire import V5, Code
from services.gateway import server
from services.gateway.admission import Verdict
from services.store.directory import MemoryDirectory
from tests.gateway.playing import OTHER, TIME, VIN, Client, Running, Start, broken, connect, login, logout, publish
from tests.gateway.storing import dated, ledger, stored
from tests.gateway.test_gbt import PLATFORM_LOGOUT, USERS, platform_login, spec_reply

EDITIONS = pytest.mark.parametrize("edition", [16, 25])
VERSIONS = pytest.mark.parametrize("version", [4, 5])
HEARTBEAT = {edition: build_frame(edition, 0x07, 0xFE, VIN, 1, b"") for edition in (16, 25)}


@pytest.fixture(autouse=True)
def _quick_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_SWEEP_S", 0.005)


def puback(packet_id: int, code: int = 0) -> bytes:
    return (
        b"\x40\x02" + packet_id.to_bytes(2, "big")
        if not code
        else b"\x40\x03" + packet_id.to_bytes(2, "big") + bytes([code])
    )


def silent_for(run: Running, seconds: float, vin: str = VIN, door: str = "gbt32960") -> None:
    """As if nothing had come from the vehicle for so long."""
    link = getattr(run.gateway, door).by_vin[vin]
    run.gateway._connections.last_seen_s[link.slot] -= seconds


async def sweeps(run: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two looks at every deadline, both begun after this call."""
    looked = 0
    overdue = run.gateway._connections.overdue

    def counted(now_s: float):
        nonlocal looked
        looked += 1
        return overdue(now_s)

    monkeypatch.setattr(run.gateway._connections, "overdue", counted)
    await run.until(lambda: looked >= 2)
    monkeypatch.setattr(run.gateway._connections, "overdue", overdue)


async def ask(client: Client, request: bytes, flag: int, unit: bytes | None = None) -> None:
    client.send(request)
    await client.expect(spec_reply(request, flag, unit))


async def code_of(client: Client) -> int:
    """Return or reason code of the CONNACK that comes next."""
    head = await client.read(2)
    assert head[0] == 0x20
    return (await client.read(head[1]))[1]


# -- login, again and again (B.2: three tries a minute or three apart, then half an hour of rest) -----------
@EDITIONS
async def test_login_retry_until_the_vehicle_is_known(start: Start, edition: int) -> None:
    directory = MemoryDirectory({OTHER})
    run = await start(directory, registry="allowlist", registry_refresh_s=0.01)
    refused = 0x02 if edition == 16 else 0x04
    first = await run.client("gbt32960")
    for serial in (1, 2, 3):
        await ask(first, login(edition=edition, serial=serial), refused)
    await ask(first, dated(0, edition=edition), 0x02)  # no login, no reports
    first.close()  # the terminal rests, and somebody puts the vehicle into the registry
    directory.vins.add(VIN)
    await run.until(lambda: run.gateway._admission.verdict(VIN) is Verdict.ADMITTED)
    second = await run.client("gbt32960")
    await ask(second, login(edition=edition, serial=4), 0x01)
    await ask(second, dated(0, edition=edition), 0x01)
    sink = await stored(run)
    assert ledger(sink, "rows") == 1
    assert [one.serial for one in sink.logins.values()] == [4]
    assert (
        sorted(run_reason for run_reason, _ in await run.kept() if run_reason)
        == ["not_logged_in"] + ["unknown_vin"] * 3
    )


async def test_login_retry_when_no_answer_comes(start: Start) -> None:
    """Not durable, not answered; the terminal connects anew, and both logins count as what they are."""
    run = await start()
    run.journal.gate.clear()
    first = await run.client("gbt32960")
    first.send(login(serial=1))
    await run.until(lambda: VIN in run.gateway.gbt32960.by_vin)
    second = await run.client("gbt32960")
    second.send(login(serial=2))
    assert await first.rest() == b""  # replaced
    run.journal.gate.set()
    await second.expect(spec_reply(login(serial=2), 1))
    await ask(second, dated(0), 0x01)
    sink = await stored(run)
    assert sorted(one.serial or 0 for one in sink.logins.values()) == [1, 2]
    assert ledger(sink, "rows") == 1


@VERSIONS
async def test_connect_retry(start: Start, version: int) -> None:
    directory = MemoryDirectory({OTHER})
    run = await start(directory, registry="allowlist", registry_refresh_s=0.01)
    for _ in range(3):
        client = await run.client("mqtt")
        client.send(connect(version=version))
        assert await code_of(client) == (5 if version == 4 else Code.NOT_AUTHORIZED)
        assert await client.rest() == b""
    directory.vins.add(VIN)
    await run.until(lambda: run.gateway._admission.verdict(VIN) is Verdict.ADMITTED)
    client = await run.mqtt(version=version)
    client.send(publish(dated(0), 1, version=version))
    await client.expect(puback(1))
    assert ledger(await stored(run), "rows") == 1


# -- the same VIN twice --------------------------------------------------------------------------------
@EDITIONS
async def test_same_vin_twice(start: Start, edition: int) -> None:
    """The older connection is closed; what it had sent, answered or not, is kept once."""
    run = await start()
    old = await run.vehicle(edition=edition)
    await ask(old, dated(0, edition=edition), 0x01)
    run.journal.gate.clear()
    old.send(dated(1, edition=edition))
    await run.until(lambda: run.gateway._committer.in_flight_bytes > 0)
    new = await run.client("gbt32960")
    new.send(login(edition=edition, serial=2) + dated(1, edition=edition) + dated(2, edition=edition))
    assert await old.rest() == b""
    run.journal.gate.set()
    for request in (login(edition=edition, serial=2), dated(1, edition=edition), dated(2, edition=edition)):
        await new.expect(spec_reply(request, 1))
    sink = await stored(run)
    assert (ledger(sink, "rows"), ledger(sink, "duplicates")) == (3, 1)


@VERSIONS
async def test_same_vin_twice_over_mqtt(start: Start, version: int) -> None:
    run = await start()
    old = await run.mqtt(version=version)
    old.send(publish(dated(0), 1, version=version))
    await old.expect(puback(1))
    new = await run.mqtt(version=version)
    said = await old.rest()
    assert said == b"" if version == 4 else parse_disconnect(said[2:], V5).code == Code.SESSION_TAKEN_OVER
    new.send(publish(dated(0), 1, version=version, dup=True) + publish(dated(1), 2, version=version))
    await new.expect(puback(1) + puback(2))
    sink = await stored(run)
    assert (ledger(sink, "rows"), ledger(sink, "duplicates")) == (2, 1)


# -- heartbeat and its loss -------------------------------------------------------------------------------
@EDITIONS
async def test_heartbeat_loss(start: Start, edition: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run = await start(limits={"idle_timeout_s": 300.0})
    client = await run.vehicle(edition=edition)
    for _ in range(3):  # each within the time, together far beyond it
        silent_for(run, 250)
        await ask(client, HEARTBEAT[edition], 0x01, b"")
    silent_for(run, 250)
    await sweeps(run, monkeypatch)
    await ask(client, dated(0, edition=edition), 0x01)  # a report is a sign of life as well
    silent_for(run, 301)
    assert await client.rest() == b""
    assert run.gateway.gbt32960.by_vin == {}
    again = await run.vehicle(edition=edition)
    await ask(again, dated(1, edition=edition), 0x01)
    assert ledger(await stored(run), "rows") == 2


@VERSIONS
async def test_keep_alive_loss(start: Start, version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run = await start()
    client = await run.mqtt(version=version, keep_alive_s=60)
    for _ in range(3):
        silent_for(run, 80, door="mqtt")
        client.send(PINGREQ)
        await client.expect(PINGRESP)
    silent_for(run, 80, door="mqtt")
    await sweeps(run, monkeypatch)
    client.send(publish(dated(0), 1, version=version))
    await client.expect(puback(1))
    silent_for(run, 91, door="mqtt")  # one and a half times the keep-alive
    said = await client.rest()
    assert said == b"" if version == 4 else parse_disconnect(said[2:], V5).code == Code.KEEP_ALIVE_TIMEOUT
    again = await run.mqtt(version=version)
    again.send(publish(dated(1), 1, version=version))
    await again.expect(puback(1))
    assert ledger(await stored(run), "rows") == 2


# -- reissued reports amid live ones ------------------------------------------------------------------------
@EDITIONS
async def test_reissue_during_live_traffic(start: Start, edition: int) -> None:
    """What was missed is sent in the pauses between live reports; the newest state stays the live one."""
    run = await start()
    client = await run.vehicle(edition=edition)
    sent = []
    for k in range(20):
        sent.append(dated(1000 + k, edition=edition))
        sent.append(dated(500 - k, edition=edition, command=0x03))
    sent.append(dated(1019, edition=edition, command=0x03))  # the same second live and reissued: two rows
    client.send(b"".join(sent[:21]))
    for one in sent[21:]:
        client.send(one)
    await client.expect(b"".join(spec_reply(one, 1) for one in sent))
    sink = await stored(run)
    assert (ledger(sink, "rows"), ledger(sink, "conflicts")) == (41, 0)
    assert sorted(row["kind"] for row in sink.telemetry.values()) == [2] * 20 + [3] * 21
    newest = max(key[1] for key in sink.telemetry)
    (state,) = sink.states.values()
    assert (state["time"], state["reports"]) == (newest, 41)


@VERSIONS
async def test_reissue_during_live_traffic_over_mqtt(start: Start, version: int) -> None:
    run = await start()
    client = await run.mqtt(version=version)
    for k in range(10):
        client.send(publish(dated(1000 + k) + dated(500 - k, command=0x03), 1 + k, version=version))
    await client.expect(b"".join(puback(1 + k) for k in range(10)))
    sink = await stored(run)
    assert ledger(sink, "rows") == 20
    (state,) = sink.states.values()
    assert state["kind"] == 2


# -- a platform's login where a vehicle's was due -----------------------------------------------------------
async def test_platform_login_first(start: Start) -> None:
    """0x05 opens a link that speaks for many; a terminal that mistakes it for its own login is told so."""
    run = await start(**USERS)
    wrong = await run.client("gbt32960")
    mistaken = build_frame(16, 0x05, 0xFE, VIN, 1, platform_login("nobody")[24:-1])
    await ask(wrong, mistaken, 0x02)
    await ask(wrong, dated(0), 0x02)
    await ask(wrong, login(), 0x01)  # and on the same connection its right login is good
    await ask(wrong, dated(0), 0x01)
    platform = await run.client("gbt32960")
    await ask(platform, platform_login(), 0x01)
    await ask(platform, dated(0, OTHER), 0x01)  # its vehicles need no login of their own
    await ask(platform, login(OTHER), 0x01)
    await ask(platform, dated(1, OTHER), 0x01)
    await ask(platform, dated(1), 0x01)  # also for one that has a link of its own, which lives on
    await ask(wrong, dated(2), 0x01)
    await ask(platform, PLATFORM_LOGOUT, 0x01)
    await ask(platform, dated(2, OTHER), 0x02)
    sink = await stored(run)
    assert ledger(sink, "rows") == 5
    assert len(sink.vehicles) == 2  # a platform's code is no vehicle


@VERSIONS
async def test_platform_login_over_mqtt(start: Start, version: int) -> None:
    """MQTT has its own login: 0x05 there is another's identification, refused, and the link lives."""
    run = await start(gbt32960={"platform_users": {"city": SecretStr("secret")}})
    client = await run.mqtt(version=version)
    client.send(publish(platform_login(), 1, version=version) + publish(dated(0), 2, version=version))
    await client.expect(puback(1) + puback(2))
    sink = await stored(run)
    assert (ledger(sink, "rows"), ledger(sink, "rejected")) == (1, 1)


# -- bad, then good --------------------------------------------------------------------------------------
@pytest.mark.parametrize("ack", ["after-durable", "errors-only"])
@EDITIONS
async def test_bad_then_good(start: Start, edition: int, ack: str) -> None:
    """Every error is answered, and the same frame sent again in good order is taken, on one connection."""
    run = await start(gbt32960={"ack": ack})
    client = await run.client("gbt32960")
    coarse, fine = 0x02, 0x02 if edition == 16 else 0x06
    cut = build_frame(edition, 0x01, 0xFE, VIN, 1, TIME)
    await ask(client, broken(login(edition=edition)), fine)
    await ask(client, cut, fine)
    await ask(client, dated(0, edition=edition), coarse)
    await ask(client, login(edition=edition), 0x01)
    await ask(client, broken(dated(0, edition=edition)), fine)
    good, foreign = dated(0, edition=edition), dated(1, OTHER, edition)
    client.send(good + foreign)
    await client.expect((spec_reply(good, 1) if ack == "after-durable" else b"") + spec_reply(foreign, coarse))
    await ask(client, logout(edition=edition), 0x01)
    sink = await stored(run)
    assert (ledger(sink, "rows"), ledger(sink, "rejected"), ledger(sink, "sessions")) == (1, 5, 2)


@VERSIONS
async def test_bad_then_good_over_mqtt(start: Start, version: int) -> None:
    run = await start()
    client = await run.mqtt(version=version)
    client.send(publish(broken(dated(0)), 1, version=version), publish(dated(0), 2, version=version))
    client.send(publish(b"\0\1\2", 3, version=version), publish(dated(1), 4, version=version))
    await client.expect(b"".join(puback(k) for k in (1, 2, 3, 4)))
    client.send(encode_disconnect(version))
    assert await client.rest() == b""
    sink = await stored(run)
    assert (ledger(sink, "rows"), ledger(sink, "rejected")) == (2, 2)
