"""One connection to the broker, kept: made, pinged, and made again when it is lost, ever more slowly.

TLS and credentials are read anew at each attempt, so that both can be changed without a restart.  A password must
never be logged.  What the packets say is ``bridge.py``'s part.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import ssl
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from schemas.link_events import Event
from schemas.mqtt.packets import Connect, encode_connect
from schemas.mqtt.wire import V5, V311
from services import metrics
from services.errors import SettingsError
from services.gateway.link import Link
from services.settings import Bridge as BridgeSettings
from services.settings import BridgeVersion

if TYPE_CHECKING:
    from services.gateway.bridge import BridgeDoor

log = logging.getLogger("nevstream.bridge")

# A connection that has lasted so long was a good one: the next pause is the shortest again.
_STEADY_S: Final = 10.0
_LOOK_EVERY_S: Final = 1.0


class Guess(Enum):
    """How sure it is that the broker speaks 3.1.1 only."""

    NONE = auto()
    TRIED = auto()  # 5 was not answered
    ASKED_AGAIN = auto()  # then 3.1.1 was, so somebody is there: 5 is asked for once more
    SURE = auto()


@dataclass(slots=True)
class Session:
    """One attempt, from its beginning to why it ended."""

    line: Line
    version: int
    keep_alive_s: int
    expiry_s: int
    sharing: bool = False
    present: bool | None = None  # had the broker kept the session?  None before its CONNACK
    subscribed: bool = False
    since_s: float = 0.0
    cause: str = ""
    detail: str = ""
    over: asyncio.Event = field(default_factory=asyncio.Event)


class Line:
    """``number`` tells the connections of a process apart.  ``leads``: takes everything when nothing is shared."""

    def __init__(self, door: BridgeDoor, number: int) -> None:
        self.number = number
        self.settings: BridgeSettings = door.bridge
        self.leads = door.index == 0 and number == 0
        self.client_id = f"{self.settings.client_id}-{door.index}-{number}"
        self.established = False  # it has been connected before
        self._door = door
        self._version = V311 if self.settings.version is BridgeVersion.V311 else V5
        self._guess = Guess.NONE
        self._random = secrets.SystemRandom()
        self._away_told = False

    async def run(self) -> None:
        """Connect, and connect again, until cancelled."""
        settings = self.settings
        if not self.leads and (self._version == V311 or not settings.share):
            log.warning("bridge %s: stays off, because the subscription is not shared", self.client_id)
            await asyncio.Event().wait()
        pause_s = settings.retry_first_s
        loop = asyncio.get_running_loop()
        while True:
            # under an allowlist that nobody has read yet every frame would be refused
            await self._door.registry_known.wait()
            session = Session(self, self._version, settings.keep_alive_s, settings.session_expiry_s)
            await self._attempt(session)
            if session.subscribed and loop.time() - session.since_s >= _STEADY_S:
                pause_s = settings.retry_first_s
            if session.cause == "broker_no_sharing":
                pause_s = settings.retry_max_s  # it may be another broker by then
            self._choose_version(session)
            wait_s = pause_s * self._random.uniform(0.5, 1.0)  # not all of a fleet of clients at the same moment
            self._tell_away(session, wait_s)
            metrics.BRIDGE_RECONNECTS.labels(session.cause).inc()
            await asyncio.sleep(wait_s)
            pause_s = min(2 * pause_s, settings.retry_max_s)

    async def _attempt(self, session: Session) -> None:
        """One connection, from its first byte to its last."""
        loop = asyncio.get_running_loop()
        settings, door = self.settings, self._door
        link = Link(door)
        link.extra, link.client = session, self.client_id
        host, port = settings.address
        secured: dict[str, Any] = {}
        try:
            greeting = self._connect_packet(session.version)
            if settings.tls:
                secured = {"ssl": client_context(settings), "ssl_handshake_timeout": settings.connect_timeout_s}
            async with asyncio.timeout(settings.connect_timeout_s):
                await loop.create_connection(lambda: link, host, port, **secured)
        except (OSError, TimeoutError, SettingsError) as error:
            text = (
                f"no answer within {settings.connect_timeout_s:g} s" if isinstance(error, TimeoutError) else str(error)
            )
            session.cause, session.detail = "broker_unreachable", text
            return
        if link.slot < 0:
            if not session.cause:  # else it was lost again at once
                session.cause, session.detail = "limit", "gateway.limits.connections_max connections are open"
            return
        link.write(greeting)
        await self._until_over(link, session)

    async def _until_over(self, link: Link, session: Session) -> None:
        loop = asyncio.get_running_loop()
        pinged_s = loop.time()
        in_flight = metrics.BRIDGE_IN_FLIGHT.labels(str(self.number))
        try:
            while not session.over.is_set():
                try:
                    async with asyncio.timeout(_LOOK_EVERY_S):
                        await session.over.wait()
                except TimeoutError:
                    now_s = loop.time()
                    if session.subscribed and session.keep_alive_s and now_s - pinged_s >= session.keep_alive_s / 2:
                        self._door.ping(link)
                        pinged_s = now_s
                if link.slot >= 0:
                    in_flight.set(int(self._door.rows.unacked[link.slot]))
        finally:
            in_flight.set(0)

    def _connect_packet(self, version: int) -> bytes:
        settings = self.settings
        values = {}
        if version == V5:
            values = {
                "session_expiry_interval": settings.session_expiry_s,
                "receive_maximum": settings.receive_maximum,
            }
        return encode_connect(
            Connect(
                self.client_id,
                version,
                clean_start=False,
                keep_alive_s=settings.keep_alive_s,
                username=settings.username or None,
                password=password_of(settings),
                properties=values,
            )
        )

    @property
    def doubts(self) -> bool:
        """This 3.1.1 is a guess: 5 was not answered, perhaps because nobody was there to answer."""
        return self._guess is Guess.TRIED

    def _choose_version(self, session: Session) -> None:
        """With version = auto: the other version when the broker did not understand this one."""
        if self.settings.version is not BridgeVersion.AUTO:
            return
        # some brokers do not answer what they do not know: rumqttd hangs up, amqtt waits for ever
        unanswered = session.cause in ("broker_closed", "timeout") and session.present is None
        if session.version == V5:
            if session.cause == "broker_version":
                self._version, self._guess = V311, Guess.SURE
            elif unanswered:
                # so does a load balancer without a broker behind it: 3.1.1 must not be what remains of that
                again = self._guess is Guess.ASKED_AGAIN
                self._version, self._guess = V311, Guess.SURE if again else Guess.TRIED
        elif session.cause == "broker_doubted":
            self._version, self._guess = V5, Guess.ASKED_AGAIN
        elif unanswered or session.cause in ("broker_version", "broker_no_sharing"):
            self._version, self._guess = V5, Guess.NONE

    def _tell_away(self, session: Session, wait_s: float) -> None:
        detail = f": {session.detail}" if session.detail else ""
        expected = session.cause in ("broker_no_sharing", "broker_doubted")
        level = logging.INFO if expected else logging.WARNING
        log.log(level, "bridge %s: %s%s; again in %.1f s", self.client_id, session.cause, detail, wait_s)
        if expected:
            return
        if session.subscribed:
            self._away_told = False  # the event of its end has been told
        elif not self._away_told:
            self._away_told = True  # once, however often it is tried
            told = Link(self._door)
            told.client, told.peer = self.client_id, ":".join(map(str, self.settings.address))
            self._door.events.tell(Event.REFUSED, self._door.number, session.cause, link=told, detail=session.detail)


def password_of(settings: BridgeSettings) -> bytes | None:
    """The password to send, None for none.  Raises ``SettingsError`` when its file cannot be read."""
    if given := settings.password.get_secret_value():
        return given.encode()
    if not settings.password_file:
        return None
    try:
        return Path(settings.password_file).read_bytes().rstrip(b"\r\n")
    except OSError as error:
        raise SettingsError(
            f"gateway.bridge.password_file: {settings.password_file} cannot be read ({error.strerror})"
        ) from error


def check(settings: BridgeSettings) -> None:
    """Read the files that the settings name, once, before any attempt.  Raises ``SettingsError``."""
    password_of(settings)
    if settings.tls:
        client_context(settings)


def client_context(settings: BridgeSettings) -> ssl.SSLContext:
    """TLS towards the broker, whose certificate must be good for its host.  Raises ``SettingsError``."""
    try:
        context = ssl.create_default_context(cafile=settings.ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"gateway.bridge.ca_file: {settings.ca_file} cannot be used ({error})") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.cert_file:
        try:
            context.load_cert_chain(settings.cert_file, settings.key_file or None, password=_no_password)
        except (OSError, ssl.SSLError, ValueError) as error:
            raise SettingsError(
                f"gateway.bridge.cert_file: {settings.cert_file} and its key cannot be used ({error}): both must be "
                "PEM, readable, without a passphrase, and belong together"
            ) from error
    return context


def _no_password() -> bytes:
    """OpenSSL would ask on the terminal: a service has nobody to answer."""
    raise ValueError("the private key is encrypted")
