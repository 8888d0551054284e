"""JWT in the place of the MQTT password: whose they are, by which keys, until when."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from schemas.mqtt.packets import parse_connack, parse_disconnect
from schemas.mqtt.wire import V5, Code
from services.errors import SettingsError
from services.gateway import tokens
from services.gateway.tokens import BadToken, VehicleTokens
from services.settings import MqttDoor
from tests.gateway.playing import OTHER, VIN, Client, Start, connect, publish, report

SECRET = b"0123456789abcdef0123456789abcdef"
ACK_1 = bytes.fromhex("40020001")


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def jwks(path: Path, **secrets: bytes) -> str:
    keys = [{"kty": "oct", "kid": kid, "k": b64(secret)} for kid, secret in secrets.items()]
    path.write_text(json.dumps({"keys": keys}))
    return str(path)


def token(vin: str = VIN, key: Any = SECRET, algorithm: str = "HS256", kid: str | None = None, **claims: Any) -> bytes:
    given = {"sub": vin, "exp": int(time.time()) + 600} | claims
    given = {name: value for name, value in given.items() if value is not None}
    return jwt.encode(given, key, algorithm, headers={"kid": kid} if kid else None).encode()


def door(file: str, **more: Any) -> VehicleTokens:
    return VehicleTokens(MqttDoor(auth="token", tokens_file=file, tokens_leeway_s=0, **more))


@pytest.fixture
def file(tmp_path: Path) -> str:
    return jwks(tmp_path / "keys.json", one=SECRET)


def test_what_is_taken_and_what_is_not(file: str) -> None:
    judge = door(file, tokens_audience="nev").judge
    assert judge(VIN, token(aud="nev", exp=4_000_000_000)) == 4_000_000_000
    assert judge(VIN, token(aud=["other", "nev"]))
    now = int(time.time())
    for given, why in (
        (None, "no token"), (b"", "no token"), (b"secret", "not a JWT"), (b"\xff\xfe", "not a JWT"),
        (b"a" * 10_000, "longer"), (b64(b"[" * 4000).encode() + b".e30.x", "not a JWT"),
        (token(aud="nev", exp=now - 1), "has expired"), (token(aud="nev", exp=None), "cannot be used"),
        (token(aud="nev", sub=None), "cannot be used"), (token(aud="nev", nbf=now + 60), "cannot be used"),
        (token(aud="theirs"), "cannot be used"), (token(), "cannot be used"), (token(OTHER, aud="nev"), "another"),
        (token(aud="nev", key=SECRET[::-1]), "none of the keys"),
        (token(aud="nev", key=SECRET * 2, algorithm="HS512"), "none of"),
        (token(aud="nev", kid="two"), "none of the keys"), (token(aud="nev", exp=float("inf")), "cannot be used"),
        (jwt.encode({"sub": VIN, "exp": now + 60, "aud": "nev"}, None, "none").encode(), "none of the keys"),
    ):  # fmt: skip
        with pytest.raises(BadToken, match=why):
            judge(VIN, given)


def test_keys_in_pem_have_one_algorithm_each(tmp_path: Path) -> None:
    curve, modulus = ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 2048)
    pem = [key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) for key in (curve, modulus)]
    path = tmp_path / "keys.pem"
    path.write_bytes(b"".join(pem))
    judge = door(str(path)).judge
    assert judge(VIN, token(key=curve, algorithm="ES256"))
    assert judge(VIN, token(key=modulus, algorithm="RS256"))
    for bad in (token(key=modulus, algorithm="RS512"), token(key=modulus, algorithm="PS256")):
        with pytest.raises(BadToken, match="none of the keys"):
            judge(VIN, bad)
    # the public key, which everybody has, as the secret of an HMAC
    head, body = b64(b'{"alg":"HS256","typ":"JWT"}'), b64(json.dumps({"sub": VIN, "exp": 4e9}).encode())
    import hashlib
    import hmac

    for secret in pem:
        sign = b64(hmac.new(secret, f"{head}.{body}".encode(), hashlib.sha256).digest())
        with pytest.raises(BadToken, match="none of the keys"):
            judge(VIN, f"{head}.{body}.{sign}".encode())


def test_keys_are_rotated_without_a_restart(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = door(file)
    new = os.urandom(32)
    monkeypatch.setattr(tokens, "_LOOK_EVERY_S", 0.0)
    made._look_at = 0.0
    Path(file).unlink()
    jwks(Path(file), one=SECRET, two=new)
    assert made.judge(VIN, token(key=new, kid="two"))
    assert made.judge(VIN, token(kid="one"))
    Path(file).unlink()
    Path(file).write_text("{")
    assert made.judge(VIN, token())  # damaged: what was read before holds
    Path(file).unlink()
    jwks(Path(file), two=new)
    with pytest.raises(BadToken, match="none of the keys"):
        made.judge(VIN, token())


@pytest.mark.parametrize("content", [None, "", "{}", "{", '{"keys": []}', '{"keys": [{"kty": "oct", "k": "YQ"}]}',
                                     "-----BEGIN PUBLIC KEY-----\nx\n-----END PUBLIC KEY-----"])  # fmt: skip
def test_a_file_that_cannot_be_used_is_told_at_the_start(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SettingsError, match=r"gateway\.mqtt\.tokens_file"):
        door(str(path))
    with pytest.raises(SettingsError, match="is empty"):
        door("")


async def connack(client: Client) -> Any:
    head = await client.read(2)
    assert head[0] == 0x20
    return parse_connack(await client.read(head[1]), V5)


async def test_at_the_door(start: Start, file: str, caplog: pytest.LogCaptureFixture) -> None:
    run = await start(mqtt={"auth": "token", "tokens_file": file})
    good = token()
    client = await run.client("mqtt")
    client.send(connect("any", username=VIN, password=good) + publish(report(), 1))
    await client.expect(bytes.fromhex("20020000") + ACK_1)
    for name, password in ((VIN, token(OTHER)), (OTHER, good), (VIN, None), (VIN, token(exp=int(time.time()) - 60))):
        refused = await run.client("mqtt")
        refused.send(connect("any", V5, username=name, password=password) + publish(report(), 1, version=V5))
        answer = await connack(refused)
        assert answer.code == Code.BAD_USER_NAME_OR_PASSWORD
        assert "token" in answer.properties["reason_string"]
        assert await refused.rest() == b""
    assert len(await run.kept()) == 1
    assert good.decode() not in caplog.text


async def test_a_connection_ends_with_its_token(start: Start, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = await start(mqtt={"auth": "token", "tokens_file": file, "tokens_leeway_s": 0})
    client = await run.client("mqtt")
    now, loop = time.time(), asyncio.get_running_loop()
    client.send(connect("any", V5, username=VIN, password=token(exp=int(now) + 50)))
    assert (await connack(client)).code == Code.SUCCESS
    link = run.gateway.mqtt.by_vin[VIN]
    assert link.extra.ending.when() - loop.time() <= 50
    monkeypatch.setattr(time, "time", lambda: now + 50)
    run.gateway.mqtt._end_at(link, int(now) + 50)  # as the timer does when the time has come
    rest = await client.rest()
    assert rest[0] == 0xE0
    told = parse_disconnect(rest[2:], V5)
    assert told.code == Code.NOT_AUTHORIZED
    assert "expired" in told.properties["reason_string"]
