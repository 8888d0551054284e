"""The registry and its passwords, on the server and in memory."""

from __future__ import annotations

import numpy as np
import pytest

from services.errors import StoreUnavailable, UsageError
from services.store.directory import MemoryDirectory, PostgresDirectory, add_vehicles, set_password, verify_password

pytestmark = pytest.mark.database


@pytest.mark.parametrize("kind", ["memory", "postgres"])
async def test_registry_and_passwords(request: pytest.FixtureRequest, kind: str) -> None:
    if kind == "memory":
        directory: MemoryDirectory | PostgresDirectory = MemoryDirectory(["A", "B"], {"B": "secret", "C": "other"})
    else:
        dsn = request.getfixturevalue("dsn")
        assert add_vehicles(dsn, ["A", "B", "A"]) == 2
        assert add_vehicles(dsn, ["B"]) == 0
        set_password(dsn, "B", "secret")
        directory = PostgresDirectory(dsn)
    found = await directory.registered()
    assert found is not None
    assert found.vins.tolist() == [b"A", b"B"]
    assert found.vins.dtype == np.dtype("S17")
    assert await directory.registered(found.version) is None
    if isinstance(directory, MemoryDirectory):
        directory.vins |= {"A\x7e", "LONGVIN0123456789"}
    else:
        assert add_vehicles(dsn, ["LONGVIN0123456789", "A~"]) == 2
    more = await directory.registered(found.version)
    assert more is not None
    assert more.vins.tolist() == [b"A", b"A~", b"B", b"LONGVIN0123456789"]
    stored = await directory.password_hash("B")
    assert stored is not None
    assert stored.startswith("$argon2id$")
    assert verify_password(stored, "secret")
    assert not verify_password(stored, "Secret")
    for unknown in ("A", "nobody", "a\0b", "x" * 18, "\ud800"):
        assert await directory.password_hash(unknown) is None
    await directory.close()


def test_a_password_can_be_changed_and_comes_with_registration(dsn: str) -> None:
    set_password(dsn, "A", "one")
    set_password(dsn, "A", "two")
    assert add_vehicles(dsn, ["A"]) == 0


def test_bad_input_changes_nothing(dsn: str) -> None:
    with pytest.raises(UsageError, match="'no space' is not a VIN"):
        add_vehicles(dsn, ["A", "no space"])
    with pytest.raises(UsageError, match="1 to 1024 bytes"):
        set_password(dsn, "A", "")
    assert add_vehicles(dsn, ["A"]) == 1


def test_a_damaged_hash_verifies_nothing() -> None:
    assert not verify_password("not a hash", "x")


async def test_a_database_that_is_away() -> None:
    directory = PostgresDirectory("postgresql://nobody@127.0.0.1:1/nothing")
    with pytest.raises(StoreUnavailable):
        await directory.registered()
    with pytest.raises(StoreUnavailable):
        add_vehicles("postgresql://nobody@127.0.0.1:1/nothing", ["A"])
    await directory.close()
    memory = MemoryDirectory()
    memory.away = True
    with pytest.raises(StoreUnavailable):
        await memory.registered()
