"""`nevstream keys` as a person types it, on a real database; and letters that a new key opens."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from click.testing import Result
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from typer.testing import CliRunner

from schemas.gbt32960 import crypto, sm2
from schemas.reasons import CODE
from services.cli import app
from services.errors import UsageError
from services.journal.postgres import PostgresJournal
from services.pipeline.worker import Pipeline
from services.settings import Settings
from services.store.keys import PostgresKeys
from services.store.postgres import PostgresSink
from tests.pipeline.conftest import Sent, report_frame
from tests.pipeline.running import put

pytestmark = [pytest.mark.database, pytest.mark.slow]

VIN = "LTEST000000000001"
SECRET = bytes.fromhex("c0ffee00c0ffee01c0ffee02c0ffee03")
T0 = int(time.time()) - 600
Run = Callable[..., Result]


@pytest.fixture
def run(dsn: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """``run("keys", "list", code=0, given=b"")``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEVSTREAM_DATABASE__DSN", dsn)
    monkeypatch.setenv("NEVSTREAM_JOURNAL__PARTITIONS", "4")
    runner = CliRunner()

    def called(*arguments: str, code: int = 0, given: bytes = b"") -> Result:
        result = runner.invoke(app, [*arguments], input=given)
        if isinstance(result.exception, UsageError):
            assert code == 2, result.exception
            return result
        assert result.exit_code == code, (result.output, result.exception)
        return result

    return called


def listed(run: Run) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(run("keys", "list", "--json").output)
    return found


@pytest.mark.parametrize(
    "given", [SECRET.hex().encode() + b"\n", base64.b64encode(SECRET), SECRET, b"C0FFEE00 C0FFEE01 C0FFEE02 C0FFEE03"]
)
def test_a_key_is_added_however_it_is_written(run: Run, dsn: str, given: bytes) -> None:
    result = run("keys", "add", "--vin", VIN, "-a", "aes", given=given)
    assert "added" in result.output
    assert "stored in the clear" in result.output
    assert SECRET.hex() not in result.output
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT secret FROM vehicle_keys").fetchall() == [(SECRET,)]
    assert "already" in run("keys", "add", "--vin", VIN, "-a", "aes", given=given).output
    shown = run("keys", "list").output
    assert VIN in shown
    assert "in the clear" in shown
    assert SECRET.hex() not in shown
    (line,) = listed(run)
    assert (line["owner"], line["algorithm"], line["purpose"], line["sealed"]) == (VIN, "aes", "decrypt", False)
    assert "1 key removed" in run("keys", "remove", str(line["id"])).output
    assert "no keys" in run("keys", "list").output


@pytest.mark.parametrize(
    ("given", "more", "secret"),
    [
        (b"00112233445566778899aabbccddeeff", [], bytes(range(0, 0x100, 0x11))),  # 32 characters, a key of 16 bytes
        (b"00112233445566778899aabbccddeeff", ["--format", "raw"], b"00112233445566778899aabbccddeeff"),
        (b"sixteen letters!", [], b"sixteen letters!"),
        (b"sixteen_letters_\n", [], b"sixteen_letters_"),
        (bytes(15) + b"\n", [], bytes(15) + b"\n"),
    ],
)
def test_what_a_key_is_taken_for(run: Run, dsn: str, given: bytes, more: list[str], secret: bytes) -> None:
    run("keys", "add", "--vin", VIN, "-a", "aes", *more, given=given)
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT secret FROM vehicle_keys").fetchall() == [(secret,)]


def test_a_master_key_file_seals(run: Run, dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "master").write_text("ab" * 32)
    (tmp_path / "key").write_text(SECRET.hex())
    monkeypatch.setenv("NEVSTREAM_ENCRYPTION__MASTER_KEY_FILE", str(tmp_path / "master"))
    result = run(
        "keys", "add", "--platform", "CITY", "-a", "sm4", "-f", "key", "--from", "2026-01-01", "--to", "2027-01-01"
    )
    assert "clear" not in result.output
    with psycopg.connect(dsn) as connection:
        assert SECRET not in connection.execute("SELECT secret FROM vehicle_keys").fetchone()[0]  # type: ignore[index]
    (line,) = listed(run)
    assert (line["scope"], line["valid_from"], line["sealed"]) == ("platform", "2026-01-01T00:00:00+08:00", True)


