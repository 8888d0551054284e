"""Which partitions of the journal a pipeline process works on, where they are dealt anew while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol


class Shares(Protocol):
    """This process's share of the partitions.

    What keeps two owners apart is the store (``Sink.claim``); this only says who should try.
    """

    @property
    def moved(self) -> bool:
        """The share that ``next`` gave no longer holds: finish the commit under way, then ask for the next."""
        ...

    async def next(self, stop: asyncio.Event) -> Sequence[int]:
        """Let go of the share before, wait for one that was not given yet; empty only when ``stop`` is set."""
        ...

    def let_go(self) -> None:
        """Nothing of the share is being stored any more: whoever waits for that may have it."""
        ...

    def refused(self) -> None:
        """The store knows another owner: this share is not given again, only a newer one."""
        ...
