"""MQTT clients that others wrote, each behind the same few verbs, so that one test speaks to all of them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
import socket
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest

from schemas.mqtt.packets import split
from tests.gateway.playing import PATIENCE_S, VIN


@dataclass
class Options:
    host: str
    port: int
    version: int
    client_id: str = VIN
    username: str | None = None
    password: str | None = None
    will: tuple[str, bytes] | None = None
    tls: dict[str, str] | None = None  # ca, and cert and key of the client
    inflight: int | None = None  # how many publishes the program keeps un-acknowledged at most
    reconnect: bool = False

    @property
    def context(self) -> ssl.SSLContext | None:
        if self.tls is None:
            return None
        made = ssl.create_default_context(cafile=self.tls["ca"])
        if "cert" in self.tls:
            made.load_cert_chain(self.tls["cert"], self.tls["key"])
        return made


@dataclass
class Driver:
    """``connect`` returns 0 or the code with which it was refused; a publish ends with its acknowledgement."""

    options: Options
    name: ClassVar[str]
    resends_not: ClassVar[str] = ""  # why it sends nothing again on a new connection, if so
    dup: ClassVar[int] = 0  # the flag in what it sends again
    messages: asyncio.Queue[tuple[str, bytes]] = field(default_factory=asyncio.Queue)
    ending: asyncio.Queue[int | None] = field(default_factory=asyncio.Queue)

    async def message(self) -> tuple[str, bytes]:
        return await asyncio.wait_for(self.messages.get(), PATIENCE_S)

    async def ended(self) -> int | None:
        """Wait for the end of the connection: the gateway's reason code where the client says it."""
        return await asyncio.wait_for(self.ending.get(), PATIENCE_S)


class Paho(Driver):
    name = "paho"
    dup = 8

    async def connect(self) -> int:
        from paho.mqtt import client as paho
        from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

        given, loop = self.options, asyncio.get_running_loop()
        client = self.client = paho.Client(
            CallbackAPIVersion.VERSION2,
            given.client_id,
            protocol=MQTTProtocolVersion(given.version),
            reconnect_on_failure=given.reconnect,
        )
        client.reconnect_delay_set(1, 1)
        if given.username is not None:
            client.username_pw_set(given.username, given.password)
        if given.will is not None:
            client.will_set(*given.will, qos=1)
        if given.tls is not None:
            client.tls_set_context(given.context)
        if given.inflight is not None:
            client.max_inflight_messages_set(given.inflight)
        connected: asyncio.Queue[int] = asyncio.Queue()
        self.acked: dict[int, asyncio.Future[int]] = {}
        self.granted: asyncio.Queue[list[int]] = asyncio.Queue()

        def put(queue: asyncio.Queue[Any], value: Any) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, value)

        def acknowledged(mid: int, code: int) -> None:
            future = self.acked.setdefault(mid, loop.create_future())
            if not future.done():
                future.set_result(code)

        client.on_connect = lambda _c, _u, _f, code, _p: put(connected, code.value)
        client.on_disconnect = lambda _c, _u, _f, code, _p: put(self.ending, code.value)
        client.on_message = lambda _c, _u, m: put(self.messages, (m.topic, m.payload))
        client.on_subscribe = lambda _c, _u, _m, codes, _p: put(self.granted, [one.value for one in codes])
        client.on_publish = lambda _c, _u, mid, code, _p: loop.call_soon_threadsafe(acknowledged, mid, code.value)
        await asyncio.to_thread(client.connect, given.host, given.port)
        client.loop_start()
        return await asyncio.wait_for(connected.get(), PATIENCE_S)

    async def publish(self, topic: str, payload: bytes, qos: int, alias: int | None = None) -> int:
        properties = None
        if alias is not None:
            from paho.mqtt.packettypes import PacketTypes
            from paho.mqtt.properties import Properties

            properties = Properties(PacketTypes.PUBLISH)
            properties.TopicAlias = alias
        sent = self.client.publish(topic, payload, qos, properties=properties)
        future = self.acked.setdefault(sent.mid, asyncio.get_running_loop().create_future())
        return await asyncio.wait_for(future, PATIENCE_S)

    async def subscribe(self, topic_filter: str, qos: int) -> list[int]:
        self.client.subscribe(topic_filter, qos)
        return await asyncio.wait_for(self.granted.get(), PATIENCE_S)

    async def close(self) -> None:
        self.client.disconnect()
        await asyncio.to_thread(self.client.loop_stop)

    async def vanish(self) -> None:
        self.client.socket().shutdown(socket.SHUT_RDWR)
        await self.ended()


