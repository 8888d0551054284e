"""A vehicle that publishes its frames over MQTT 3.1.1 or 5 at QoS 1."""

from __future__ import annotations

from schemas.mqtt.packets import (
    PINGREQ,
    Connect,
    encode_connect,
    encode_disconnect,
    parse_connack,
    parse_disconnect,
    parse_puback,
    split,
)
from schemas.mqtt.wire import V5, V311, MqttError, PacketType
from services.fleetsim.chunks import Segment
from services.fleetsim.client import ClientSettings, Vehicle
from services.fleetsim.stats import Stats
from services.fleetsim.wire import DUP, PACKET_IDS, PUBACK_BYTES

_FIRST_REFUSAL = 0x80  # reason codes from here on are errors (clause 2.4)


class MqttVehicle(Vehicle):
    """Client id and user name are the VIN.  Resent messages carry DUP and their old packet id (clause 4.4)."""

    answer_bytes = PUBACK_BYTES

    def __init__(
        self, index: int, vin: str, settings: ClientSettings, stats: Stats, buffer: bytearray, version: int = V311
    ) -> None:
        super().__init__(index, vin, settings, stats, buffer)
        self.version = version

    @property
    def address(self) -> tuple[str, int]:
        return self.settings.host, self.settings.mqtt_port

    def _greeting(self) -> bytes:
        password = self.settings.password.encode() if self.settings.password is not None else None
        # the session is ours to keep: what has no PUBACK is sent again whether the server remembers us or not
        return encode_connect(Connect(self.vin, self.version, True, self.settings.keep_alive_s, self.vin, password))

    def _farewell(self) -> bytes:
        return encode_disconnect(self.version)

    def _beat(self) -> bytes:
        return PINGREQ

    def _parse(self, data: bytes) -> int:
        at = 0
        try:
            while (found := split(data, at)) is not None:
                first, body, at = found
                kind = first >> 4
                if kind == PacketType.PUBACK:
                    answer = parse_puback(body, self.version)
                    # the window is far smaller than the 65,535 ids, so an id names one message
                    sequence = self.acked + (answer.packet_id - 1 - self.acked) % PACKET_IDS
                    self._answered(sequence, refused=answer.code >= _FIRST_REFUSAL)
                elif kind == PacketType.CONNACK:
                    accepted = parse_connack(body, self.version)
                    if accepted.code:
                        self._drop(f"CONNECT refused with code 0x{accepted.code:02X}")
                        return len(data)
                    # what an MQTT 5 server asks for outranks our own settings (clauses 3.2.2.3.3, 3.2.2.3.14)
                    self.window = min(self.settings.window, accepted.properties.get("receive_maximum", PACKET_IDS))
                    granted_s = accepted.properties.get("server_keep_alive", self.settings.keep_alive_s)
                    self.idle_s = min(self.settings.idle_s, granted_s * 0.75)
                    self._welcomed()
                elif kind == PacketType.DISCONNECT and self.version == V5:
                    self._drop(f"platform disconnects with code 0x{parse_disconnect(body, V5).code:02X}")
                    return len(data)
                elif kind != PacketType.PINGRESP:
                    self.stats.unexpected += 1
        except MqttError as error:
            self._drop(str(error))
            return len(data)
        return at

    def _repeat(self, segment: Segment, begin: int, end: int) -> bytes:
        start = segment.begin(begin)
        copy = bytearray(segment.data[start : segment.ends[end - 1]])
        for index in range(begin, end):
            copy[segment.begin(index) - start] |= DUP
        return bytes(copy)
