"""The MQTT listener: sessions of vehicles that publish under their own VIN, MQTT 3.1.1 and 5, QoS 0, 1 and 2.

Exactly once (QoS 2) needs no memory of packet identifiers here: a publish that comes again before its PUBREL is
journaled again and answered with PUBREC again, and the pipeline stores it once, whatever the QoS.
It is not a broker: nothing is routed between clients, nothing is retained, no session outlives its
connection.  Publishes stay in the kernel; this file is about everything else.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from schemas.batch import I64, U8
from schemas.batch import Door as DoorNumber
from schemas.gbt32960.commands import EDITION_OF_MARK
from schemas.gbt32960.downlink import KINDS
from schemas.gbt32960.frame import AT_COMMAND, FRAME_BYTES_MIN
from schemas.link_events import Event
from schemas.mqtt.packets import (
    PINGRESP,
    Connect,
    Publish,
    Will,
    connect_version,
    encode_connack,
    encode_disconnect,
    encode_publish,
    encode_suback,
    encode_unsuback,
    packet,
    parse_connect,
    parse_disconnect,
    parse_puback,
    parse_subscribe,
    parse_unsubscribe,
)
from schemas.mqtt.topics import downlink, is_own_downlink, matches
from schemas.mqtt.wire import V5, V311, Code, MqttError, PacketType
from services.gateway.admission import Admission, Verdict, is_vin
from services.gateway.columns import ACK_COLUMNS, F_LENGTH, F_REASON, F_SLOT, F_START
from services.gateway.connections import ALIASES, State
from services.gateway.door import DENIALS, BaseDoor
from services.gateway.events import Events
from services.gateway.intake import Intake
from services.gateway.link import WAITING, Link
from services.gateway.scan_mqtt import FOREIGN_TOPIC, VIOLATION, mqtt_scan
from services.gateway.tokens import BadToken, VehicleTokens
from services.settings import MqttAuth, Settings

log = logging.getLogger("nevstream.gateway")

_FILTERS_MAX: Final = 16
_TIMER_MAX_S: Final = 60.0
_ANSWERS: Final = [int(command) for command in KINDS.values()]
_MARKS: Final = list(EDITION_OF_MARK)

_REFUSAL: Final = {
    Verdict.UNKNOWN_VIN: (
        Code.NOT_AUTHORIZED,
        "unknown_vin",
        "the VIN is not in the registry: import the vehicle first",
    ),
    Verdict.BAD_PASSWORD: (Code.BAD_USER_NAME_OR_PASSWORD, "bad_password", "wrong user name (the VIN) or password"),
    Verdict.CANNOT_SAY: (Code.SERVER_UNAVAILABLE, "store_away", "the registry cannot be read now: try again later"),
}

# What a client is told when it breaks the protocol.
_VIOLATIONS: Final = {
    Code.MALFORMED_PACKET: "a packet that cannot be parsed",
    Code.PROTOCOL_ERROR: "a packet that is not allowed here",
    Code.PACKET_TOO_LARGE: "the packet is larger than maximum packet size (gateway.limits.packet_bytes_max)",
    Code.RETAIN_NOT_SUPPORTED: "nothing is retained here: publish without the retain flag",
    Code.TOPIC_ALIAS_INVALID: f"a topic alias beyond topic alias maximum, {ALIASES}",
    Code.TOPIC_NAME_INVALID: "a topic name may not hold wildcards",
    Code.RECEIVE_MAXIMUM_EXCEEDED: "more publishes un-acknowledged than receive maximum (gateway.mqtt.receive_maximum)",
}


def _identifiers(last: int) -> Iterator[int]:
    """Packet identifiers behind ``last``, round and round."""
    while True:
        last = last % 0xFFFF + 1
        yield last


@dataclass(slots=True)
class Session:
    """What a connected client asked for in its CONNECT and since."""

    version: int
    will: Will | None
    packet_bytes_max: int
    receive_maximum: int = 0xFFFF  # commands at QoS 1 that the client takes before it has acknowledged one
    expires: bool = False  # it asked for a session that outlives the connection
    filters: dict[str, int] = field(default_factory=dict)  # topic filter → granted QoS
    lowered: int = 0  # packet identifier of the command that was published last
    ending: asyncio.TimerHandle | None = None  # when its token ends
    unacked: set[int] = field(default_factory=set)  # those of commands at QoS 1 that wait for their PUBACK


class MqttDoor(BaseDoor):
    name = "mqtt"
    number = int(DoorNumber.MQTT)

    def __init__(self, settings: Settings, intake: Intake, admission: Admission, events: Events) -> None:
        super().__init__(settings, intake, admission, events)
        self.mqtt = settings.gateway.mqtt
        self._limits: I64 = np.array(
            [
                self.limits.packet_bytes_max,
                self.limits.frame_bytes_max,
                self.mqtt.receive_maximum,
                self.limits.json_bytes_max,
            ],
            np.int64,
        )
        self._acks: I64 = np.empty((len(intake.frames), ACK_COLUMNS), np.int64)
        self._verifications: set[asyncio.Task[None]] = set()
        self._tokens = VehicleTokens(self.mqtt) if self.mqtt.auth is MqttAuth.TOKEN and self.mqtt.enabled else None

    # -- hot path ----------------------------------------------------------------------------------
    def scan(self, arena: U8, segments: I64) -> tuple[int, int]:
        rows, intake = self.rows, self.intake
        mqtt_scan(
            arena,
            segments,
            self._limits,
            rows.state,
            rows.five,
            rows.vin,
            rows.partition,
            rows.unacked,
            rows.aliases,
            intake.frames,
            self._acks,
            intake.slow,
            self.counts,
        )
        return int(self.counts[0]), int(self.counts[2])

    def settle(self, frames: int) -> None:
        intake = self.intake
        group = intake.committer.filling
        if frames:
            received = self.number, intake.received_us, intake.now_s
            group.absorb(intake.arena, intake.frames, frames, *received, self.rows.vin)
            if self.waits_for_answers():
                self._match_answers(frames)
        acks = int(self.counts[1])
        if acks:
            group.answer_publishes(self._acks, acks, self.rows.serial, self.rows.unacked)

    # -- everything else ---------------------------------------------------------------------------
    def handle(self, link: Link, segment: I64, kind: int, start: int, length: int, code: int) -> None:  # noqa: ARG002
        if self.rows.state[link.slot] == State.CLOSING:
            return
        if kind == PacketType.PINGREQ:
            link.write_soon(PINGRESP * code)
            return
        if kind == VIOLATION:
            self._violated(link, Code(code), _VIOLATIONS.get(Code(code), "a packet that is not allowed here"))
            return
        if kind == FOREIGN_TOPIC:
            self.refused("foreign_topic")
            self._disconnect(link, Code.NOT_AUTHORIZED, "a vehicle publishes under its own VIN only", "foreign_topic")
            return
        body = bytes(self.intake.view[start : start + length])
        try:
            match kind:
                case PacketType.CONNECT:
                    self._connect(link, body)
                case PacketType.SUBSCRIBE:
                    self._subscribe(link, body)
                case PacketType.UNSUBSCRIBE:
                    self._unsubscribe(link, body)
                case PacketType.PUBACK:
                    self._acknowledged(link, body)
                case PacketType.PUBREL:
                    self._released(link, body)
                case _:
                    self._client_disconnects(link, body)
        except MqttError as error:
            if kind == PacketType.CONNECT:
                self._connect_violated(link, body, error)
            else:
                self._violated(link, error.code, str(error))

    def _connect(self, link: Link, body: bytes) -> None:
        connect = parse_connect(body)
        five = connect.version == V5
        self.rows.five[link.slot] = five
        link.client = connect.client_id[:128]
        link.extra = Session(
            connect.version,
            connect.will,
            int(connect.properties.get("maximum_packet_size", 0)) or 1 << 28,
            int(connect.properties.get("receive_maximum", 0)) or 0xFFFF,
            bool(connect.properties.get("session_expiry_interval")),
        )
        if link.denied:
            code = Code.CONNECTION_RATE_EXCEEDED if link.denied == "connect_rate" else Code.QUOTA_EXCEEDED
            self._refuse(link, connect.version, code, link.denied, DENIALS[link.denied], vin=claimed_vin(connect))
            return
        if "authentication_method" in connect.properties:
            self._refuse(
                link, connect.version, Code.BAD_AUTHENTICATION_METHOD, "auth_method", "use a user name and a password"
            )
            return
        if five and connect.will is not None and connect.will.retain:
            text = "nothing is retained here: a will without the retain flag, please"
            self._refuse(link, connect.version, Code.RETAIN_NOT_SUPPORTED, "will_retain", text)
            return
        if not connect.client_id and not connect.clean_start and not five:
            text = "an empty client identifier needs clean session (3.1.1, clause 3.1.3.1)"
            self._refuse(link, connect.version, Code.CLIENT_IDENTIFIER_NOT_VALID, "client_id", text)
            return
        username = connect.username or ""
        if self.mqtt.auth is MqttAuth.PASSWORD:
            if not is_vin(username):
                text = "the user name is not a VIN of 17 characters"
                self._refuse(link, connect.version, Code.BAD_USER_NAME_OR_PASSWORD, "bad_password", text)
                return
            vin = username
        else:
            vin = next((text for text in (username, connect.client_id) if is_vin(text)), "")
            if not vin:
                text = "neither the user name nor the client identifier is a VIN of 17 characters: vehicles only"
                self._refuse(link, connect.version, Code.CLIENT_IDENTIFIER_NOT_VALID, "not_a_vehicle", text)
                return
        verdict = self.admission.verdict(vin)
        certified = self.certified(link, vin, required=self.mqtt.auth is MqttAuth.CERTIFICATE)
        if certified:
            self._refuse(link, connect.version, Code.NOT_AUTHORIZED, "certificate", certified, vin=vin)
        elif verdict is not Verdict.ADMITTED:
            self._refuse(link, connect.version, *_REFUSAL[verdict], vin=vin)
        elif self.mqtt.auth in (MqttAuth.PASSWORD, MqttAuth.TOKEN):
            self.rows.state[link.slot] = State.WAITING
            self.rows.timeout_s[link.slot] = np.inf
            link.pause(WAITING)
            task = asyncio.get_running_loop().create_task(self._verify(link, connect, vin), name=f"verify {vin}")
            self._verifications.add(task)
            task.add_done_callback(self._verifications.discard)
        else:
            self._accept(link, connect, vin)

    async def _verify(self, link: Link, connect: Connect, vin: str) -> None:
        verdict, why, ends_at = Verdict.BAD_PASSWORD, "", float("inf")
        if self._tokens is None:
            verdict = await self.admission.verify(vin, connect.password)
        else:
            try:
                ends_at = await self._tokens.verify(vin, connect.password)
                verdict = Verdict.ADMITTED
            except BadToken as error:
                why = str(error)
        if link.slot < 0 or self.rows.state[link.slot] != State.WAITING:
            return  # the client did not wait
        if verdict is Verdict.ADMITTED:
            self._accept(link, connect, vin)
            self._end_at(link, ends_at)
            link.resume(WAITING)
            self.intake.feed(link, b"")  # what it sent behind its CONNECT
        elif why:
            self._refuse(link, connect.version, Code.BAD_USER_NAME_OR_PASSWORD, "bad_token", why, vin=vin)
        else:
            self._refuse(link, connect.version, *_REFUSAL[verdict], vin=vin)

    def _end_at(self, link: Link, ends_at: float) -> None:
        """End the connection when its token does (Unix time)."""
        session: Session = link.extra
        if ends_at == float("inf") or link.slot < 0:
            return
        left_s = ends_at - time.time()
        if left_s > 0:
            wait_s = min(left_s, _TIMER_MAX_S)  # looked at again then: the clock may be set meanwhile
            session.ending = asyncio.get_running_loop().call_later(wait_s, self._end_at, link, ends_at)
        elif self.rows.state[link.slot] == State.VEHICLE:
            self._disconnect(link, Code.NOT_AUTHORIZED, "the token has expired: connect with a new one", "bad_token")

    def closed(self, link: Link) -> None:
        ending = link.extra.ending if isinstance(link.extra, Session) else None
        if ending is not None:
            ending.cancel()
        super().closed(link)

    def stop_verifying(self) -> None:
        for task in self._verifications:
            task.cancel()

    def _accept(self, link: Link, connect: Connect, vin: str) -> None:
        longest_s = self.mqtt.keep_alive_max_s
        granted_s = min(connect.keep_alive_s or longest_s, longest_s)
        values: dict[str, Any] = {}
        if connect.version == V5:
            if connect.properties.get("session_expiry_interval"):
                values["session_expiry_interval"] = 0
            values["receive_maximum"] = self.mqtt.receive_maximum
            values["retain_available"] = 0
            values["maximum_packet_size"] = self.limits.packet_bytes_max
            if not connect.client_id:
                link.client = values["assigned_client_identifier"] = f"nevstream-{vin}"
            values["topic_alias_maximum"] = ALIASES
            values["subscription_identifier_available"] = 0
            values["shared_subscription_available"] = 0
            if granted_s != connect.keep_alive_s:
                values["server_keep_alive"] = granted_s
        answer = encode_connack(connect.version, Code.SUCCESS, values)
        if len(answer) > link.extra.packet_bytes_max:
            # what it says a client must know; so whoever is connected can be sent any answer but a long SUBACK
            text = (
                f"maximum packet size {link.extra.packet_bytes_max} is too small for a CONNACK of {len(answer)} bytes"
            )
            self._refuse(link, connect.version, Code.PACKET_TOO_LARGE, "packet_size", text, vin)
            return
        how = f"MQTT {'5' if connect.version == V5 else '3.1.1'}, keep-alive {granted_s} s"
        self.bind(link, State.VEHICLE, vin.encode("ascii"), 1.5 * granted_s, how)
        link.write(answer)

    def _refuse(self, link: Link, version: int, code: Code, cause: str, text: str, vin: str = "") -> None:
        self.turn_away(link, cause, vin, text)
        answer = encode_connack(version, code, {"reason_string": text})
        if len(answer) > link.extra.packet_bytes_max:
            answer = encode_connack(version, code)
        if len(answer) <= link.extra.packet_bytes_max:
            link.write(answer)
        self.end(link)

    def _connect_violated(self, link: Link, body: bytes, error: MqttError) -> None:
        """Answer a CONNECT that cannot be accepted: in the version it asks for, as far as that can be read."""
        self.turn_away(link, "violation", detail=str(error))
        version = V5 if connect_version(body) >= V5 else V311
        # 3.1.1 has a return code for a wrong level only; anything else is met by closing (clause 3.1.4)
        if version == V5 or error.code == Code.UNSUPPORTED_PROTOCOL_VERSION:
            link.write(encode_connack(version, error.code, {"reason_string": str(error)[:200]}))
        self.end(link)

    def _subscribe(self, link: Link, body: bytes) -> None:
        session: Session = link.extra
        asked = parse_subscribe(body, session.version)
        if "subscription_identifier" in asked.properties:
            raise MqttError(Code.SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED, "subscription identifiers are not supported")
        codes: list[int] = []
        for topic_filter, options in asked.filters:
            if topic_filter.startswith("$share/"):
                codes.append(Code.SHARED_SUBSCRIPTIONS_NOT_SUPPORTED)
            elif not is_own_downlink(topic_filter, link.vin):
                codes.append(Code.NOT_AUTHORIZED)
            elif len(session.filters) >= _FILTERS_MAX and topic_filter not in session.filters:
                codes.append(Code.QUOTA_EXCEEDED)
            else:
                session.filters[topic_filter] = min(options & 3, 1)
                codes.append(session.filters[topic_filter])
        self._answer(link, encode_suback(asked.packet_id, codes, session.version))

    def _unsubscribe(self, link: Link, body: bytes) -> None:
        session: Session = link.extra
        asked = parse_unsubscribe(body, session.version)
        had = [session.filters.pop(topic_filter, None) is not None for topic_filter in asked.filters]
        codes = [Code.SUCCESS if one else Code.NO_SUBSCRIPTION_EXISTED for one in had]
        self._answer(link, encode_unsuback(asked.packet_id, codes, session.version))

    def _answer(self, link: Link, answer: bytes) -> None:
        """Write ``answer``, unless the client takes no packet of its size."""
        if len(answer) <= link.extra.packet_bytes_max:
            link.write(answer)
        else:
            text = f"an answer of {len(answer)} bytes exceeds the maximum packet size of {link.extra.packet_bytes_max}"
            self._violated(link, Code.PACKET_TOO_LARGE, text)

    def _released(self, link: Link, body: bytes) -> None:
        """PUBREL with a reason code; those without stay in the kernel."""
        released = parse_puback(body, V5)
        if not released.packet_id or released.code not in (Code.SUCCESS, Code.PACKET_IDENTIFIER_NOT_FOUND):
            text = f"PUBREL with identifier {released.packet_id} and reason code 0x{released.code:02X} (clause 3.6.2.1)"
            raise MqttError(Code.PROTOCOL_ERROR, text)
        answer = packet(PacketType.PUBCOMP, released.packet_id.to_bytes(2, "big"))
        self.intake.committer.filling.answer(link.slot, int(self.rows.serial[link.slot]), answer)

    # -- commands that go down -------------------------------------------------------------------
    def reachable(self, vin: str) -> Link | None:
        link = self.by_vin.get(vin)
        return link if link is not None and self._down_qos(link) is not None else None

    def lower(self, link: Link, frame: bytes) -> None:
        session: Session = link.extra
        qos = self._down_qos(link) or 0
        if qos and len(session.unacked) >= session.receive_maximum:
            return  # it would be told that this is too much: an attempt that reached nobody
        if qos:
            session.lowered = next(n for n in _identifiers(session.lowered) if n not in session.unacked)
        publish = Publish(downlink(link.vin), frame, qos, session.lowered if qos else 0)
        sent = encode_publish(publish, session.version)
        if len(sent) > session.packet_bytes_max:
            return  # the client takes no packet of this size (clause 3.1.2.11.4)
        if qos:
            session.unacked.add(session.lowered)
        link.write(sent)

    def _down_qos(self, link: Link) -> int | None:
        """The QoS at which the client takes commands, None when it has not subscribed to them."""
        topic = downlink(link.vin)
        return max((qos for one, qos in link.extra.filters.items() if matches(one, topic)), default=None)

    def _acknowledged(self, link: Link, body: bytes) -> None:
        session: Session = link.extra
        ack = parse_puback(body, session.version)
        session.unacked.discard(ack.packet_id)
        if ack.packet_id == session.lowered and ack.code < Code.UNSPECIFIED_ERROR:
            self.delivered(link)

    def _match_answers(self, frames: int) -> None:
        """Look for answers to commands; only while a command is in flight over this door."""
        arena, rows = self.intake.arena, self.intake.frames[:frames]
        long = rows[(rows[:, F_REASON] == 0) & (rows[:, F_LENGTH] >= FRAME_BYTES_MIN)]
        start = long[:, F_START]
        marked = (arena[start] == arena[start + 1]) & np.isin(arena[start], _MARKS)
        for row in long[marked & np.isin(arena[start + AT_COMMAND], _ANSWERS)].tolist():
            link = self.rows.links[row[F_SLOT]]
            if link is not None:
                self.answered(link, arena[row[F_START] : row[F_START] + row[F_LENGTH]].tobytes())

    def _client_disconnects(self, link: Link, body: bytes) -> None:
        session: Session = link.extra
        goodbye = parse_disconnect(body, session.version)
        if goodbye.properties.get("session_expiry_interval") and not session.expires:
            text = "a session that was to end with the connection cannot be kept now (clause 3.14.2.2.2)"
            raise MqttError(Code.PROTOCOL_ERROR, text)
        if goodbye.code == Code.SUCCESS:
            session.will = None
        self.end(link, "goodbye")

    # -- endings -----------------------------------------------------------------------------------
    def gone(self, link: Link, cause: str, detail: str = "") -> bool:
        session: Session | None = link.extra
        told = super().gone(link, cause, detail)
        if told and session is not None and session.will is not None and cause != "shutdown":
            self.events.tell(Event.WILL, self.number, cause, link=link, detail=session.will.topic)
        return told

    def unregistered(self) -> None:
        for vin in self.admission.unknown(self.by_vin):
            self.refused("unknown_vin")
            self._disconnect(
                self.by_vin[vin], Code.NOT_AUTHORIZED, "the VIN is no longer in the registry", "unknown_vin"
            )

    def _violated(self, link: Link, code: Code, text: str) -> None:
        if link.known_as:
            self.refused("violation")
        else:
            self.turn_away(link, "violation", detail=text)
        self._disconnect(link, code, text, "violation")

    def _disconnect(self, link: Link, code: Code, text: str, cause: str = "") -> None:
        """Tell an MQTT 5 client why, then close; 3.1.1 has no server DISCONNECT."""
        session: Session | None = link.extra
        if session is not None and session.version == V5 and self.rows.state[link.slot] == State.VEHICLE:
            answer = encode_disconnect(V5, code, {"reason_string": text[:200]})
            if len(answer) > session.packet_bytes_max:
                answer = encode_disconnect(V5, code)
            link.write(answer)
        self.end(link, cause, text)

    def farewell(self, link: Link, cause: str, text: str) -> None:
        code = Code.QUOTA_EXCEEDED if cause == "refused_in_a_row" else Code.IMPLEMENTATION_SPECIFIC
        self._disconnect(link, code, text, cause)

    def replaced(self, link: Link) -> None:
        session: Session = link.extra
        # a client that is back before its will delay has passed has not vanished [MQTT-3.1.3-9]
        if session.will is not None and not session.will.properties.get("will_delay_interval"):
            self.events.tell(Event.WILL, self.number, "taken_over", link=link, detail=session.will.topic)
        self._disconnect(link, Code.SESSION_TAKEN_OVER, "the same vehicle has connected again")

    def overdue(self, link: Link) -> None:
        self.silent(link)
        self._disconnect(link, Code.KEEP_ALIVE_TIMEOUT, "nothing came for 1.5 x keep alive")

    def shut_down(self, link: Link) -> None:
        self._disconnect(link, Code.SERVER_SHUTTING_DOWN, "the gateway is stopping: connect again", "shutdown")


def claimed_vin(connect: Connect) -> str:
    """Whose a connection says that it is; "" when it does not."""
    return next((text for text in (connect.username or "", connect.client_id) if is_vin(text)), "")
