"""Encrypted and signed frames between a journal and a sink: opened, refused, put back, in any order."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.batch import (
    NOTE_CUSTOM_BLOCK,
    NOTE_SIGNATURE,
    NOTE_SIGNATURE_BAD,
    NOTE_SIGNATURE_OK,
    NOTE_TRAILING,
    Batch,
)
from schemas.gbt32960 import crypto, sm2
from schemas.gbt32960.commands import Encryption
from schemas.gbt32960.decode import decode as decode_batch
from schemas.gbt32960.scheme import CipherMode, Scheme
from schemas.journal.record import decode_records
from schemas.keyring import Key, Keyring, MemoryKeys, Purpose, Scope
from schemas.keys import partition_of_vin
from schemas.reasons import CODE
from schemas.seams import StoredRecord
from services.journal.memory import MemoryJournal
from services.pipeline.secrets import _closed, _signature
from services.pipeline.worker import Pipeline
from services.settings import Settings
from services.store.memory import MemorySink
from tests.pipeline.conftest import Sent, beijing, frame_of, record_of, report_frame, vehicle_block

PARTITIONS = 4
T0 = 1_780_000_000
VIN, OTHER = "LTEST000000000001", "LTEST000000000002"
AES, SM4 = bytes(range(16)), bytes(range(16, 32))
SCALAR = 987654321987654321
PUBLIC = sm2.public_of(SCALAR)


def key_of(algorithm: int, secret: bytes, owner: str = VIN, purpose: Purpose = Purpose.DECRYPT, **more: Any) -> Key:
    return Key(owner, more.pop("scope", Scope.VEHICLE), purpose, algorithm, secret, **more)


def closed(frame: bytes, algorithm: int = Encryption.AES, key: bytes = AES, **how: Any) -> bytes:
    return crypto.encrypt_frame(frame, algorithm, key, **how)


def signed_report(vin: str, second: int, scalar: int = SCALAR, after: bytes = b"") -> bytes:
    """A 2025 report: a place and custom bytes, signed with SM2."""
    unit = beijing(second) + bytes.fromhex("0501 00 06c11d80 01d905c0 81 0003 ff0102".replace(" ", ""))
    r, s = sm2.sign(scalar, unit)
    block = b"\xff\x01\0\x20" + r.to_bytes(32, "big") + b"\0\x20" + s.to_bytes(32, "big")
    return frame_of(vin, 2, unit + block + after, mark=b"$$")


def exchange(vin: str, key: bytes, kind: int = Encryption.SM4) -> bytes:
    unit = bytes([kind]) + len(key).to_bytes(2, "big") + key + beijing(T0 - 60) + beijing(T0 + 86_400)
    return frame_of(vin, 0x0B, unit, mark=b"$$")


async def moved(
    frames: Sequence[bytes | Sent], keys: Iterable[Key] = (), sink: MemorySink | None = None, per_record: int = 1000,
    **encryption: Any,
) -> MemorySink:  # fmt: skip
    """``frames``, arrived at T0 + 10, through a pipeline that knows ``keys``."""
    sink = sink or MemorySink(PARTITIONS)
    journal = MemoryJournal(PARTITIONS)
    by_partition: dict[int, list[Sent]] = {}
    for frame in frames:
        one = frame if isinstance(frame, Sent) else Sent(frame, T0 + 10)
        vin = one.frame[4:21].rstrip(b"\0").decode("ascii")
        by_partition.setdefault(partition_of_vin(vin, PARTITIONS), []).append(one)
    for partition, sent in by_partition.items():
        for at in range(0, len(sent), per_record):
            await journal.append([(partition, record_of(sent[at : at + per_record]))])
    config = Settings.model_validate({"pipeline": {"idle_sleep_ms": 1.0}, "encryption": encryption})
    pipeline = Pipeline(config, journal, sink, range(PARTITIONS), clock=lambda: T0 + 100.0, keys=MemoryKeys(keys))
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(pipeline.run(stop), name="pipeline")
        await pipeline.caught_up()
        stop.set()
    return sink


def content(sink: MemorySink) -> list[dict[str, Any]]:
    vins = {number: vin for vin, number in sink.vehicles.items()}
    rows = [{**row, "vehicle_id": vins[row["vehicle_id"]]} for row in sink.telemetry.values()]
    return sorted(rows, key=lambda row: (row["vehicle_id"], row["time"], row["kind"]))


def reasons(sink: MemorySink) -> list[int]:
    return [letter.reason for letter in sink.dead_letters.values()]


async def test_an_encrypted_report_is_the_row_of_the_clear_one() -> None:
    plain = [report_frame(VIN, T0), report_frame(OTHER, T0 + 1, kind=3), report_frame(VIN, T0 + 2, soc=12)]
    secret = [closed(plain[0]), plain[1], closed(plain[2], Encryption.SM4, SM4)]
    keys = [key_of(Encryption.AES, AES), key_of(Encryption.SM4, SM4)]
    assert content(await moved(secret, keys)) == content(await moved(plain))


async def test_logins_are_opened_too() -> None:
    login = frame_of(VIN, 1, beijing(T0) + b"\0\7" + b"89860012345678901234" + b"\0\0")
    sink = await moved([closed(login)], [key_of(Encryption.AES, AES)])
    (found,) = sink.logins.values()
    assert (found.vin, found.serial, found.iccid) == (VIN, 7, "89860012345678901234")


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ([], "encrypted"),
        ([key_of(Encryption.SM4, SM4)], "encrypted"),  # of another algorithm
        ([key_of(Encryption.AES, AES, OTHER)], "encrypted"),  # of another vehicle
        ([key_of(Encryption.AES, AES, valid_to=datetime(2026, 1, 1, tzinfo=UTC))], "encrypted"),  # of another time
        ([key_of(Encryption.AES, SM4)], "decryption"),
    ],
)
async def test_what_is_not_opened_is_a_dead_letter_with_its_ciphertext(keys: list[Key], reason: str) -> None:
    frame = closed(report_frame(VIN, T0))
    sink = await moved([frame, report_frame(OTHER, T0)], keys)
    (letter,) = sink.dead_letters.values()
    assert (letter.reason, letter.frame, letter.vin) == (CODE[reason], frame, VIN)
    assert letter.detail == (21 if reason == "encrypted" else 24)
    assert len(sink.telemetry) == 1


async def test_what_is_opened_and_refused_keeps_its_ciphertext() -> None:
    frame = closed(report_frame(VIN, T0 + 90_000))
    sink = await moved([frame], [key_of(Encryption.AES, AES)])
    (letter,) = sink.dead_letters.values()
    assert (letter.reason, letter.frame) == (CODE["clock_future"], frame)


async def test_a_letter_is_read_once_its_key_is_there() -> None:
    """As a requeue does: the letter's bytes and arrival go through the journal again."""
    frame = closed(report_frame(VIN, T0))
    first = await moved([frame])
    (letter,) = first.dead_letters.values()
    again = Sent(letter.frame, letter.received.timestamp())
    assert content(await moved([again], [key_of(Encryption.AES, AES)])) == content(await moved([report_frame(VIN, T0)]))


