"""Keys in the database: sealed at rest, listed without their secrets, read again by who has the master key."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from schemas.batch import RowBatch
from schemas.keyring import ExchangedKey, Key, Purpose, Scope
from services.errors import SettingsError, StoreUnavailable, UsageError
from services.settings import Encryption, Settings
from services.store import keys
from services.store.postgres import PostgresSink
from services.store.sealing import CannotOpen, Sealer

VIN = "LTEST000000000001"
AT = datetime(2026, 5, 28, tzinfo=UTC)
SECRET = bytes.fromhex("c0ffee00c0ffee00c0ffee00c0ffee00")
MASTER, OTHER = "ab" * 32, "cd" * 32
KEY = Key(VIN, Scope.VEHICLE, Purpose.DECRYPT, 3, SECRET)


def sealing(master: str = "") -> Encryption:
    return Encryption.model_validate({"master_key": master})


def everything(dsn: str) -> str:
    """All that the table holds, as text."""
    with psycopg.connect(dsn) as connection:
        return str(connection.execute("SELECT k::text FROM vehicle_keys k").fetchall())


# -- sealing --------------------------------------------------------------------------------------------


def test_a_sealed_key_opens_with_its_master_key_and_in_its_place_only() -> None:
    sealer, other = Sealer.of(sealing(MASTER)), Sealer.of(sealing(OTHER))
    closed = sealer.seal(KEY)
    assert SECRET not in closed
    assert closed != sealer.seal(KEY), "a new nonce each time"
    assert sealer.open(KEY, closed, sealer.name) == SECRET
    for opener, key, stored, name, says in (
        (Sealer(), KEY, closed, sealer.name, "neither encryption.master_key nor"),
        (other, KEY, closed, sealer.name, "the settings have"),
        (sealer, Key("ANOTHER", KEY.scope, KEY.purpose, 3, b""), closed, sealer.name, "changed in the database"),
        (sealer, KEY, closed[:-1] + bytes([closed[-1] ^ 1]), sealer.name, "changed in the database"),
        (sealer, KEY, b"", sealer.name, "changed in the database"),
    ):
        with pytest.raises(CannotOpen, match=says):
            opener.open(key, stored, name)


def test_without_a_master_key_bytes_stay_as_they_are() -> None:
    sealer = Sealer.of(sealing())
    assert (sealer.seal(KEY), sealer.name) == (SECRET, None)
    assert Sealer.of(sealing(MASTER)).open(KEY, SECRET, None) == SECRET


def test_the_master_key_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "master"
    file.write_text(MASTER + "\n")
    settings = Encryption.model_validate({"master_key_file": str(file)})
    assert Sealer.of(settings).name == Sealer.of(sealing(MASTER)).name
    assert MASTER not in repr(Sealer.of(settings))
    for content in ("", "zz" * 32, "ab" * 31, "\u00e9"):
        file.write_text(content)
        with pytest.raises(SettingsError, match="openssl rand -hex 32") as refused:
            Sealer.of(settings)
        assert content == "" or content not in str(refused.value)
    file.unlink()
    with pytest.raises(SettingsError, match="No such file"):
        Sealer.of(settings)


def test_a_wrong_master_key_is_not_repeated() -> None:
    with pytest.raises(SettingsError, match="64 hex digits") as refused:
        Sealer.of(sealing("secret"))
    assert "secret" not in str(refused.value)
    with pytest.raises(SettingsError) as refused:
        Settings.read(overrides={"encryption": {"master_key": {"a": "hush"}}})
    assert "hush" not in str(refused.value)


# -- the table --------------------------------------------------------------------------------------------


@pytest.mark.database
@pytest.mark.parametrize("master", ["", MASTER])
async def test_what_is_stored_comes_back(dsn: str, master: str) -> None:
    settings = sealing(master)
    store = keys.PostgresKeys(dsn, settings)
    assert await store.changed()
    assert not await store.keyring()
    assert not await store.changed()
    begin, end = datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)
    platform = Key("CITY", Scope.PLATFORM, Purpose.DECRYPT, 3, b"p" * 16, begin, end)
    first = keys.add(dsn, settings, KEY)
    assert keys.add(dsn, settings, KEY) is None, "the same again"
    second = keys.add(dsn, settings, platform)
    assert await store.changed()
    ring = await store.keyring()
    assert ring.find(Purpose.DECRYPT, VIN, 3, AT) == [KEY, platform]
    assert keys.load(dsn, settings).find(Purpose.DECRYPT, VIN, 3, AT) == [KEY, platform]
    assert not await store.changed()
    assert (SECRET.hex() in everything(dsn)) is (master == "")

    listed = keys.stored(dsn)
    assert [line.key_id for line in listed] == [second, first]  # by owner
    assert (listed[0].valid_from, listed[0].valid_to, listed[0].source) == (begin, end, "operator")
    assert SECRET.hex() not in str(listed)
    assert str(SECRET) not in str(listed)
    assert [line.owner for line in keys.stored(dsn, VIN)] == [VIN]

    assert first is not None
    with pytest.raises(UsageError, match="no key 99999"):
        keys.remove(dsn, [first, 99999])
    assert len(keys.stored(dsn)) == 2
    assert keys.remove(dsn, [first]) == 1
    assert await store.changed()
    assert (await store.keyring()).find(Purpose.DECRYPT, VIN, 3, AT) == [platform]
    await store.close()


@pytest.mark.database
async def test_keys_that_cannot_be_opened_are_left_out_and_said(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    keys.add(dsn, sealing(MASTER), KEY)
    clear = Key(VIN, Scope.VEHICLE, Purpose.DECRYPT, 5, b"k" * 16)
    keys.add(dsn, sealing(), clear)
    for settings, says in ((sealing(OTHER), "sealed with master key"), (sealing(), "neither encryption.master_key")):
        caplog.clear()
        store = keys.PostgresKeys(dsn, settings)
        with caplog.at_level(logging.ERROR):
            ring = await store.keyring()
        assert len(ring) == 1
        assert ring.find(Purpose.DECRYPT, VIN, 5, AT) == [clear]
        assert says in caplog.text
        assert SECRET.hex() not in caplog.text
        await store.close()


@pytest.mark.database
@pytest.mark.parametrize("master", ["", MASTER])
async def test_exchanged_keys_are_stored_with_the_batch(dsn: str, master: str) -> None:
    settings = Settings.model_validate({"encryption": {"master_key": master}, "journal": {"partitions": 4}})
    sink = PostgresSink(dsn, settings)
    await sink.open()

    def batch(previous: int, new: int) -> RowBatch:
        positions = {2: (previous, new)}
        counts = {2: {"frames": 1, "other": 1}}
        exchanged = [ExchangedKey(2, new, 0, AT, KEY)]
        return RowBatch(None, None, None, [], [], [], positions, counts, keys=exchanged)

    await sink.commit(batch(-1, 5))
    await sink.commit(batch(5, 6))  # the terminal sends it again
    (line,) = keys.stored(dsn)
    assert (line.source, line.from_frame, line.owner) == ("exchange", "2-5-0", VIN)
    assert (SECRET.hex() in everything(dsn)) is (master == "")
    assert keys.load(dsn, settings.encryption).find(Purpose.DECRYPT, VIN, 3, AT) == [KEY]
    await sink.close()


@pytest.mark.parametrize(
    "call", [lambda dsn: keys.add(dsn, sealing(), KEY), keys.stored, lambda dsn: keys.remove(dsn, [1])]
)
def test_a_database_that_is_away(call: Callable[[str], Any]) -> None:
    with pytest.raises(StoreUnavailable):
        call("postgresql://nobody@127.0.0.1:1/nothing")
