"""Keys of vehicles and platforms as the stages pass them on: what decrypts data units, what verifies signatures.

Never printed: no ``repr`` shows a secret.  Choosing is here (whose, which algorithm, valid when); what is done with
a key is in ``schemas.gbt32960.crypto`` and ``signatures``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, Protocol

# A terminal's clock may be off: a key is tried so long before and after its time. What it opens must still be a
# data unit, so a key tried in vain does no harm.
CLOCKS_APART: Final = timedelta(minutes=10)
# Keys tried on one frame, newest first. A vehicle has one at a time, two around a change; platforms are few.
TRIED_MAX: Final = 8
# Keys held of one vehicle; beyond it the one that began first goes, so that a terminal that exchanges a key with
# every frame fills no memory.
HELD_MAX: Final = 64


class Scope(StrEnum):
    """Whose key it is.  A platform's is tried on every vehicle: a frame does not say over which link it came."""

    VEHICLE = "vehicle"
    PLATFORM = "platform"


class Purpose(StrEnum):
    DECRYPT = "decrypt"
    VERIFY = "verify"


@dataclass(frozen=True, slots=True)
class Key:
    """One key.

    owner: VIN, or the platform's code · algorithm: to decrypt, the frame's encryption byte (2 RSA, 3 AES, 4 SM2,
    5 SM4); to verify, the signature block's (1 SM2, 2 RSA, 3 ECC) · secret: 16 to 32 bytes of AES and SM4; private
    keys as DER, or 32 bytes of SM2; public keys as DER, or the point · valid_from, valid_to: None is without end.
    """

    owner: str
    scope: Scope
    purpose: Purpose
    algorithm: int
    secret: bytes = field(repr=False)
    valid_from: datetime | None = None
    valid_to: datetime | None = None

    def valid(self, at: datetime) -> bool:
        """Whether ``at`` lies in its time, give or take what clocks may be apart."""
        begun = self.valid_from is None or self.valid_from - CLOCKS_APART <= at
        return begun and (self.valid_to is None or at <= self.valid_to + CLOCKS_APART)


@dataclass(frozen=True, slots=True)
class ExchangedKey:
    """A key that a 0x0B frame brought, and where that frame lies in the journal."""

    partition: int
    offset: int
    position: int
    received: datetime
    key: Key


class Keyring:
    """Keys by owner; grows when a vehicle exchanges one."""

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        self._of: dict[tuple[Purpose, str], list[Key]] = {}
        self._platforms: list[Key] = []
        self._n = 0
        for key in keys:
            self.add(key)

    def __len__(self) -> int:
        return self._n

    def __bool__(self) -> bool:
        return self._n > 0

    def add(self, key: Key) -> None:
        """Take ``key`` in; one that is there already is not taken twice."""
        platform = key.scope is Scope.PLATFORM
        held = self._platforms if platform else self._of.setdefault((key.purpose, key.owner), [])
        if key not in held:
            held.append(key)
            self._n += 1
            if not platform and len(held) > HELD_MAX:
                held.remove(min(held, key=_begin))
                self._n -= 1

    @property
    def verifies(self) -> bool:
        """Whether there is any public key."""
        return any(purpose is Purpose.VERIFY for purpose, _ in self._of) or any(
            key.purpose is Purpose.VERIFY for key in self._platforms
        )

    def find(self, purpose: Purpose, owner: str, algorithm: int, at: datetime) -> list[Key]:
        """Keys to try: the owner's own, then those of platforms; newest first, at most ``TRIED_MAX``."""
        own = self._of.get((purpose, owner), ())
        found: list[Key] = []
        for held in (own, self._platforms):
            good = [k for k in held if k.algorithm == algorithm and k.purpose is purpose and k.valid(at)]
            found += sorted(good, key=_begin, reverse=True)
        return found[:TRIED_MAX]

    def of_platforms(self, at: datetime) -> list[Key]:
        """The platforms' keys that open what was encrypted for them, such as a key in a 0x0B frame."""
        good = [k for k in self._platforms if k.purpose is Purpose.DECRYPT and k.valid(at)]
        return sorted(good, key=_begin, reverse=True)[:TRIED_MAX]


def _begin(key: Key) -> float:
    return key.valid_from.timestamp() if key.valid_from is not None else float("-inf")


class KeyStore(Protocol):
    """Where keys are kept."""

    async def changed(self) -> bool:
        """Whether keys were added or removed by hand since the last :meth:`keyring`.  Raises ``StoreUnavailable``."""
        ...

    async def keyring(self) -> Keyring:
        """All keys that can be opened.  Raises ``StoreUnavailable``."""
        ...

    async def close(self) -> None: ...


class MemoryKeys:
    """The key store in memory, for tests and tools; ``keys`` may be changed at any time."""

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        self.keys = list(keys)
        self._seen = -1

    async def changed(self) -> bool:
        return self._seen != len(self.keys)

    async def keyring(self) -> Keyring:
        self._seen = len(self.keys)
        return Keyring(self.keys)

    async def close(self) -> None:
        """Nothing to release."""