async def test_a_platforms_key_opens_what_its_vehicles_send() -> None:
    keys = [key_of(Encryption.AES, SM4), key_of(Encryption.AES, AES, "CITY", scope=Scope.PLATFORM)]
    sink = await moved([closed(report_frame(VIN, T0)), closed(report_frame(OTHER, T0))], keys)
    assert len(sink.telemetry) == 2


@settings(deadline=None, max_examples=12)
@given(st.permutations(range(6)), st.integers(1, 4))
def test_order_and_ciphertext_do_not_matter(order: list[int], per_record: int) -> None:
    """One report in the clear and under three ciphertexts, and one that contradicts it: the same row wins."""
    report, rival = report_frame(VIN, T0), report_frame(VIN, T0, soc=33)
    chained = Scheme(CipherMode.CBC_IV_FIRST)
    frames = [
        report,
        closed(report, scheme=chained, iv=bytes(16)),
        closed(report, scheme=chained, iv=b"\1" * 16),
        closed(report, Encryption.SM2, PUBLIC),
        closed(rival, scheme=chained, iv=b"\2" * 16),
        rival,
    ]
    keys = [key_of(Encryption.AES, AES), key_of(Encryption.SM2, SCALAR.to_bytes(32, "big"))]
    how = {"mode": "cbc-iv-first"}
    one = asyncio.run(moved([frames[i] for i in order], keys, per_record=per_record, **how))
    two = asyncio.run(moved(frames, keys, **how))
    assert content(one) == content(two)
    assert sum(line["frames"] for line in one.ledger.values()) == 6
    assert sum(line["rows"] for line in one.ledger.values()) == 1


