"""Is everything that was acknowledged stored, or refused with a reason?  Asked of the running system's API.

A handful of requests whatever the number of vehicles: all VINs of a load begin alike, and ``/v1/counts`` counts by
prefix.  Only when something is missing are vehicles looked at one by one, a thousand a request.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from services import api_client
from services.errors import UsageError

PATIENCE_S: Final = 60.0  # without any progress
STILL_S: Final = 3.0  # nothing waits, and nothing has moved for so long: it will not move any more
_POLL_S: Final = 0.5
_NAMED_MAX: Final = 5  # vehicles named in words
_PAGE: Final = 1000


@dataclass(frozen=True, slots=True)
class Counts:
    """What the system has of VINs with a prefix: reports stored, frames refused by reason."""

    vehicles: int
    reports: int
    refused: Mapping[str, int]

    @property
    def rejected(self) -> int:
        return sum(self.refused.values())


class Api:
    """What the API is asked.  ``url`` None: the system that runs from this directory."""

    def __init__(self, url: str | None) -> None:
        self.url = url
        self._lag_known = True

    def counts(self, prefix: str) -> Counts:
        found = api_client.ask(self.url, "/v1/counts", vin=prefix)
        return Counts(found["vehicles"], found["reports"], found["refused"])

    def lag_s(self) -> float | None:
        """Seconds that the oldest frame has waited in any stage; None when nobody there tells, or we may not ask."""
        if not self._lag_known:
            return None
        try:
            lags = api_client.ask(self.url, "/v1/system")["lag"]
        except UsageError:  # a token for some fleets
            self._lag_known = False
            return None
        told = [lag["seconds"] for lag in lags.values() if lag is not None]
        return float(max(told)) if told else None

    def by_vehicle(self, prefix: str) -> dict[str, int]:
        """Reports stored, by VIN."""
        found = api_client.ask_pages(self.url, "/v1/vehicles", "vehicles", 1 << 40, vin=prefix)
        return {row["vin"]: row["reports"] for row in found["vehicles"]}


def check_fresh(api: Api, prefix: str, seed: int) -> Counts:
    """The counts before the load.  Raises ``UsageError`` when its vehicles have reports already."""
    before = api.counts(prefix)
    if before.reports:
        raise UsageError(
            f"load: vehicles of seed {seed} (VINs {prefix}…) have {before.reports:,} reports there already; what is "
            "sent again would be the same reports. Use another --seed, or leave it out for a new one"
        )
    return before


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What became of the frames: ``missing`` were acknowledged and are nowhere."""

    ok: bool
    acked: int
    sent: int
    stored: int
    rejected: int
    rejected_by_reason: dict[str, int]
    missing: int
    surplus: int
    waited_s: float
    lag_s: float | None
    words: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def reconcile(
    api: Api, prefix: str, vins: Sequence[str], before: Counts, account: Mapping[str, Any],
    progress: Callable[[str], None], patience_s: float = PATIENCE_S,
) -> Reconciled:  # fmt: skip
    """Wait until the system has worked off what it acknowledged, then count.

    ``account`` is that of ``run``; ``vins`` those of ``by_vehicle`` in it.
    """
    begun = time.monotonic()
    moved, last, lag = begun, -1, None
    while True:
        now, lag = api.counts(prefix), api.lag_s()
        refused = {k: v - before.refused.get(k, 0) for k, v in now.refused.items() if v > before.refused.get(k, 0)}
        stored, rejected = now.reports - before.reports, sum(refused.values())
        done = stored + rejected
        if done != last:
            moved, last = time.monotonic(), done
        still = time.monotonic() - moved
        if lag == 0.0 and done >= account["sent"]:
            break
        if (lag == 0.0 and still >= STILL_S) or still >= patience_s:
            break
        if lag is None and done >= account["sent"]:
            break
        progress(
            f"{done:,} of {account['acked']:,} stored or rejected" + ("" if lag is None else f" · lag {lag:.1f} s")
        )
        time.sleep(_POLL_S)
    missing, surplus = max(account["acked"] - done, 0), max(done - account["sent"], 0)
    ok = not missing and not surplus
    return Reconciled(
        ok, account["acked"], account["sent"], stored, rejected, refused, missing, surplus,
        round(time.monotonic() - begun, 1), lag,
        _words(api, prefix, vins, account, stored, rejected, missing, surplus, lag, refused),
    )  # fmt: skip


def _words(
    api: Api, prefix: str, vins: Sequence[str], account: Mapping[str, Any], stored: int, rejected: int, missing: int,
    surplus: int, lag: float | None, refused: Mapping[str, int],
) -> str:  # fmt: skip
    """The outcome in words; of what is missing, where to look."""
    sums = f"{stored:,} stored + {rejected:,} rejected"
    why = f" ({', '.join(f'{name} {count:,}' for name, count in sorted(refused.items()))})" if refused else ""
    if not missing and not surplus:
        more = stored + rejected - account["acked"]
        extra = f"; {more:,} of them were sent and never answered" if more else ""
        return f"{sums}{why} = {stored + rejected:,}: all {account['acked']:,} that were acked are there{extra}"
    if surplus:
        return (
            f"{sums}{why} are {surplus:,} more than the {account['sent']:,} that were sent: somebody else sends with "
            f"VINs {prefix}…, or a frame was refused and sent again"
        )
    words = f"{missing:,} of {account['acked']:,} acked frames are neither stored nor rejected ({sums}{why})"
    if lag:
        return f"{words}; the system is {lag:.0f} s behind and does not move: see GET /v1/system and its pipelines' log"
    there = api.by_vehicle(prefix)
    short = sorted(
        ((acked - there.get(vin, 0), vin) for vin, acked in zip(vins, account["by_vehicle"]["acked"], strict=True)),
        reverse=True,
    )
    short = [(count, vin) for count, vin in short if count > 0]
    named = ", ".join(f"{vin} ({count:,})" for count, vin in short[:_NAMED_MAX])
    return (
        f"{words}; missing of {len(short):,} vehicles, most of {named}: look at /v1/vehicles/{{vin}}/completeness, "
        "`nevstream dead-letters list`, and the ledger in /v1/overview"
    )
