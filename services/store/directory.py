"""Who may connect: the registry of vehicles and their password hashes, as the gateway asks for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from argon2 import PasswordHasher

from services.errors import StoreUnavailable

# For the memory twin only: the cheapest argon2 there is, so that a test of hundreds of vehicles is quick.
_CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


class MemoryDirectory:
    """The directory in memory, for tests: ``vins`` are registered, ``passwords`` VIN → password in clear."""

    def __init__(self, vins: Iterable[str] = (), passwords: Mapping[str, str] | None = None) -> None:
        self.away = False
        self.vins = set(vins)
        self.hashes = {vin: _CHEAP.hash(password) for vin, password in (passwords or {}).items()}

    async def registered(self) -> set[str]:
        self._check()
        return set(self.vins)

    async def password_hash(self, vin: str) -> str | None:
        self._check()
        return self.hashes.get(vin)

    async def close(self) -> None:
        """Nothing to release."""

    def _check(self) -> None:
        if self.away:
            raise StoreUnavailable("the directory in memory was told to be away")