# -- key exchange --------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_record", [1, 1000])
async def test_an_exchanged_key_opens_what_comes_after(per_record: int) -> None:
    after = [closed(report_frame(VIN, T0 + s), Encryption.SM4, SM4) for s in range(3)]
    strangers = closed(report_frame(OTHER, T0), Encryption.SM4, SM4)
    sink = await moved([exchange(VIN, SM4), *after, strangers], per_record=per_record)
    assert len(sink.telemetry) == 3
    assert reasons(sink) == [CODE["encrypted"]]
    (key,) = sink.keys
    assert (key.owner, key.algorithm, key.secret, key.scope) == (VIN, Encryption.SM4, SM4, Scope.VEHICLE)


async def test_an_encrypted_exchange_changes_the_key() -> None:
    change = closed(exchange(VIN, SM4))
    sink = await moved([change, closed(report_frame(VIN, T0), Encryption.SM4, SM4)], [key_of(Encryption.AES, AES)])
    assert len(sink.telemetry) == 1


async def test_an_exchange_that_cannot_be_used_is_a_dead_letter() -> None:
    """A protected key waits for the platform's: put back then, it is read."""
    protected = exchange(VIN, crypto.encrypt_unit(SM4, Encryption.SM2, PUBLIC))
    frames = [protected, exchange(OTHER, b"short"), frame_of(OTHER, 0x0B, b"\5", mark=b"$$")]
    sink = await moved(frames, key_exchange="sm2")
    assert reasons(sink) == [CODE["decryption"]] * 3
    assert not sink.keys
    platform = key_of(Encryption.SM2, SCALAR.to_bytes(32, "big"), "CITY", scope=Scope.PLATFORM)
    sink = await moved([protected, closed(report_frame(VIN, T0), Encryption.SM4, SM4)], [platform], key_exchange="sm2")
    assert len(sink.telemetry) == 1


async def test_an_answer_to_an_exchange_brings_no_key() -> None:
    answer = frame_of(VIN, 0x0B, exchange(VIN, SM4)[24:-1], mark=b"$$", ack=1)
    sink = await moved([answer])
    assert not sink.keys
    assert not sink.dead_letters


class SinkKeys(MemoryKeys):
    """A store that has what vehicles exchanged once it is committed, and says each time that something changed."""

    def __init__(self, sink: MemorySink) -> None:
        super().__init__()
        self._sink = sink

    async def changed(self) -> bool:
        return True

    async def keyring(self) -> Keyring:
        return Keyring([*self.keys, *self._sink.keys])


async def test_keys_are_seen_while_it_runs_and_none_is_lost_on_the_way() -> None:
    """Keys are loaded anew before every batch of one frame: the one of the batch in flight must not be missed."""
    journal, sink = MemoryJournal(PARTITIONS), MemorySink(PARTITIONS)
    store, partition = SinkKeys(sink), partition_of_vin(VIN, PARTITIONS)
    config = Settings.model_validate(
        {"pipeline": {"idle_sleep_ms": 1.0, "batch_frames_max": 1}, "encryption": {"refresh_s": 1e-9}}
    )
    pipeline = Pipeline(config, journal, sink, range(PARTITIONS), clock=lambda: T0 + 100.0, keys=store)

    async def put(*frames: bytes) -> None:
        await journal.append([(partition, record_of([Sent(frame, T0 + 10)])) for frame in frames])
        await pipeline.caught_up()

    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(pipeline.run(stop), name="pipeline")
        await put(closed(report_frame(VIN, T0)))
        assert reasons(sink) == [CODE["encrypted"]]
        store.keys.append(key_of(Encryption.AES, AES))
        await put(closed(report_frame(VIN, T0 + 1)))
        after = [closed(report_frame(VIN, T0 + s), Encryption.SM4, SM4) for s in range(2, 8)]
        await put(exchange(VIN, SM4), *after)
        store.keys.clear()
        await put(closed(report_frame(VIN, T0 + 9)))
        stop.set()
    assert len(sink.telemetry) == 7
    assert reasons(sink) == [CODE["encrypted"]] * 2


