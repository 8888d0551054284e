"""Encrypted and signed frames judged at the door, so that they are answered with 0x07 and 0x05 (2025, table 4).

Off unless ``gateway.gbt32960.check_secrets``: each such frame then costs the event loop up to some milliseconds.
Without it they are taken and answered as good, and the pipeline keeps what it cannot open as dead letters.  Either
way the journal has the bytes as they came.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from datetime import UTC, datetime
from typing import Final

import numpy as np

from schemas.batch import I64, U8
from schemas.gbt32960 import check, crypto
from schemas.gbt32960.check import Secrets
from schemas.gbt32960.commands import Ack, Command, Encryption
from schemas.gbt32960.frame import AT_COMMAND, AT_ENCRYPTION, AT_UNIT
from schemas.keyring import Key, KeyStore, Purpose
from schemas.reasons import CODE as REASON
from services.errors import StoreUnavailable
from services.gateway.columns import F_ACK, F_DETAIL, F_LENGTH, F_REASON, F_START
from services.settings import Encryption as Choices
from services.settings import SignaturePolicy

log = logging.getLogger("nevstream.gateway")

_DOLLAR: Final = 0x24
# Keys that vehicles exchanged here, until the pipeline has stored them and a reload brings them back.
_BROUGHT_MAX: Final = 10_000


class Checking:
    """The keys that are known, kept fresh, and what they say of frames.  ``start`` before, ``stop`` after."""

    def __init__(self, keys: KeyStore, choices: Choices) -> None:
        self._keys = keys
        self._choices = choices
        self._brought: deque[Key] = deque(maxlen=_BROUGHT_MAX)
        self._secrets: Secrets | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self._load()
        self._task = asyncio.create_task(self._keep_fresh(), name="gateway keys")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def reason(self, frame: bytes) -> int:
        """Why a whole frame with a right check byte is refused, 0 when it is not.  While no keys could be read: 0."""
        secrets, at = self._secrets, datetime.now(UTC)
        if secrets is None:
            return 0
        flag = check.check(frame, secrets, at)
        if flag == Ack.SUCCESS:
            if frame[AT_COMMAND] == Command.KEY_EXCHANGE:
                self._learn(frame, secrets, at)
            return 0
        try:
            check.opened(frame, secrets, at)
        except crypto.CryptoError:
            owner = check.owner_of(frame)
            known = secrets.keyring.find(Purpose.DECRYPT, owner, frame[AT_ENCRYPTION], at)
            return REASON["decryption" if known else "encrypted"]
        # it opens: the key in it cannot be used, or its signature is wrong
        return REASON["decryption" if frame[AT_COMMAND] == Command.KEY_EXCHANGE else "signature"]

    def refuse(self, arena: U8, frames: I64, errors: U8) -> None:
        """Mark those of a tick's accepted ``frames`` (columns F_*) that the keys speak against."""
        if self._secrets is None or not len(frames):
            return
        start = frames[:, F_START]
        modern = arena[start] == _DOLLAR
        command = arena[start + AT_COMMAND]
        looked_at = (arena[start + AT_ENCRYPTION] != Encryption.NONE) | (modern & (command == Command.KEY_EXCHANGE))
        if self._secrets.require and self._secrets.keyring.verifies:
            looked_at |= modern & ((command == Command.REALTIME) | (command == Command.REISSUE))
        for row in np.flatnonzero(looked_at & (frames[:, F_REASON] == 0)).tolist():
            begin, length = int(start[row]), int(frames[row, F_LENGTH])
            if reason := self.reason(arena[begin : begin + length].tobytes()):
                frames[row, F_REASON] = reason
                frames[row, F_DETAIL] = AT_UNIT
                frames[row, F_ACK] = errors[reason, int(modern[row])]

    def _learn(self, frame: bytes, secrets: Secrets, at: datetime) -> None:
        key = check.brought_key(check.opened(frame, secrets, at), secrets, at)
        if key is not None:
            self._brought.append(key)
            secrets.keyring.add(key)

    async def _load(self) -> None:
        try:
            ring = await self._keys.keyring()
        except StoreUnavailable as error:
            log.warning("keys cannot be read, encrypted frames are taken unchecked until they can: %s", error)
            return
        for key in self._brought:
            ring.add(key)
        self._secrets = Secrets(ring, self._choices.scheme(), self._choices.signature is SignaturePolicy.REQUIRE)

    async def _keep_fresh(self) -> None:
        # read whole each time: keys that vehicles exchanged with another process do not count as changed
        while True:
            await asyncio.sleep(self._choices.refresh_s)
            await self._load()