class Aiomqtt(Driver):
    name = "aiomqtt"
    resends_not = "leaves connecting anew to its user"
    _listening: asyncio.Task[None] | None = None

    async def connect(self) -> int:
        import aiomqtt

        given = self.options
        self.client = aiomqtt.Client(
            given.host,
            given.port,
            identifier=given.client_id,
            username=given.username,
            password=given.password,
            protocol=aiomqtt.ProtocolVersion(given.version),
            will=aiomqtt.Will(given.will[0], given.will[1], 1) if given.will else None,
            tls_context=given.context,
            max_inflight_messages=given.inflight,
        )
        try:
            await self.client.__aenter__()
        except aiomqtt.MqttCodeError as error:
            return int(getattr(error.rc, "value", error.rc))
        self._listening = asyncio.create_task(self._listen())
        return 0

    async def _listen(self) -> None:
        import aiomqtt

        try:
            async for one in self.client.messages:
                self.messages.put_nowait((str(one.topic), bytes(one.payload)))
        except aiomqtt.MqttError as error:
            cause = error.__cause__
            code = getattr(cause, "rc", None)
            self.ending.put_nowait(int(getattr(code, "value", code)) if code is not None else None)

    async def publish(self, topic: str, payload: bytes, qos: int, alias: int | None = None) -> int:
        properties = None
        if alias is not None:
            from paho.mqtt.packettypes import PacketTypes
            from paho.mqtt.properties import Properties

            properties = Properties(PacketTypes.PUBLISH)
            properties.TopicAlias = alias
        await self.client.publish(topic, payload, qos, properties=properties, timeout=PATIENCE_S)
        return 0

    async def subscribe(self, topic_filter: str, qos: int) -> list[int]:
        codes = await self.client.subscribe(topic_filter, qos, timeout=PATIENCE_S)
        return [int(getattr(one, "value", one)) for one in codes]

    async def close(self) -> None:
        import aiomqtt

        if self._listening is not None:
            self._listening.cancel()
            with contextlib.suppress(aiomqtt.MqttError):
                await self.client.__aexit__(None, None, None)
            self._listening = None

    async def vanish(self) -> None:
        self.client._client.socket().shutdown(socket.SHUT_RDWR)
        await self.ended()


class Gmqtt(Driver):
    name = "gmqtt"
    resends_not = "discards what is un-acknowledged where no session is present, as [MQTT-3.2.2-5] has it"

    async def connect(self) -> int:
        import gmqtt

        given = self.options
        will = gmqtt.Message(given.will[0], given.will[1], qos=1) if given.will else None
        client = self.client = gmqtt.Client(given.client_id, clean_session=not given.reconnect, will_message=will)
        # -1 means for ever, and 0 would still be once
        client.set_config({"reconnect_retries": -1 if given.reconnect else -2, "reconnect_delay": 0})
        if given.username is not None:
            client.set_auth_credentials(given.username, given.password)
        self.granted: asyncio.Queue[list[int]] = asyncio.Queue()
        client.on_subscribe = lambda _c, _m, qos, _p: self.granted.put_nowait(list(qos))
        client.on_disconnect = lambda _c, packet, *_: self.ending.put_nowait(
            packet[0] if isinstance(packet, bytes) and packet else None
        )

        def arrived(_client: Any, topic: str, payload: bytes, _qos: int, _properties: Any) -> int:
            self.messages.put_nowait((topic, payload))
            return 0

        client.on_message = arrived
        try:
            await asyncio.wait_for(
                client.connect(given.host, given.port, ssl=given.context or False, version=given.version), PATIENCE_S
            )
        except gmqtt.mqtt.handler.MQTTConnectError as error:
            return int(error._code)
        return 0

    async def publish(self, topic: str, payload: bytes, qos: int, alias: int | None = None) -> int:
        more = {} if alias is None else {"topic_alias": alias}
        self.client.publish(topic, payload, qos=qos, **more)
        await asyncio.wait_for(self.client._persistent_storage.wait_empty(), PATIENCE_S)
        return 0

    async def subscribe(self, topic_filter: str, qos: int) -> list[int]:
        self.client.subscribe(topic_filter, qos)
        return await asyncio.wait_for(self.granted.get(), PATIENCE_S)

    async def close(self) -> None:
        await self.client.disconnect()

    async def vanish(self) -> None:
        self.client._connection._transport.abort()


