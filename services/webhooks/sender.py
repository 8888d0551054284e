"""Sends what the outbox holds to the webhooks of the settings: signed, with time-outs and retries, bounded.

Each hook has a loop of its own, so that one that is down or slow delays nobody else.  It must never follow a
redirect, use a proxy from the environment, connect to an address that ``targets.py`` refuses, read an answer's body,
or put a URL, which may hold a secret, into a log, a metric or the database.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import random
import ssl
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

import httpx
import orjson

from schemas.alarms import Delivery, Outbox, Sent, event_document
from services import metrics
from services.errors import SettingsError, Unavailable
from services.settings import Alarms, Webhook
from services.webhooks.targets import Refused, Target, resolved

log = logging.getLogger(__name__)

SIGNATURE: Final = "X-Nevstream-Signature"
TIMESTAMP: Final = "X-Nevstream-Timestamp"
EVENT: Final = "X-Nevstream-Event"
EVENT_ID: Final = "X-Nevstream-Event-Id"
_LEASE_MARGIN_S: Final = 30.0  # beyond the time-out: recording takes a moment, too
_ERROR_MAX: Final = 300


def signature(secret: str, timestamp: int, body: bytes) -> str:
    """``v1=`` and the HMAC-SHA256 of ``timestamp``, a full stop and the body, in hex."""
    signed = f"{timestamp}.".encode() + body
    return "v1=" + hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()


def retry_after_s(attempts: int, settings: Alarms, chance: float) -> float:
    """Wait before the next attempt: doubled each time, capped, and spread by up to a fifth."""
    wait_s = settings.webhook_retry_first_s * 2.0 ** min(attempts - 1, 60)
    return float(min(settings.webhook_retry_max_s, wait_s) * (0.9 + 0.2 * chance))


class Webhooks:
    """Runs until told to stop.  ``now`` (seconds) and ``chance`` are passed in so that tests own them."""

    def __init__(
        self,
        settings: Alarms,
        outbox: Outbox,
        *,
        now: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._settings, self._outbox, self._now, self._chance = settings, outbox, now, chance
        self._trust = trusted(settings.webhook_ca_file)
        self._clients: dict[str, httpx.AsyncClient] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """One loop per hook; the attempts under way when ``stop`` is set are finished."""
        async with asyncio.TaskGroup() as group:
            for hook in self._settings.webhooks:
                group.create_task(self._serve(hook, stop), name=f"webhook {hook.name}")

    async def deliver(self, hook: Webhook) -> int:
        """Send what is due to one hook, as many as may be at once; returns how many.  Raises ``StoreUnavailable``."""
        most, timeout_s = self._settings.webhook_concurrency, self._settings.webhook_timeout_s
        claimed = await self._outbox.claim(hook.name, most, timeout_s + _LEASE_MARGIN_S)
        if claimed:
            await self._outbox.record(await asyncio.gather(*(self._attempt(hook, each) for each in claimed)))
        return len(claimed)

    async def test(self, hook: Webhook) -> Sent:
        """Send one event named ``test``, once; it is in no outbox."""
        now = datetime.fromtimestamp(self._now(), UTC)
        return await self._attempt(hook, Delivery(0, hook.name, 1, now, now, "test", {"alarm": None}))

    async def close(self) -> None:
        for client in self._clients.values():
            await client.aclose()

    # -- inside ------------------------------------------------------------------------------------
    async def _serve(self, hook: Webhook, stop: asyncio.Event) -> None:
        away = False
        while not stop.is_set():
            try:
                sent = await self.deliver(hook)
                away = False
            except Unavailable as error:
                if not away:
                    log.warning("webhook %s waits: %s", hook.name, error)
                sent, away = 0, True
            if not sent:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), self._settings.publish_every_s)

    async def _attempt(self, hook: Webhook, delivery: Delivery) -> Sent:
        begun = time.monotonic()
        status, error, asked_s = None, None, None
        try:
            async with asyncio.timeout(self._settings.webhook_timeout_s):  # of all of it: name, connection, answer
                status, asked_s = await self._post(hook, delivery)
            if not 200 <= status < 300:
                error = f"HTTP {status}"
        except TimeoutError:
            error = f"no answer within {self._settings.webhook_timeout_s:g} s (alarms.webhook_timeout_s)"
        except Refused as refused:
            error = str(refused)
        except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError, OSError) as trouble:
            error = self._said(hook, trouble)
        metrics.WEBHOOK_SECONDS.labels(hook.name).observe(time.monotonic() - begun)
        return self._judged(hook, delivery, status, error, asked_s)

    def _judged(
        self, hook: Webhook, delivery: Delivery, status: int | None, error: str | None, asked_s: float | None
    ) -> Sent:
        settings = self._settings
        if error is None:
            metrics.WEBHOOK_ATTEMPTS.labels(hook.name, "delivered").inc()
            return Sent(delivery.event_id, hook.name, delivery.attempts, status, None)
        age_h = (self._now() - delivery.created_at.timestamp()) / 3600
        given_up = ""
        if delivery.attempts >= settings.webhook_attempts_max:
            given_up = f"given up after {delivery.attempts} attempts (alarms.webhook_attempts_max)"
        elif age_h >= settings.webhook_age_max_h:
            given_up = f"given up after {age_h:.1f} h (alarms.webhook_age_max_h)"
        if given_up:
            error = f"{error}; {given_up}"
            metrics.WEBHOOK_ATTEMPTS.labels(hook.name, "dead").inc()
            log.error(
                "webhook %s was not told of event %d (%s): %s; `nevstream alarms webhooks retry` sends it anew",
                hook.name, delivery.event_id, delivery.event, error,
            )  # fmt: skip
            return Sent(delivery.event_id, hook.name, delivery.attempts, status, error)
        metrics.WEBHOOK_ATTEMPTS.labels(hook.name, "retried").inc()
        wait_s = retry_after_s(delivery.attempts, settings, self._chance())
        if asked_s is not None:
            wait_s = min(max(wait_s, asked_s), settings.webhook_retry_max_s)
        log.info("webhook %s: event %d: %s; again in %.0f s", hook.name, delivery.event_id, error, wait_s)
        return Sent(delivery.event_id, hook.name, delivery.attempts, status, error, wait_s)

    async def _post(self, hook: Webhook, delivery: Delivery) -> tuple[int, float | None]:
        """The answer's status and the seconds of its Retry-After."""
        target = await resolved(hook.url.get_secret_value(), self._settings.webhook_targets)
        body = orjson.dumps(
            event_document(delivery.event_id, delivery.occurred_at.isoformat(), delivery.event, delivery.body)
        )
        timestamp = int(self._now())
        request = self._client(hook, target).build_request(
            "POST",
            target.url,
            content=body,
            headers={
                "Host": target.host,
                "Content-Type": "application/json",
                "User-Agent": "nevstream-webhook/1",
                EVENT: delivery.event,
                EVENT_ID: str(delivery.event_id),
                TIMESTAMP: str(timestamp),
                SIGNATURE: signature(hook.secret.get_secret_value(), timestamp, body),
            },
            extensions={"sni_hostname": target.name},
        )
        response = await self._client(hook, target).send(request, stream=True)
        try:
            asked = response.headers.get("retry-after", "")
            return response.status_code, float(asked) if asked.isascii() and asked.isdigit() else None
        finally:
            await response.aclose()  # whatever the body says, nobody reads it

    def _client(self, hook: Webhook, target: Target) -> httpx.AsyncClient:
        """One per hook and name: a connection made for one name must not carry requests for another."""
        key = f"{hook.name} {target.name}"
        if key not in self._clients:
            most = self._settings.webhook_concurrency
            self._clients[key] = httpx.AsyncClient(
                trust_env=False,
                verify=self._trust,
                follow_redirects=False,
                timeout=self._settings.webhook_timeout_s,
                limits=httpx.Limits(max_connections=most, max_keepalive_connections=most),
            )
        return self._clients[key]

    def _said(self, hook: Webhook, trouble: Exception) -> str:
        """What went wrong, without the URL."""
        text = f"{type(trouble).__name__}: {trouble}".rstrip(": ")
        return text.replace(hook.url.get_secret_value(), "(url)")[:_ERROR_MAX].replace("\0", "")


class Untold:
    """An outbox with nothing in it, for trials."""

    async def claim(self, hook: str, most: int, lease_s: float) -> list[Delivery]:  # noqa: ARG002 - there is nothing
        return []

    async def record(self, sent: Sequence[Sent]) -> None:
        """Nothing was taken, so there is nothing to write."""

    async def close(self) -> None:
        """Nothing to release."""


def trusted(ca_file: str) -> ssl.SSLContext:
    """Whom receivers' certificates must be from.  Raises ``SettingsError``."""
    try:
        return ssl.create_default_context(cafile=ca_file) if ca_file else httpx.create_ssl_context(trust_env=False)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            f"alarms.webhook_ca_file = {ca_file!r} cannot be read: {error}; give a PEM file of certificates"
        ) from error


def masked(url: str) -> str:
    """Scheme and host of a URL: what may be shown."""
    parts = httpx.URL(url)
    return f"{parts.scheme}://{parts.netloc.decode()}/…"


def named(hooks: Sequence[Webhook], name: str | None) -> list[Webhook]:
    """The hook of this name, or all."""
    return [hook for hook in hooks if name is None or hook.name == name]
