"""Who may connect: connection count, the form of a VIN, the registry, passwords.

One admission serves all doors.  It answers with a :class:`Verdict`; how a door tells its peer is the
door's business.  It must never log a password, nor keep one in clear.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterable
from enum import Enum, auto
from typing import Final

import numpy as np
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from numpy.typing import NDArray

from schemas.batch import VIN_BYTES
from schemas.seams import VehicleDirectory
from services.errors import StoreUnavailable
from services.settings import Gateway as GatewaySettings
from services.settings import Registry

log = logging.getLogger("nevstream.gateway")

_VERIFIED_MAX: Final = 100_000
_RETRY_MAX_S: Final = 30.0
_REST: Final = 20.0  # times what a look took: of a million vehicles it costs the database a twentieth at most


class Verdict(Enum):
    ADMITTED = auto()
    UNKNOWN_VIN = auto()  # not in the registry
    BAD_PASSWORD = auto()
    CANNOT_SAY = auto()  # the store is away: try again later


class Admission:
    """``start`` reads the registry once and keeps it fresh; ``stop`` ends that."""

    def __init__(self, settings: GatewaySettings, directory: VehicleDirectory, changed: Callable[[], None]) -> None:
        self.allowlist = settings.registry is Registry.ALLOWLIST
        self._refresh_s = settings.registry_refresh_s
        self._directory = directory
        self._changed = changed
        self._version: str | None = None  # of the registry that was read
        self._sorted: NDArray[np.bytes_] = np.empty(0, f"S{VIN_BYTES}")
        self._task: asyncio.Task[None] | None = None
        self._hasher = PasswordHasher()
        # Digest of (VIN, password, stored hash) under a key of this process → seen; oldest out first.
        self._verified: OrderedDict[bytes, None] = OrderedDict()
        self._key = secrets.token_bytes(32)
        # argon2 is meant to be slow: two at a time leave a core to the sockets.
        self._verifying = asyncio.Semaphore(2)

    async def start(self) -> None:
        if self.allowlist:
            await self._refresh()
            self._task = asyncio.create_task(self._keep_fresh(), name="gateway registry")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def verdict(self, vin: str) -> Verdict:
        """Whether this vehicle may send, by the registry alone."""
        if not self.allowlist:
            return Verdict.ADMITTED
        if self._version is None:
            return Verdict.CANNOT_SAY
        wanted = vin.encode("ascii", "replace")
        at = bisect_left(self._sorted, wanted)  # for one, numpy's own search costs more
        found = at < len(self._sorted) and self._sorted[at] == wanted
        return Verdict.ADMITTED if found else Verdict.UNKNOWN_VIN

    def known(self, vins: NDArray[np.bytes_]) -> NDArray[np.bool_]:
        """Which of ``vins`` (S17, zero padded) the allowlist holds; all of them where there is none."""
        if not self.allowlist:
            return np.ones(len(vins), np.bool_)
        if not len(self._sorted):
            return np.zeros(len(vins), np.bool_)
        at = np.searchsorted(self._sorted, vins)
        found: NDArray[np.bool_] = self._sorted[np.minimum(at, len(self._sorted) - 1)] == vins
        return found

    def unknown(self, vins: Iterable[str]) -> list[str]:
        """Which of ``vins`` the allowlist, once it was read, does not hold."""
        names = list(vins)
        if not self.allowlist or self._version is None or not names:
            return []
        known = self.known(np.array([name.encode("ascii", "replace") for name in names], f"S{VIN_BYTES}"))
        return [names[k] for k in np.flatnonzero(~known).tolist()]

    async def verify(self, vin: str, password: bytes | None) -> Verdict:
        """Whether ``password`` is this vehicle's."""
        try:
            stored = await self._directory.password_hash(vin)
        except StoreUnavailable as error:
            log.warning("password of %s cannot be checked, the store is away: %s", vin, error)
            return Verdict.CANNOT_SAY
        if stored is None or password is None:
            return Verdict.BAD_PASSWORD
        digest = hmac.new(self._key, b"\0".join((vin.encode(), stored.encode(), password)), hashlib.sha256).digest()
        if digest in self._verified:
            self._verified.move_to_end(digest)
            return Verdict.ADMITTED
        async with self._verifying:
            try:
                await asyncio.to_thread(self._hasher.verify, stored, password)
            except InvalidHashError:
                log.error(
                    "the stored password hash of %s is not argon2; set it with `nevstream vehicles set-password`", vin
                )
                return Verdict.BAD_PASSWORD
            except VerificationError:
                return Verdict.BAD_PASSWORD
        self._verified[digest] = None
        if len(self._verified) > _VERIFIED_MAX:
            self._verified.popitem(last=False)
        return Verdict.ADMITTED

    async def _refresh(self) -> bool:
        try:
            found = await self._directory.registered(self._version or "")
        except StoreUnavailable as error:
            state = (
                "vehicles are refused until it is back" if self._version is None else "the last one read still holds"
            )
            log.warning("the registry cannot be read, %s: %s", state, error)
            return False
        if found is not None:
            self._version, self._sorted = found.version, found.vins
            self._changed()
        return True

    async def _keep_fresh(self) -> None:
        delay_s, loop = self._refresh_s, asyncio.get_running_loop()
        while True:
            await asyncio.sleep(delay_s)
            begun = loop.time()
            if await self._refresh():
                delay_s = max(self._refresh_s, _REST * (loop.time() - begun))
            else:
                delay_s = min(_RETRY_MAX_S, 2 * delay_s)


def is_vin(text: str) -> bool:
    """17 printable ASCII characters that can stand in a topic: no space, slash, + or #."""
    return len(text) == VIN_BYTES and all(0x21 <= ord(c) <= 0x7E and c not in "/+#" for c in text)
