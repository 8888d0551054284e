"""What a tenant's token sees: the seams of the store, narrowed to the vehicles of its fleets.

An endpoint gets its queries and desks from the request's ``Context`` only, and a tenant's request has these ones
there, so an endpoint cannot forget to ask.  A query that names a vehicle answers for vehicles that were looked up
through the same object; one that takes filters has the fleets put into them; any other that is not written here by
hand does not exist for a tenant.  Another tenant's vehicle is no vehicle: what is answered is what is answered for a
VIN that nobody has.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final, NoReturn, cast

from schemas.access import Caller
from schemas.alarms import Acted, AlarmDesk, AlarmFilter, Targets
from schemas.downlink import CommandDesk
from schemas.reasons import CODE
from schemas.registry.columns import VEHICLES, Sheet
from schemas.registry.desk import Imported, RegistryDesk, Retired, VehicleFilter
from schemas.seams import FlawFilter, LetterDesk, LetterFilter, LetterId, Queries, Requeued, StoreHealth, Table
from schemas.state_filter import StateFilter
from services.web.parameters import Context, no_vehicle
from services.web.problems import ProblemError

# Letters refused because of who sent them: the frame in one may speak for a vehicle of somebody else.
_ABOUT_THE_SENDER: Final = frozenset(CODE[n] for n in ("foreign_vin", "unknown_vin", "not_logged_in", "bad_login"))


def scoped(ctx: Context, caller: Caller) -> Context:
    """``ctx`` as ``caller`` may use it; closing is left to whoever made the seams."""
    if caller.fleets is None:
        return replace(ctx, caller=caller)
    queries = ScopedQueries(ctx.queries, caller.fleets)
    return replace(
        ctx,
        caller=caller,
        queries=cast("Queries", queries),
        letters=None if ctx.letters is None else ScopedLetters(ctx.letters, queries),
        commands=None if ctx.commands is None else ScopedCommands(ctx.commands, queries),
        registry=None if ctx.registry is None else ScopedRegistry(ctx.registry, caller.fleets),
        alarms=None if ctx.alarms is None else ScopedAlarms(ctx.alarms, caller.fleets),
    )


def whole_only() -> NoReturn:
    raise ProblemError(
        403, "tenant", "This is not for one tenant", "The token is for some fleets, and this concerns all of them.",
        "Use a token without fleets: `nevstream tokens add NAME --role ROLE`.",
    )  # fmt: skip


class ScopedQueries:
    """``Queries`` for the vehicles of some fleets.

    What is not a method here is made from the seam's own signature by :meth:`__getattr__`.
    """

    def __init__(self, queries: Queries, fleets: Sequence[str]) -> None:
        self._queries, self.fleets = queries, tuple(fleets)
        self._ours: set[int] = set()

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        names = GENERIC.get(name)
        if names is None:
            raise AttributeError(f"{name} is not a question that a tenant may ask: see services/web/scope.py")
        ask = getattr(self._queries, name)

        async def asked(*args: Any, **kwargs: Any) -> Any:
            given = dict(zip(names, args, strict=False)) | kwargs
            if "vehicle_id" in names and given["vehicle_id"] not in self._ours:
                raise no_vehicle("with this number")  # an endpoint that got it past vehicle()
            if "filters" in names:
                given["filters"] = self._narrowed(given["filters"])
            return await ask(**given)

        return asked

    def _narrowed(self, filters: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
        wanted = filters.get("fleet")
        fleets = [fleet for fleet in self.fleets if wanted is None or fleet in wanted]
        return {**filters, "fleet": fleets}

    async def has(self, vin: str | None) -> bool:
        return vin is not None and await self.vehicle(vin) is not None

    async def vehicle(self, vin: str) -> Mapping[str, Any] | None:
        row = await self._queries.vehicle(vin)
        if row is None or row["fleet"] not in self.fleets:
            return None
        self._ours.add(row["vehicle_id"])
        return row

    async def vehicles(
        self,
        *,
        prefix: str,
        after: str,
        limit: int,
        fleets: Sequence[str] | None = None,
        wanted: StateFilter | None = None,
    ) -> Table:
        assert fleets is None, "the scope says which"
        return await self._queries.vehicles(prefix=prefix, after=after, limit=limit, fleets=self.fleets, wanted=wanted)

    async def prefix_counts(self, prefix: str, *, fleets: Sequence[str] | None = None) -> Mapping[str, Any]:
        assert fleets is None, "the scope says which"
        return await self._queries.prefix_counts(prefix, fleets=self.fleets)

    async def overview(self, *, reporting_since: datetime, fleets: Sequence[str] | None = None) -> Mapping[str, Any]:
        assert fleets is None, "the scope says which"
        return await self._queries.overview(reporting_since=reporting_since, fleets=self.fleets)

    async def diagnosis(self, vin: str, *, now: datetime) -> Mapping[str, Any]:
        if not await self.has(vin):
            raise no_vehicle(vin)
        return await self._queries.diagnosis(vin, now=now)

    async def dead_letters(self, **given: Any) -> Table:
        after, limit = given.pop("after"), given.pop("limit")
        return await self.dead_letter_page(LetterFilter(**given), after=after, limit=limit)

    async def dead_letter(self, partition: int, offset: int, position: int) -> Mapping[str, Any] | None:
        row = await self._queries.dead_letter(partition, offset, position)
        return row if row is not None and await self.has(row["vin"]) else None

    async def dead_letter_page(
        self, wanted: LetterFilter, *, after: tuple[datetime, int, int, int] | None, limit: int
    ) -> Table:
        return await self._queries.dead_letter_page(replace(wanted, fleets=self.fleets), after=after, limit=limit)

    async def dead_letter_frames(
        self, wanted: LetterFilter, *, after: tuple[datetime, int, int, int] | None, limit: int
    ) -> Table:
        return await self._queries.dead_letter_frames(replace(wanted, fleets=self.fleets), after=after, limit=limit)

    async def dead_letter_counts(self, wanted: LetterFilter, *, by: str, limit: int) -> Table:
        return await self._queries.dead_letter_counts(replace(wanted, fleets=self.fleets), by=by, limit=limit)

    async def flaw_counts(self, wanted: FlawFilter, *, by: str, limit: int) -> Table:
        return await self._queries.flaw_counts(replace(wanted, fleets=self.fleets), by=by, limit=limit)

    async def flaw_days(self, since: Any, until: Any) -> Table:
        """When days were counted; how many reports of all vehicles they have is no tenant's business."""
        table = await self._queries.flaw_days(since, until)
        rows = [{**row, "reports": None} for row in table.dicts()]
        return Table(table.columns, [tuple(row.values()) for row in rows])

    async def fleet_computed(self, blocks: Any, first: Any, last: Any) -> Mapping[str, Any]:
        """When figures were made, which says nothing of any vehicle."""
        found = await self._queries.fleet_computed(blocks, first, last)
        return {**found, "newest_at": None}

    async def health(self) -> StoreHealth:
        return await self._queries.health()

    async def close(self) -> NoReturn:
        raise AssertionError("a scope lasts a request; what it narrows is closed by the application")


