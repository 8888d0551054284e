"""What connections that have not said who they are may leave behind: dead letters and events, within a budget.

An honest peer that is refused leaves one or a few, and they tell what is wrong with it.  Thousands a second tell
nothing more, cost the disk and the journal's time, and crowd out those of others.  So each address has a
budget, and all strangers together have one; beyond it a refusal is answered and counted, and one event
now and then says how many were not kept.  Whoever has been identified is never measured here.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from services.gateway.accepting import Bucket

# So many seconds' worth at once: a fleet that comes with a wrong configuration shows itself.
BURST_S: Final = 10.0
# All addresses together have so many times what one has.
TOGETHER: Final = 10.0
# What was not kept of an address is one event per this long.
TOLD_APART_S: Final = 10.0
_REMEMBERED_MAX: Final = 100_000


class _Address:
    __slots__ = ("events", "letters", "told_s", "unkept")

    def __init__(self, rate: float, now_s: float) -> None:
        self.letters = Bucket(rate, rate * BURST_S, now_s)
        self.events = Bucket(rate, rate * BURST_S, now_s)
        self.unkept = 0
        self.told_s = -TOLD_APART_S


class Strangers:
    """One for all doors of a process.  ``rate`` per second and address, 0: no limit; address "" has none either."""

    def __init__(self, rate: float, now_s: float) -> None:
        self._rate = rate
        self._letters = Bucket(TOGETHER * rate, TOGETHER * rate * BURST_S, now_s)
        self._events = Bucket(TOGETHER * rate, TOGETHER * rate * BURST_S, now_s)
        self._addresses: OrderedDict[str, _Address] = OrderedDict()

    def keeps(self, address: str, now_s: float) -> bool:
        """May one more refused frame of ``address`` be kept?"""
        if not address or not self._rate:
            return True
        found = self._of(address, now_s)
        return found.letters.take(now_s) and self._letters.take(now_s)

    def tells(self, address: str, now_s: float) -> bool:
        """May one more event of ``address`` be told?"""
        if not address or not self._rate:
            return True
        found = self._of(address, now_s)
        return found.events.take(now_s) and self._events.take(now_s)

    def passed_over(self, address: str, now_s: float) -> int:
        """One was not kept.  Returns how many there have been, when that is to be told now, else 0."""
        found = self._of(address, now_s)
        found.unkept += 1
        if now_s - found.told_s < TOLD_APART_S:
            return 0
        found.told_s = now_s
        times, found.unkept = found.unkept, 0
        return times

    def _of(self, address: str, now_s: float) -> _Address:
        found = self._addresses.get(address)
        if found is None:
            if len(self._addresses) >= _REMEMBERED_MAX:
                self._addresses.popitem(last=False)
            found = self._addresses[address] = _Address(self._rate, now_s)
        else:
            self._addresses.move_to_end(address)
        return found
