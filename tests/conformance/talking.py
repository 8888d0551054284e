"""How the conformance tests talk: raw packets of either version, what comes back, and how a connection ends."""

from __future__ import annotations

from typing import Any, Final

from schemas.mqtt.packets import (
    Connack,
    Publish,
    Subscribe,
    Unsubscribe,
    encode_subscribe,
    encode_unsubscribe,
    packet,
    parse_connack,
    parse_disconnect,
    parse_publish,
    split,
)
from schemas.mqtt.wire import V5, Code, PacketType, properties, string
from services.store.commands import MemoryCommands
from tests.gateway.playing import VIN, Client, Running

OWN: Final = f"nev/v1/{VIN}/down/#"
PINGREQ: Final = b"\xc0\x00"
PINGRESP: Final = b"\xd0\x00"


def ack(first: int, packet_id: int = 1) -> bytes:
    """PUBACK (0x40), PUBREC (0x50), PUBREL (0x62), PUBCOMP (0x70): the four bytes without a code."""
    return bytes((first, 2)) + packet_id.to_bytes(2, "big")


def raw_connect(
    version: int, flags: int, payload: bytes, name: bytes = b"MQTT", level: int | None = None, first: int = 0x10
) -> bytes:
    """A CONNECT byte by byte; MQTT 5 gets an empty property length."""
    head = len(name).to_bytes(2, "big") + name + bytes((version if level is None else level, flags, 0, 60))
    body = head + (b"\0" if version == V5 else b"") + payload
    return packet(PacketType.CONNECT, body, first & 15)


def subscribe(*filters: tuple[str, int], version: int, packet_id: int = 7) -> bytes:
    return encode_subscribe(Subscribe(packet_id, filters), version)


def unsubscribe(*filters: str, version: int, packet_id: int = 8) -> bytes:
    return encode_unsubscribe(Unsubscribe(packet_id, filters), version)


def raw_publish(topic: bytes, payload: bytes, version: int, first: int = 0x32, props: bytes = b"\0") -> bytes:
    """A PUBLISH with any bytes as topic and as properties, identifier 1 where QoS asks for one."""
    identifier = b"\0\1" if first & 6 else b""
    body = len(topic).to_bytes(2, "big") + topic + identifier + (props if version == V5 else b"") + payload
    return packet(PacketType.PUBLISH, body, first & 15)


def codes(version: int, packet_id: int, *answers: int, kind: int = PacketType.SUBACK) -> bytes:
    """The SUBACK or UNSUBACK that is expected."""
    body = packet_id.to_bytes(2, "big") + (b"\0" if version == V5 else b"")
    return packet(PacketType(kind), body + (bytes(answers) if version == V5 or kind == PacketType.SUBACK else b""))


async def following(client: Client) -> tuple[int, bytes]:
    """(first byte, body) of the next packet."""
    head = await client.read(2)
    length, shift = head[1] & 0x7F, 7
    while head[1] & 0x80 and shift <= 21:
        more = (await client.read(1))[0]
        length |= (more & 0x7F) << shift
        shift += 7
        if not more & 0x80:
            break
    return head[0], await client.read(length)


async def connack(client: Client, version: int = V5) -> Connack:
    first, body = await following(client)
    assert first == 0x20
    return parse_connack(body, version)


async def commanded(client: Client, version: int) -> Publish:
    """The PUBLISH of the gateway that comes next."""
    first, body = await following(client)
    assert first >> 4 == PacketType.PUBLISH
    return parse_publish(first, body, version)


async def ends(client: Client, version: int, *allowed: Code) -> dict[str, Any]:
    """The gateway closes; an MQTT 5 client that was connected is told one of ``allowed``.  Returns the properties."""
    rest = await client.rest()
    if version != V5:
        assert rest == b""
        return {}
    at, last = 0, (0, b"")
    while (found := split(rest, at)) is not None:
        *last, at = found
    assert last[0] == 0xE0, rest.hex()
    assert at == len(rest)
    told = parse_disconnect(last[1], V5)
    assert told.code in allowed, hex(told.code)
    return told.properties


async def refused(client: Client, version: int, code: int, code_311: int | None = None) -> dict[str, Any]:
    """CONNACK with ``code`` (MQTT 5) or ``code_311`` (None: not even that), then the end."""
    if version != V5:
        told = b"" if code_311 is None else bytes((0x20, 2, 0, code_311))
        assert await client.rest() == told
        return {}
    found = await connack(client)
    assert (found.code, found.session_present) == (code, False)
    assert await client.rest() == b""
    return found.properties


async def opened(run: Running, sent: bytes, version: int) -> tuple[Client, Connack]:
    """A client whose CONNECT is ``sent`` and taken."""
    client = await run.client("mqtt")
    client.send(sent)
    found = await connack(client, version)
    assert found.code == 0
    return client, found


async def alive(client: Client) -> None:
    """Nothing else has been said, and the connection lives."""
    client.send(PINGREQ)
    await client.expect(PINGRESP)


async def ask(queue: MemoryCommands) -> int:
    """Put a command for the vehicle into the queue."""
    return await queue.enqueue(VIN, "query", {"params": ["report_period"]}, by="test", expires_s=60)


def props(**values: Any) -> bytes:
    return properties(values)


def text(value: bytes) -> bytes:
    """Length-prefixed bytes where a string is due."""
    return len(value).to_bytes(2, "big") + value


vin_field = string(VIN)