class MqttJs(Driver):
    name = "MQTT.js"
    module: ClassVar[Path]  # where npm has put it

    async def connect(self) -> int:
        given = self.options
        self.process = await asyncio.create_subprocess_exec(
            shutil.which("node") or "node",
            str(Path(__file__).with_name("outside.js")),
            str(self.module),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        self.waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.first: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.code: int | None = None
        self._reading = asyncio.create_task(self._read())
        options: dict[str, Any] = {
            "clientId": given.client_id,
            "protocolVersion": given.version,
            "reconnectPeriod": 50 if given.reconnect else 0,
        }
        if given.username is not None:
            options |= {"username": given.username, "password": given.password}
        if given.tls is not None:
            options |= given.tls
        scheme = "mqtt" if given.tls is None else "mqtts"
        will = None if given.will is None else {"topic": given.will[0], "payload": given.will[1].decode(), "qos": 1}
        self._do("connect", url=f"{scheme}://{given.host}:{given.port}", options=options, will=will)
        return await asyncio.wait_for(self.first, PATIENCE_S)

    def _do(self, op: str, **more: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"op": op, **more}).encode() + b"\n")

    async def _asked(self, op: str, **more: Any) -> dict[str, Any]:
        number = len(self.waiting)
        self.waiting[number] = asyncio.get_running_loop().create_future()
        self._do(op, id=number, **more)
        answer = await asyncio.wait_for(self.waiting[number], PATIENCE_S)
        assert answer.get("error") is None, answer
        return answer

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            said = json.loads(line)
            match said["event"]:
                case "connect" if not self.first.done():
                    self.first.set_result(0)
                case "error" if not self.first.done():
                    if isinstance(said["code"], int):
                        self.first.set_result(said["code"])
                    else:
                        self.first.set_exception(ConnectionError(said["message"]))
                case "published" | "subscribed":
                    self.waiting[said["id"]].set_result(said)
                case "message":
                    self.messages.put_nowait((said["topic"], base64.b64decode(said["payload"])))
                case "disconnect":
                    self.code = said["code"]
                case "close":
                    self.ending.put_nowait(self.code)

    async def publish(self, topic: str, payload: bytes, qos: int, alias: int | None = None) -> int:
        options: dict[str, Any] = {"qos": qos}
        if alias is not None:
            options["properties"] = {"topicAlias": alias}
        text = base64.b64encode(payload).decode()
        return (await self._asked("publish", topic=topic, payload=text, options=options)).get("code") or 0

    async def subscribe(self, topic_filter: str, qos: int) -> list[int]:
        return list((await self._asked("subscribe", filter=topic_filter, qos=qos))["granted"])

    async def close(self) -> None:
        if self.process.returncode is None:
            self._do("end")
            try:
                await asyncio.wait_for(self.process.wait(), 5)
            except TimeoutError:
                self.process.kill()
                await self.process.wait()
        await self._reading

    async def vanish(self) -> None:
        self.process.kill()
        await self.process.wait()
        await self._reading


DRIVERS: dict[str, type[Driver]] = {one.name: one for one in (Paho, Aiomqtt, Gmqtt, MqttJs)}
MODULES = {"paho": "paho.mqtt.client", "aiomqtt": "aiomqtt", "gmqtt": "gmqtt"}


def needed(name: str) -> None:
    """Skip the test when the client is not installed."""
    if name in MODULES:
        pytest.importorskip(MODULES[name], reason=f"{name} is not installed")


class Tap:
    """A wire that listens: connections to it go on to ``target``; what clients send is kept, and it can be cut."""

    def __init__(self) -> None:
        self.server: asyncio.Server | None = None
        self.sent: list[bytearray] = []  # by connection
        self.wires: list[asyncio.StreamWriter] = []

    async def open(self, target: tuple[str, int]) -> tuple[str, int]:
        self.target = target
        self.server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        host, port = self.server.sockets[0].getsockname()[:2]
        return host, port

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kept = bytearray()
        self.sent.append(kept)
        back, forth = await asyncio.open_connection(*self.target)
        self.wires += [writer, forth]

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, into: bytearray | None) -> None:
            with contextlib.suppress(ConnectionError):
                while data := await source.read(65_536):
                    if into is not None:
                        into += data
                    sink.write(data)
            sink.close()

        await asyncio.gather(pump(reader, forth, kept), pump(back, writer, None))

    def cut(self) -> None:
        for one in self.wires:
            one.transport.abort()
        self.wires.clear()

    def publishes(self, connection: int) -> list[int]:
        """First bytes of the PUBLISHes that were sent on the n-th connection."""
        found, at, data = [], 0, bytes(self.sent[connection])
        while (one := split(data, at)) is not None:
            first, _, at = one
            if first >> 4 == 3:
                found.append(first)
        return found

    async def close(self) -> None:
        self.cut()
        if self.server is not None:
            self.server.close()