def _signatures() -> dict[str, tuple[str, ...]]:
    """Methods of the seam that name a vehicle or take filters, and are not written by hand: their parameters."""
    found = {}
    for name, method in inspect.getmembers(Queries, inspect.isfunction):
        names = tuple(inspect.signature(method).parameters)[1:]
        if not name.startswith("_") and name not in vars(ScopedQueries) and {"vehicle_id", "filters"} & set(names):
            found[name] = names
    return found


GENERIC: Final = _signatures()


class ScopedLetters:
    """``LetterDesk`` for letters of a tenant's vehicles, but for those about who sent them."""

    def __init__(self, letters: LetterDesk, queries: ScopedQueries) -> None:
        self._letters, self._queries = letters, queries

    async def requeue(
        self, letters: Sequence[LetterId], *, by: str, frame: bytes | None = None, again: bool = False
    ) -> Requeued:
        if frame is not None:
            whole_only()  # it may speak for any vehicle
        skipped: dict[LetterId, str] = {}
        for each in letters:
            row = await self._queries.dead_letter(*each)
            if row is None:
                skipped[each] = "there is no such dead letter"
            elif row["reason"] in _ABOUT_THE_SENDER:
                skipped[each] = "it was refused because of who sent it: that is for a token without fleets"
        done = await self._letters.requeue([each for each in letters if each not in skipped], by=by, again=again)
        return Requeued(done.frames, {**done.skipped, **skipped})

    async def requeue_all(self, wanted: LetterFilter, *, by: str, limit: int) -> Requeued:
        if wanted.reason in _ABOUT_THE_SENDER:
            whole_only()
        return await self._letters.requeue_all(replace(wanted, fleets=self._queries.fleets), by=by, limit=limit)

    async def close(self) -> None:
        """What it narrows is closed by the application."""


class ScopedCommands:
    """``CommandDesk`` for a tenant's vehicles."""

    def __init__(self, commands: CommandDesk, queries: ScopedQueries) -> None:
        self._commands, self._queries = commands, queries

    async def enqueue(
        self, vin: str, kind: str, body: Mapping[str, Any], *, by: str, expires_s: float, edition: int | None = None
    ) -> int:
        await self._check(vin)
        return await self._commands.enqueue(vin, kind, body, by=by, expires_s=expires_s, edition=edition)

    async def commands(self, vin: str, *, before: int | None, limit: int) -> Table:
        await self._check(vin)
        return await self._commands.commands(vin, before=before, limit=limit)

    async def close(self) -> None:
        """What it narrows is closed by the application."""

    async def _check(self, vin: str) -> None:
        if not await self._queries.has(vin):
            raise no_vehicle(vin)


