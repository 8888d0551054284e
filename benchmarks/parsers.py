"""What people parse packets with: the program one would write in Python, and the readers of known libraries.

Each takes the bytes of some connections and says how many packets it found; those that look into no payload say so.
The libraries' readers are called where they begin to read a socket's bytes, without their event loops: in their favour.
"""

# ruff: noqa: SLF001 - libraries have no public way in below the socket

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import reduce
from operator import xor
from typing import Any, Final


def python_frame(view: memoryview, vin: bytes) -> bool:
    """The check of one whole frame that one would write: length, identity, BCC."""
    if len(view) < 25 or view[:2] != b"##" or len(view) != 25 + (view[22] << 8 | view[23]):
        return False
    return view[4:21] == vin and reduce(xor, view[2:-1]) == view[-1]


def python_mqtt(streams: list[bytes]) -> int:
    """The obvious parser of PUBLISH at QoS 1, and of the frame inside."""
    found = 0
    for stream in streams:
        at, end, view = 0, len(stream), memoryview(stream)
        while at < end:
            head, length, shift = at + 1, 0, 0
            while head < end:
                byte = stream[head]
                head += 1
                length |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    break
            if head + length > end:
                break
            topic_end = head + 2 + (stream[head] << 8 | stream[head + 1])
            _, _, vin, _ = stream[head + 2 : topic_end].split(b"/")
            packet_id = stream[topic_end] << 8 | stream[topic_end + 1]
            if packet_id and python_frame(view[topic_end + 2 : head + length], vin):
                found += 1
            at = head + length
    return found


def python_gbt(streams: list[bytes]) -> int:
    """The obvious parser of frames back to back."""
    found = 0
    for stream in streams:
        at, end, view = 0, len(stream), memoryview(stream)
        vin = stream[4:21]
        while at + 24 <= end:
            length = 25 + (stream[at + 22] << 8 | stream[at + 23])
            if at + length > end:
                break
            found += python_frame(view[at : at + length], vin)
            at += length
    return found


class _Pipe:
    """A socket whose bytes are all there, and which takes everything."""

    def __init__(self, stream: bytes) -> None:
        self._stream, self._at = stream, 0

    def recv(self, size: int) -> bytes:
        piece = self._stream[self._at : self._at + size]
        self._at += len(piece)
        if not piece:
            raise BlockingIOError
        return piece

    def send(self, data: bytes) -> int:
        return len(data)

    def close(self) -> None:
        """Nothing to close."""


def paho_mqtt(streams: list[bytes]) -> int:
    """paho-mqtt's reader, up to ``on_message`` and the PUBACK; it looks into no payload."""
    import paho.mqtt.client as mqtt

    found = 0

    def on_message(*_: object) -> None:
        nonlocal found
        found += 1

    for stream in streams:
        client: Any = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv311)
        client.on_message = on_message
        client._sock = _Pipe(stream)
        while client._packet_read() == mqtt.MQTT_ERR_SUCCESS:
            pass
        client._sock = None
    return found


def gmqtt_mqtt(streams: list[bytes]) -> int:
    """gmqtt's splitting into packets and its handler of PUBLISH, up to ``on_message``; it looks into no payload."""
    from gmqtt.mqtt.handler import MqttPackageHandler
    from gmqtt.mqtt.protocol import MQTTProtocol

    found = 0

    def on_message(*_: object) -> int:
        nonlocal found
        found += 1
        return 0

    class State311:
        protocol_version = 4

    handler: Any = object.__new__(MqttPackageHandler)
    handler._connection_state, handler._server_topics_aliases = State311(), {}
    handler._optimistic_acknowledgement, handler._on_message_callback = True, on_message
    handler._send_command_with_mid_callback, handler._logger = lambda *_, **__: None, logging.getLogger("gmqtt")
    reader: Any = object.__new__(MQTTProtocol)

    class Connection:
        def put_package(self, package: Any) -> None:
            handler._handle_publish_packet(package.cmd, package.data)

    reader._connection = Connection()
    for stream in streams:
        reader._read_packet(stream)
    return found


def rtm_con_gbt(streams: list[bytes]) -> int:
    """rtm-con's header and checksum fields, the payload left as bytes."""
    from construct import GreedyBytes, Int16ub, PaddedString, Prefixed, Tell
    from rtm_con.types_checksum import RtmChecksum
    from rtm_con.types_common import ack_flags, enc_algos, rtm_ver
    from rtm_con.types_msg import msg_types
    from rtm_con.types_struct_ext import StructExt

    message = StructExt(
        "starter" / rtm_ver, "_checking_start" / Tell, "msg_type" / msg_types, "ack" / ack_flags,
        "vin" / PaddedString(17, "ascii"), "enc" / enc_algos, "payload" / Prefixed(Int16ub, GreedyBytes),
        "_checking_end" / Tell, "checksum" / RtmChecksum("_checking_start", "_checking_end"),
    )  # fmt: skip
    found = 0
    for stream in streams:
        at = 0
        while at + 24 <= len(stream):
            length = 25 + (stream[at + 22] << 8 | stream[at + 23])
            if at + length > len(stream):
                break
            message.parse(stream[at : at + length])
            found += 1
            at += length
    return found


PARSERS: Final[dict[str, dict[str, Callable[[list[bytes]], int]]]] = {
    "mqtt": {"python": python_mqtt, "paho-mqtt": paho_mqtt, "gmqtt": gmqtt_mqtt},
    "gbt32960": {"python": python_gbt, "rtm-con": rtm_con_gbt},
}