# -- signatures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("after", "more"), [(b"", 0), (b"\0\xff\0", NOTE_TRAILING)])
async def test_signatures_are_noted(after: bytes, more: int) -> None:
    frames = [
        signed_report(VIN, T0, after=after),
        signed_report(VIN, T0 + 1, SCALAR + 1, after=after),
        signed_report(OTHER, T0, after=after),
        frame_of(VIN, 2, beijing(T0 + 2) + vehicle_block()),
    ]
    sink = await moved(frames, [key_of(1, PUBLIC, purpose=Purpose.VERIFY)])
    signed = NOTE_SIGNATURE | NOTE_CUSTOM_BLOCK | more
    expected = [signed | NOTE_SIGNATURE_OK, signed | NOTE_SIGNATURE_BAD, None, signed]
    assert [row["notes"] for row in content(sink)] == expected


async def test_a_wrong_signature_refuses_when_it_is_required() -> None:
    good, bad = signed_report(VIN, T0), signed_report(VIN, T0 + 1, SCALAR + 1)
    unsigned, unknown = report_frame(VIN, T0 + 2), signed_report(OTHER, T0)
    keys = [key_of(1, PUBLIC, purpose=Purpose.VERIFY)]
    sink = await moved([good, bad, unsigned, unknown], keys, signature="require")
    (letter,) = sink.dead_letters.values()
    assert (letter.reason, letter.frame) == (CODE["signature"], bad)
    assert bad[letter.detail] == 0xFF
    assert len(sink.telemetry) == 3


async def test_a_signature_inside_an_encrypted_unit() -> None:
    keys = [key_of(1, PUBLIC, purpose=Purpose.VERIFY), key_of(Encryption.AES, AES)]
    sink = await moved([closed(signed_report(VIN, T0))], keys, signature="require")
    (row,) = sink.telemetry.values()
    assert row["notes"] & NOTE_SIGNATURE_OK


async def test_the_place_of_the_tag_is_the_reading_decoders(make: SimpleNamespace) -> None:
    from schemas.gbt32960 import signatures

    for after in (b"", b"\0", b"\xff\1\0\0\0\0", bytes(40)):
        frame = signed_report(VIN, T0, after=after)
        frames = decode_records([StoredRecord(0, 0, make.record([make.Sent(frame, T0)]))])
        batch: Batch = decode_batch(frames)
        assert _signature(batch, 0, len(frame)) == signatures.find(frame)


# -- the clear path --------------------------------------------------------------------------------------


async def test_only_encrypted_and_key_frames_are_looked_at(make: SimpleNamespace) -> None:
    sent = [
        make.Sent(report_frame(VIN, T0), T0),
        make.Sent(closed(report_frame(VIN, T0)), T0),
        make.Sent(b"#", T0, reason=3),
        make.Sent(frame_of(VIN, 7, b"", encryption=3), T0),  # nothing in it that could be encrypted
        make.Sent(exchange(VIN, SM4), T0),
        make.Sent(closed(report_frame(VIN, T0)), T0, reason=8),  # refused at the door
        make.Sent(b'{"a":1}' * 9, T0, codec=2),
    ]
    frames = decode_records([StoredRecord(0, 0, make.record(sent))])
    assert _closed(frames).tolist() == [1, 4]
    empty = decode_records([])
    assert _closed(empty).tolist() == []
    assert isinstance(_closed(frames), np.ndarray)


async def test_damaged_ciphertext_is_what_the_decoder_calls_it() -> None:
    frame = bytearray(closed(report_frame(VIN, T0)))
    frame[-1] ^= 1
    short = closed(report_frame(VIN, T0))[:-3]
    sink = await moved([bytes(frame), short], [key_of(Encryption.AES, AES)])
    assert reasons(sink) == [CODE["bad_bcc"], CODE["bad_length"]]