def test_key_files_of_openssl(run: Run, tmp_path: Path) -> None:
    secret, curve = rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    forms = {"A": serialization.PrivateFormat.PKCS8, "B": serialization.PrivateFormat.TraditionalOpenSSL}
    for code, form in forms.items():
        run("keys", "add", "--platform", code, "-a", "rsa", given=secret.private_bytes(pem, form, plain))
    run("keys", "add", "--vin", VIN, "-s", "rsa", given=secret.public_key().public_bytes(pem, spki))
    run("keys", "add", "--vin", VIN, "-s", "ecc", given=curve.public_key().public_bytes(pem, spki))
    run("keys", "add", "--vin", VIN, "-s", "sm2", given=sm2.public_of(12345).hex().encode())
    run("keys", "add", "--vin", VIN, "-a", "sm2", given=b"00" * 30 + b"3039")
    assert sorted(str(line["algorithm"]) for line in listed(run)) == ["ecc", "rsa", "rsa", "rsa", "sm2", "sm2"]
    locked = secret.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"password")
    )
    refused = run("keys", "add", "--vin", VIN, "-a", "rsa", given=locked, code=2)
    assert "under a password" in str(refused.exception)


@pytest.mark.parametrize(
    ("arguments", "given", "says"),
    [
        (["--vin", VIN, "-a", "aes"], b"00ff", "16 or 24 or 32 bytes"),
        (["--vin", VIN, "-a", "aes"], b"", "standard input is empty"),
        (["--vin", VIN, "-a", "sm4"], b"ab" * 32, "16 bytes"),
        (["--vin", VIN, "-a", "rsa"], b"ab" * 16, "DER"),
        (["--vin", VIN, "-s", "sm2"], b"ab" * 64, "does not lie on the curve"),
        (["--vin", VIN], SECRET, "either --algorithm"),
        (["--vin", VIN, "-a", "aes", "-s", "rsa"], SECRET, "either --algorithm"),
        (["-a", "aes"], SECRET, "either --vin or --platform"),
        (["--vin", "with space", "-a", "aes"], SECRET, "not a VIN"),
        (["--vin", VIN, "-a", "aes", "-f", "missing"], b"", "No such file"),
        (["--vin", VIN, "-a", "aes", "--from", "2026-02-01", "--to", "2026-01-01"], SECRET, "not after"),
        (["--vin", VIN, "-a", "aes"], b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----", "no key"),
        (["--vin", VIN, "-a", "aes"], b"x" * 70_000, "longer than"),
    ],
)
def test_what_is_refused_is_explained_and_not_repeated(run: Run, arguments: list[str], given: bytes, says: str) -> None:
    refused = run("keys", "add", *arguments, given=given, code=2)
    assert says in str(refused.exception)
    assert not given or given.decode("latin1") not in str(refused.exception)
    assert listed(run) == []


def test_letters_are_read_once_their_key_is_there(run: Run, dsn: str) -> None:
    """Unknown key, then a wrong one, then the right one: requeued each time, and a row at the end."""
    frame = crypto.encrypt_frame(report_frame(VIN, T0), 3, SECRET)
    settings = Settings.model_validate({"pipeline": {"idle_sleep_ms": 1.0}, "journal": {"partitions": 4}})

    async def move() -> None:
        journal, sink, known = (
            PostgresJournal(dsn, 4),
            PostgresSink(dsn, settings),
            PostgresKeys(dsn, settings.encryption),
        )
        await sink.open()
        pipeline, stop = Pipeline(settings, journal, sink, range(4), keys=known), asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(pipeline.run(stop), name="pipeline")
            await pipeline.caught_up()
            stop.set()
        await known.close()
        await sink.close()
        await journal.close()

    def found() -> tuple[list[int], int]:
        with psycopg.connect(dsn) as connection:
            letters = connection.execute(
                'SELECT reason, frame FROM dead_letters WHERE requeued_at IS NULL ORDER BY "offset"'
            ).fetchall()
            assert all(bytes(row[1]) == frame for row in letters)
            rows = connection.execute("SELECT count(*) FROM telemetry").fetchone()
            return [row[0] for row in letters], rows[0]  # type: ignore[index]

    asyncio.run(put(dsn, [Sent(frame, T0 + 1)]))
    asyncio.run(move())
    assert found() == ([CODE["encrypted"]], 0)
    run("keys", "add", "--vin", VIN, "-a", "aes", given=bytes(16))
    run("dead-letters", "requeue", "--reason", "encrypted")
    asyncio.run(move())
    assert found() == ([CODE["decryption"]], 0)
    run("keys", "add", "--vin", VIN, "-a", "aes", given=SECRET)
    run("dead-letters", "requeue", "--reason", "decryption")
    asyncio.run(move())
    assert found() == ([], 1)


def test_replay_reads_them_as_well(run: Run, dsn: str) -> None:
    frame = crypto.encrypt_frame(report_frame(VIN, T0), 3, SECRET)
    asyncio.run(put(dsn, [Sent(frame, T0 + 1)]))
    from tests.pipeline.running import settings_of, stored

    asyncio.run(stored(dsn, settings_of()))
    run("keys", "add", "--vin", VIN, "-a", "aes", given=SECRET)
    run("replay", "--from", "2h", "--apply")
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT count(*) FROM telemetry").fetchone() == (1,)