class ScopedRegistry:
    """``RegistryDesk`` for a tenant's vehicles: it changes what is known of them, and neither adds any nor models."""

    def __init__(self, registry: RegistryDesk, fleets: Sequence[str]) -> None:
        self._registry, self._fleets = registry, tuple(fleets)

    async def vehicle(self, vin: str) -> Mapping[str, Any] | None:
        row = await self._registry.vehicle(vin)
        return row if row is not None and row["fleet"] in self._fleets else None

    async def vehicles(self, wanted: VehicleFilter, *, after: str, limit: int) -> Table:
        return await self._registry.vehicles(replace(wanted, fleets=self._fleets), after=after, limit=limit)

    async def change(
        self, sheet: Sheet, key: str, values: Mapping[str, Any], *, whole: bool, create: bool
    ) -> Imported | None:
        if sheet is not VEHICLES:
            whole_only()
        row = await self.vehicle(key)
        if row is None:
            raise no_vehicle(key)
        if whole:
            values = {"fleet": row["fleet"], **values}
        if values.get("fleet", row["fleet"]) not in self._fleets:
            raise ProblemError(
                403, "not-your-fleet", "The vehicle would leave your fleets",
                f"The token is for vehicles of {', '.join(self._fleets)[:200]}.",
                "Leave fleet out, or let somebody whose token has no fleets move the vehicle.",
            )  # fmt: skip
        return await self._registry.change(sheet, key, values, whole=whole, create=create)

    async def retire(self, vins: Sequence[str]) -> Retired:
        ours = [vin for vin in vins if await self.vehicle(vin) is not None]
        done = await self._registry.retire(ours)
        gone = {*ours} - {*done.unknown}
        return replace(done, unknown=tuple(vin for vin in vins if vin not in gone))

    async def models(self, *, prefix: str, after: str, limit: int, fleets: Sequence[str] | None = None) -> Table:
        assert fleets is None, "the scope says which"
        return await self._registry.models(prefix=prefix, after=after, limit=limit, fleets=self._fleets)

    async def model(self, name: str, *, fleets: Sequence[str] | None = None) -> Mapping[str, Any] | None:
        assert fleets is None, "the scope says which"
        return await self._registry.model(name, fleets=self._fleets)

    async def registrations(self, since: datetime, until: datetime, *, fleets: Sequence[str] | None = None) -> Table:
        assert fleets is None, "the scope says which"
        return await self._registry.registrations(since, until, fleets=self._fleets)

    async def load(self, *_: Any, **__: Any) -> Imported:
        whole_only()

    async def drop_model(self, *_: Any) -> bool:
        whole_only()

    async def close(self) -> None:
        """What it narrows is closed by the application."""


class ScopedAlarms:
    """``AlarmDesk`` for episodes of a tenant's vehicles; whom the platform tells of them is the platform's business."""

    def __init__(self, alarms: AlarmDesk, fleets: Sequence[str]) -> None:
        self._alarms, self._fleets = alarms, tuple(fleets)

    async def page(self, wanted: AlarmFilter, *, after: tuple[datetime, int] | None, limit: int) -> Table:
        return await self._alarms.page(replace(wanted, fleets=self._fleets), after=after, limit=limit)

    async def episode(self, episode_id: int) -> Mapping[str, Any] | None:
        row = await self._alarms.episode(episode_id)
        return row if row is not None and row["fleet"] in self._fleets else None

    async def story(self, episode_id: int, targets: Targets) -> Mapping[str, Any]:
        if await self.episode(episode_id) is None:
            return {
                **dict.fromkeys(("withdrawn_at", "acknowledge_due_at", "close_due_at")), "alike_30d": 0,
                "actions": [], "events": [], "deliveries": [],
            }  # fmt: skip
        return {**await self._alarms.story(episode_id, targets), "deliveries": []}

    async def summary(self, wanted: AlarmFilter, targets: Targets, now: datetime, limit: int) -> Mapping[str, Any]:
        return await self._alarms.summary(replace(wanted, fleets=self._fleets), targets, now, limit)

    async def act(self, action: str, episodes: Sequence[int], *, by: str, note: str | None = None) -> list[Acted]:
        ours = [number for number in episodes if await self.episode(number) is not None]
        done = {acted.episode_id: acted for acted in await self._alarms.act(action, ours, by=by, note=note)}
        missing = "there is no such episode"
        return [done.get(number) or Acted(number, "missing", None, missing) for number in episodes]

    async def events(self, *_: Any, **__: Any) -> Table:
        whole_only()  # the stream has a reader of its own, which is told whose events to pass on

    async def event_bounds(self) -> tuple[int, int]:
        whole_only()

    async def hooks(self) -> Table:
        whole_only()

    async def retry_dead(self, *_: Any, **__: Any) -> int:
        whole_only()

    async def close(self) -> None:
        """What it narrows is closed by the application."""
