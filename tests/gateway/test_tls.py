"""The doors over TLS: what is spoken, whom a certificate lets speak, and new certificates without a restart."""

from __future__ import annotations

import asyncio
import os
import ssl
from pathlib import Path
from typing import Any

import pytest

from schemas.mqtt.packets import parse_connack
from schemas.mqtt.wire import V5, Code
from services.certificates import names_of
from services.errors import SettingsError
from tests.gateway.certs import client_context, make
from tests.gateway.playing import OTHER, PATIENCE_S, VIN, Client, Running, Start, connect, login, publish, report

# how a handshake that the other side ended looks, by loop and version
REFUSED = (ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)
ACK_1 = bytes.fromhex("40020001")
CONNACK_OK = bytes.fromhex("20020000")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make(tmp_path_factory.mktemp("certs"))


def tls(made: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"port": 0, "cert_file": made["cert_file"], "key_file": made["key_file"]} | more


def mutual(made: dict[str, Any], how: str) -> dict[str, Any]:
    return tls(made, client_certificate=how, client_ca_file=made["client_ca_file"])


async def over_tls(run: Running, door: str, context: ssl.SSLContext) -> Client:
    host, port = run.gateway.addresses[f"{door}_tls"]
    client = Client(*await asyncio.open_connection(host, port, ssl=context, server_hostname="localhost"))
    run.clients.append(client)
    return client


async def greeted(run: Running, context: ssl.SSLContext) -> None:
    """TLS 1.3 tells a client of its refusal with the first read only."""
    client = await over_tls(run, "mqtt", context)
    client.send(connect())
    await client.read(4)


async def connack(client: Client) -> Any:
    head = await client.read(2)
    assert head[0] == 0x20
    return parse_connack(await client.read(head[1]), V5)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_both_doors_speak_tls(start: Start, made: dict[str, Any], version: ssl.TLSVersion) -> None:
    run = await start(mqtt={"tls": tls(made)}, gbt32960={"tls": tls(made)})
    context = client_context(made, highest=version)
    client = await over_tls(run, "mqtt", context)
    client.send(connect())
    await client.expect(CONNACK_OK)
    # more than one TLS record (16 KiB) in one write, a packet across their border
    client.send(b"".join(publish(report(body=bytes(400)), k) for k in range(1, 101)))
    for k in range(1, 101):
        await client.expect(b"\x40\x02" + k.to_bytes(2, "big"))

    vehicle = await over_tls(run, "gbt32960", context)
    vehicle.send(login(OTHER))
    assert (await vehicle.read(31))[3] == 1
    await vehicle.send_bytewise(report(OTHER))
    assert (await vehicle.read(31))[3] == 1
    assert len(await run.kept()) == 102


async def test_old_versions_are_refused(start: Start, made: dict[str, Any]) -> None:
    run = await start(mqtt={"tls": tls(made, minimum="1.3")})
    with pytest.raises(REFUSED):
        await over_tls(run, "mqtt", client_context(made, highest=ssl.TLSVersion.TLSv1_2))


async def test_plain_off_leaves_the_tls_port_alone(start: Start, made: dict[str, Any]) -> None:
    run = await start(mqtt={"plain": False, "tls": tls(made)})
    assert set(run.gateway.addresses) == {"mqtt_tls", "gbt32960"}


async def test_plain_bytes_on_the_tls_port_end_there(start: Start, made: dict[str, Any]) -> None:
    run = await start(mqtt={"tls": tls(made)})
    reader, writer = await asyncio.open_connection(*run.gateway.addresses["mqtt_tls"])
    writer.write(connect())
    assert CONNACK_OK not in await asyncio.wait_for(reader.read(-1), PATIENCE_S)
    writer.close()
    assert await run.kept() == []


