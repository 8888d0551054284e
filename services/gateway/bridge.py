"""The bridge: a client of a broker that vehicles publish to already, MQTT 5 and 3.1.1.

To the gateway it is a door like the others, but for who connects: frames go the same way into the journal, and a
PUBLISH is acknowledged when that is durable, never before.  What is not acknowledged the broker sends again.  While the
journal is away the broker's connections are not read.  ``bridge_line.py`` keeps the connections; this file is what is
said on them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any, Final

import numpy as np

from schemas.batch import I64, U8, VIN_BYTES
from schemas.batch import Door as DoorNumber
from schemas.link_events import Event
from schemas.mqtt.packets import (
    PINGREQ,
    Subscribe,
    encode_disconnect,
    encode_subscribe,
    parse_connack,
    parse_disconnect,
    parse_suback,
)
from schemas.mqtt.wire import V5, V311, Code, MqttError, PacketType, Properties
from schemas.reasons import CODE as REASON
from services import metrics
from services.gateway.admission import Admission, Verdict
from services.gateway.bridge_line import Line, Session
from services.gateway.bridge_scan import SKIP_COLUMNS, bridge_scan
from services.gateway.bridge_topics import Patterns
from services.gateway.columns import ACK_COLUMNS, F_REASON, F_SLOT, F_SOURCE
from services.gateway.connections import State
from services.gateway.door import BaseDoor
from services.gateway.events import Events
from services.gateway.intake import Intake
from services.gateway.link import Link
from services.gateway.scan_mqtt import VIOLATION
from services.settings import Settings

log = logging.getLogger("nevstream.bridge")

_SUBSCRIBE_ID: Final = 1  # the only packet identifier that we ever choose
_RETAIN_IF_NEW: Final = 1 << 4  # retained messages with a subscription that is new, not with each connection
_GOODBYE_S: Final = 1.0
_ALL_PAUSES: Final = (1 << 31) - 1
_SOURCES_MAX: Final = 4096  # vehicles of refused frames that one group names; beyond it, only the broker

# CONNACK of 3.1.1 (table 3.1) in the codes of 5.
_CODES_311: Final = {
    1: Code.UNSUPPORTED_PROTOCOL_VERSION,
    2: Code.CLIENT_IDENTIFIER_NOT_VALID,
    3: Code.SERVER_UNAVAILABLE,
    4: Code.BAD_USER_NAME_OR_PASSWORD,
    5: Code.NOT_AUTHORIZED,
}
_REMEDIES: Final = {
    Code.BAD_USER_NAME_OR_PASSWORD: "check gateway.bridge.username and password",
    Code.NOT_AUTHORIZED: "the broker's rules must let this user connect and subscribe to gateway.bridge.topics",
    Code.CLIENT_IDENTIFIER_NOT_VALID: "choose another gateway.bridge.client_id",
    Code.SESSION_TAKEN_OVER: "another client has the same identifier: give each machine its own "
    "gateway.bridge.client_id",
    Code.SHARED_SUBSCRIPTIONS_NOT_SUPPORTED: 'set gateway.bridge.share = "" and connections = 1',
}
_FOR_TOPIC: Final = (REASON["unknown_topic"], REASON["bad_vin"])


class BridgeDoor(BaseDoor):
    """``index`` is the number of this gateway process: it is part of the client identifiers."""

    name = "mqtt_bridge"
    number = int(DoorNumber.MQTT_BRIDGE)
    of_vehicles = False  # one connection carries a whole fleet

    def __init__(self, settings: Settings, intake: Intake, admission: Admission, events: Events, index: int) -> None:
        super().__init__(settings, intake, admission, events)
        self.bridge = settings.gateway.bridge
        self.index = index
        self.topics = Patterns(self.bridge.topics)
        self._limits: I64 = np.array(
            [
                self.limits.packet_bytes_max,
                self.limits.frame_bytes_max,
                self.limits.json_bytes_max,
                self.rows.partitions,
            ],
            np.int64,
        )
        rows = len(intake.frames)
        self._acks: I64 = np.empty((rows, ACK_COLUMNS), np.int64)
        self._vins: U8 = np.zeros((rows, VIN_BYTES), np.uint8)
        self._topics: I64 = np.zeros((rows, 2), np.int64)
        self._own_rows: I64 = np.arange(rows, dtype=np.int64)
        self._skips: I64 = np.zeros((self.rows.rows_max, SKIP_COLUMNS), np.int64)
        self._named: dict[tuple[int, bytes], int] = {}
        self._named_in: object = None
        self._leaving: list[Session] = []
        self.registry_known = asyncio.Event()
        self.lines = [Line(self, number) for number in range(self.bridge.connections)]

    def tasks(self) -> list[asyncio.Task[None]]:
        """Start the connections; each task ends when it is cancelled."""
        if self.admission.verdict("") is not Verdict.CANNOT_SAY:
            self.registry_known.set()
        return [asyncio.create_task(line.run(), name=f"gateway bridge {line.number}") for line in self.lines]

    # -- hot path ----------------------------------------------------------------------------------
    def scan(self, arena: U8, segments: I64) -> tuple[int, int]:
        rows, intake, topics = self.rows, self.intake, self.topics
        bridge_scan(
            arena,
            segments,
            self._limits,
            rows.state,
            rows.five,
            rows.vin,
            self._skips,
            topics.patterns,
            topics.levels,
            topics.text,
            intake.frames,
            self._vins,
            self._topics,
            self._acks,
            intake.slow,
            self.counts,
        )
        found = int(self.counts[0])
        if found and self.admission.allowlist:
            accepted = np.flatnonzero(intake.frames[:found, F_REASON] == 0)
            known = self.admission.known(self._vins[accepted].view(f"S{VIN_BYTES}")[:, 0])
            intake.frames[accepted[~known], F_REASON] = REASON["unknown_vin"]
        return found, int(self.counts[2])

    def settle(self, frames: int) -> None:
        intake = self.intake
        group = intake.committer.filling
        if frames:
            metrics.BRIDGE_LAST_MESSAGE.set(intake.received_us / 1e6)
            rows = intake.frames[:frames]
            for row in np.flatnonzero(rows[:, F_REASON]).tolist():
                rows[row, F_SOURCE] = self._source(row)
            # a JSON payload goes into the journal behind its VIN: here that is the message's, not the connection's
            rows[:, F_SLOT] = self._own_rows[:frames]
            received = self.number, intake.received_us, intake.now_s
            group.absorb(intake.arena, intake.frames, frames, *received, self._vins)
        acks = int(self.counts[1])
        if acks:
            group.answer_publishes(self._acks, acks, self.rows.serial, self.rows.unacked)

    def _source(self, row: int) -> int:
        """Number of a refused frame's source in the filling group: the broker, and whom the topic names."""
        frame = self.intake.frames[row]
        sources = self.intake.committer.filling.sources
        if self._named_in is not sources:
            self._named_in, self._named = sources, {}
        at, size = self._topics[row].tolist()
        # what names nobody is told apart by its topic
        told = int(frame[F_REASON]) in _FOR_TOPIC
        key = bytes(self.intake.view[at : at + min(size, 100)]) if told else bytes(self._vins[row])
        slot = int(frame[F_SLOT])
        known = self._named.get((slot, key))
        if known is not None:
            return known
        if len(self._named) >= _SOURCES_MAX:
            return int(frame[F_SOURCE])
        link = self.rows.links[slot]
        assert link is not None
        client = f"{link.client} {key.decode('utf-8', 'replace')}" if told else link.client
        vin = "" if told else key.rstrip(b"\0").decode("ascii", "replace")
        sources.append({"peer": link.peer, "vin": vin, "client": client[:128]})
        self._named[slot, key] = len(sources)
        return len(sources)

    # -- everything else ---------------------------------------------------------------------------
    def handle(self, link: Link, segment: I64, kind: int, start: int, length: int, code: int) -> None:  # noqa: ARG002
        if self.rows.state[link.slot] == State.CLOSING:
            return
        session: Session = link.extra
        if kind == VIOLATION:
            self._violated(link, Code(code), "a packet that is not allowed here")
            return
        body = bytes(self.intake.view[start : start + length])
        try:
            if kind == PacketType.CONNACK:
                self._connected(link, session, body)
            elif kind == PacketType.SUBACK:
                self._subscribed(link, session, body)
            else:
                told = parse_disconnect(body, session.version)
                self.end(link, "broker_closed", _said("DISCONNECT", told.code, told.properties))
        except MqttError as error:
            self._violated(link, error.code, str(error))

    def _connected(self, link: Link, session: Session, body: bytes) -> None:
        # a broker that does not know 5 answers as 3.1.1 has it
        bare = len(body) == 2
        told = parse_connack(body, V311 if bare else session.version)
        if told.code:
            code = _CODES_311.get(told.code, told.code)
            cause = "broker_version" if code == Code.UNSUPPORTED_PROTOCOL_VERSION else "broker_refused"
            self.end(link, cause, _said("CONNACK", code, told.properties))
            return
        found = told.properties
        session.present = told.session_present
        if session.line.doubts:
            self._disconnect(link, "broker_doubted", "it answers 3.1.1; whether it does 5 is asked once more")
            return
        session.sharing = (
            session.version == V5 and bool(self.bridge.share) and bool(found.get("shared_subscription_available", 1))
        )
        if not session.sharing and not session.line.leads:
            self._disconnect(link, "broker_no_sharing", "without shared subscriptions one connection takes all")
            return
        if not found.get("wildcard_subscription_available", 1):
            self._disconnect(link, "broker_refused", "the broker has no wildcard subscriptions")
            return
        session.keep_alive_s = int(found.get("server_keep_alive", session.keep_alive_s))
        session.expiry_s = int(found.get("session_expiry_interval", session.expiry_s))
        link.client = str(found.get("assigned_client_identifier", link.client))
        self.rows.state[link.slot] = State.PLATFORM
        self.alive(link, self.bridge.connect_timeout_s)  # for the SUBACK
        options = self.bridge.qos | (_RETAIN_IF_NEW if session.version == V5 else 0)
        share = f"$share/{self.bridge.share}/" if session.sharing else ""
        filters = tuple((share + one, options) for one in self.topics.filters)
        link.write(encode_subscribe(Subscribe(_SUBSCRIBE_ID, filters), session.version))

    def _subscribed(self, link: Link, session: Session, body: bytes) -> None:
        told = parse_suback(body, session.version)
        refused = [(one, code) for one, code in zip(self.topics.filters, told.codes, strict=False) if code >= 0x80]
        if refused or len(told.codes) != len(self.topics.filters):
            topic, code = refused[0] if refused else ("", Code.PROTOCOL_ERROR)
            self._disconnect(link, "broker_refused", f"{topic}: {_said('SUBACK', code, told.properties)}")
            return
        if min(told.codes) < self.bridge.qos:
            log.warning(
                "bridge %s: the broker grants QoS %d, not %d (gateway.bridge.qos)%s",
                link.client,
                min(told.codes),
                self.bridge.qos,
                ": what is published while we are away is lost" if not min(told.codes) else "",
            )
        if not session.subscribed:
            session.subscribed = True
            session.since_s = self.intake.now_s
            self.alive(link, 1.5 * session.keep_alive_s if session.keep_alive_s else np.inf)
            metrics.BRIDGE_CONNECTIONS.inc()
            self._tell_connected(link, session)

    def _tell_connected(self, link: Link, session: Session) -> None:
        kept = "session kept" if session.present else "new session"
        shared = f"shared as {self.bridge.share}" if session.sharing else "not shared"
        how = f"MQTT {'5' if session.version == V5 else '3.1.1'}, {shared}, QoS {self.bridge.qos}, {kept}"
        log.info("bridge %s: connected to %s (%s)", link.client, link.peer, how)
        if session.line.established and not session.present and self.bridge.qos:
            log.warning(
                "bridge %s: the broker has forgotten our session; what was published while we were away is lost",
                link.client,
            )
            how += "; the broker had forgotten the session before"
        session.line.established = True
        self.events.tell(Event.CONNECTED, self.number, link=link, detail=how)

    # -- endings -----------------------------------------------------------------------------------
    def opened(self, link: Link) -> None:
        super().opened(link)
        if link.slot >= 0:
            self._skips[link.slot] = 0
            self.meters.platform(link.slot)  # a broker speaks for a fleet: no vehicle's rates hold
            self.rows.five[link.slot] = link.extra.version == V5
            self.rows.timeout_s[link.slot] = self.bridge.connect_timeout_s

    def gone(self, link: Link, cause: str, detail: str = "") -> bool:
        session: Session = link.extra
        if session.cause:
            return False
        session.cause = "broker_closed" if cause == "peer" else cause
        session.detail = detail
        if session.subscribed:
            metrics.BRIDGE_CONNECTIONS.dec()
            self.events.settle_errors(self.number, link)
            self.events.tell(Event.CLOSED, self.number, session.cause, link=link, detail=detail)
        return True

    def ended(self, link: Link) -> None:
        """The broker has hung up: it takes no answers any more, so there is nothing to wait for."""
        if link.tick == self.intake.tick_number:
            self.intake.tick()
        if link.slot >= 0:
            self.gone(link, "peer")
        link.close()

    def closed(self, link: Link) -> None:
        super().closed(link)
        link.extra.over.set()

    def overdue(self, link: Link) -> None:
        what = "nothing came for 1.5 x keep-alive" if link.extra.subscribed else "no answer to CONNECT or SUBSCRIBE"
        self.refused("timeout")
        self._disconnect(link, "timeout", what, Code.KEEP_ALIVE_TIMEOUT)

    def farewell(self, link: Link, cause: str, text: str) -> None:
        self._disconnect(link, cause, text, Code.IMPLEMENTATION_SPECIFIC)

    def shut_down(self, link: Link) -> None:
        """Say goodbye and let the broker close: closed by us, a socket with unread bytes would take our last
        acknowledgements along."""
        session: Session = link.extra
        if not session.subscribed:
            self._disconnect(link, "shutdown")
            return
        link.write(encode_disconnect(session.version))
        self.gone(link, "shutdown")
        self.shut(link)
        link.resume(_ALL_PAUSES)
        self._leaving.append(session)

    async def left(self) -> None:
        """Returns when the broker has closed the connections that were shut down, or has had its time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GOODBYE_S):
                for session in self._leaving:
                    await session.over.wait()

    def unregistered(self) -> None:
        """The registry has been read: from now on it is known whose frames are taken."""
        self.registry_known.set()

    def ping(self, link: Link) -> None:
        link.write(PINGREQ)

    def _violated(self, link: Link, code: Code, text: str) -> None:
        self.refused("violation")
        self._disconnect(link, "violation", f"{text} ({code.name.lower()})", code)

    def _disconnect(self, link: Link, cause: str, detail: str = "", code: Code = Code.SUCCESS) -> None:
        """Say goodbye, so that the broker notices; the session stays as it was asked for."""
        if self.rows.state[link.slot] == State.PLATFORM or link.extra.present is not None:
            link.write(encode_disconnect(link.extra.version, code))
        self.end(link, cause, detail)


def _said(packet: str, code: int, found: Properties) -> str:
    """What the broker answered, in words."""
    name = Code(code).name.lower().replace("_", " ") if code in set(Code) else "unknown code"
    text = f"{packet} 0x{code:02X} {name}"
    extra: dict[str, Any] = {key: found[key] for key in ("reason_string", "server_reference") if key in found}
    text += "".join(f", {value!r}" for value in extra.values())
    return text + (f"; {_REMEDIES[Code(code)]}" if code in _REMEDIES else "")