@pytest.mark.parametrize("how", ["optional", "required"])
async def test_a_certificate_speaks_for_its_own_vin_only(start: Start, made: dict[str, Any], how: str) -> None:
    run = await start(mqtt={"tls": mutual(made, how)}, gbt32960={"tls": mutual(made, how)})
    context = client_context(made, VIN)
    client = await over_tls(run, "mqtt", context)
    client.send(connect())
    await client.expect(CONNACK_OK)
    client.send(publish(report()))
    await client.expect(ACK_1)

    foreign = await over_tls(run, "mqtt", context)
    foreign.send(connect(OTHER, 5))
    answer = await connack(foreign)
    assert answer.code == Code.NOT_AUTHORIZED
    assert VIN in answer.properties["reason_string"]

    vehicle = await over_tls(run, "gbt32960", context)
    vehicle.send(login(OTHER))
    assert (await vehicle.read(31))[3] != 1
    vehicle.send(login(VIN))
    assert (await vehicle.read(31))[3] == 1
    assert [reason for reason, _ in await run.kept()].count("foreign_vin") == 1
    assert ("refused", "certificate", OTHER) in await run.told()


async def test_required_refuses_who_shows_none(start: Start, made: dict[str, Any]) -> None:
    run = await start(mqtt={"tls": mutual(made, "required")})
    with pytest.raises(REFUSED):
        await greeted(run, client_context(made))


async def test_a_certificate_of_another_authority_is_refused(
    start: Start, made: dict[str, Any], tmp_path: Path
) -> None:
    stranger = make(tmp_path)
    run = await start(mqtt={"tls": mutual(made, "optional")})
    context = client_context(made)
    context.load_cert_chain(stranger["vehicles"][VIN]["cert"], stranger["vehicles"][VIN]["key"])
    with pytest.raises(REFUSED):
        await greeted(run, context)


@pytest.mark.parametrize("secure", [True, False])
async def test_auth_by_certificate_needs_one(start: Start, made: dict[str, Any], secure: bool) -> None:
    door = {"auth": "certificate", "tls": mutual(made, "optional")}
    run = await start(mqtt=dict(door), gbt32960=dict(door))
    client = await over_tls(run, "mqtt", client_context(made)) if secure else await run.client("mqtt")
    client.send(connect(VIN, 5))
    assert (await connack(client)).code == Code.NOT_AUTHORIZED
    vehicle = await over_tls(run, "gbt32960", client_context(made)) if secure else await run.client("gbt32960")
    vehicle.send(login())
    assert (await vehicle.read(31))[3] != 1

    good = await over_tls(run, "mqtt", client_context(made, VIN))
    good.send(connect(VIN, 5))
    assert (await connack(good)).code == Code.SUCCESS


async def test_new_files_serve_the_next_handshake(start: Start, tmp_path: Path) -> None:
    made = make(tmp_path)
    run = await start(mqtt={"tls": tls(made)})
    context = client_context(made)
    first = await over_tls(run, "mqtt", context)
    first.send(connect())
    await first.expect(CONNACK_OK)
    before = first.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)

    make(tmp_path)  # the same authority signs a new one
    (certificates,) = run.gateway._certificates
    assert certificates.look()
    second = await over_tls(run, "mqtt", context)
    assert second.writer.get_extra_info("ssl_object").getpeercert(binary_form=True) != before
    first.send(publish(report()))
    await first.expect(ACK_1)

    os.truncate(made["key_file"], 10)
    assert not certificates.look()
    third = await over_tls(run, "mqtt", context)
    third.send(connect(OTHER))
    await third.expect(CONNACK_OK)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"key_file": "/nonexistent/key.pem"}, "gateway.mqtt.tls: the certificate"),
        ({"client_certificate": "required"}, "gateway.mqtt.tls.client_ca_file is empty"),
        ({"client_certificate": "required", "client_ca_file": "/nonexistent"}, "gateway.mqtt.tls.client_ca_file"),
    ],
)
async def test_what_is_wrong_with_the_files_is_said(
    start: Start, made: dict[str, Any], change: dict[str, Any], named: str
) -> None:
    with pytest.raises(SettingsError, match=named):
        await start(mqtt={"tls": tls(made) | change})


def test_names_of_a_certificate() -> None:
    presented = {
        "subject": ((("countryName", "CN"),), (("commonName", "lnbscb3f4jw000001"),)),
        "subjectAltName": (("DNS", OTHER), ("URI", "urn:vin:LSVAB4BR2DN000001"), ("URI", "https://example.org/x")),
    }
    assert names_of(presented) == {VIN, OTHER, "LSVAB4BR2DN000001"}
    assert names_of(None) == names_of({}) == frozenset()
