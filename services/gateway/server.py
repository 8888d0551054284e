"""The gateway of one process: doors opened, deadlines kept, everything flushed before it goes.

``start`` binds and returns; ``drain`` stops accepting, makes durable what has arrived, answers it and
closes.  It must never answer a frame that the journal does not have.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
from typing import Any, Final

from schemas.downlink import CommandQueue
from schemas.keyring import KeyStore
from schemas.seams import JournalWriter, VehicleDirectory
from services import metrics
from services.certificates import Certificates
from services.errors import PortInUse, SettingsError
from services.gateway import bridge_scan, gather, scan_gbt, scan_mqtt
from services.gateway.admission import Admission
from services.gateway.bridge import BridgeDoor
from services.gateway.bridge_line import check
from services.gateway.checking import Checking
from services.gateway.commit import Committer
from services.gateway.connections import Connections, State
from services.gateway.downlink import Downlink
from services.gateway.events import Events
from services.gateway.gbt_door import GbtDoor
from services.gateway.intake import Intake
from services.gateway.mqtt_door import MqttDoor
from services.settings import Settings

log = logging.getLogger("nevstream.gateway")

_SWEEP_S: Final = 0.5
_LAST_EVENTS_S: Final = 1.0
_BACKLOG: Final = 4096
# Entries (frames, acks) a kernel lists before Python must empty the table.
_ENTRIES_MIN: Final = 65_536


class Gateway:
    """``addresses`` holds (host, port) of each open listener after ``start``: "mqtt", "gbt32960", "mqtt_tls"..."""

    def __init__(
        self,
        settings: Settings,
        journal: JournalWriter,
        directory: VehicleDirectory,
        commands: CommandQueue | None = None,
        keys: KeyStore | None = None,
        index: int = 0,
    ) -> None:
        self.addresses: dict[str, tuple[str, int]] = {}
        self._settings = settings
        self._journal = journal
        self._directory = directory
        self._commands = commands
        self._keys = keys
        self._checking: Checking | None = None
        self._index = index  # which of the gateway processes this is
        self.downlink: Downlink | None = None
        self.bridge: BridgeDoor | None = None
        self._bridging: list[asyncio.Task[None]] = []
        self._servers: list[asyncio.Server] = []
        self._certificates: list[Certificates] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Bind every enabled door.  Raises ``PortInUse`` or ``SettingsError``, with nothing left open."""
        loop = asyncio.get_running_loop()
        settings = self._settings
        limits = settings.gateway.limits
        self._connections = Connections(limits.connections_max, settings.journal.partitions)
        self._committer = Committer(
            self._journal,
            self._connections,
            settings.journal.partitions,
            limits.in_flight_bytes_max,
            loop.time,
            lambda held: self._intake.hold(held),
        )
        self._intake = Intake(
            self._connections,
            self._committer,
            packet_bytes_max=max(limits.packet_bytes_max, limits.frame_bytes_max),
            carry_bytes_max=limits.in_flight_bytes_max,
            entries_max=max(_ENTRIES_MIN, limits.packet_bytes_max // 2 + 2),
            loop=loop,
        )
        self._admission = Admission(settings.gateway, self._directory, self._registry_changed)
        self._events = Events(
            self._committer, settings.journal.partitions, settings.gateway.link_events_per_s_max, loop.time
        )
        self.mqtt = MqttDoor(settings, self._intake, self._admission, self._events)
        self.gbt32960 = GbtDoor(settings, self._intake, self._admission, self._events)
        self._intake.doors = [self.mqtt, self.gbt32960]
        if settings.gateway.bridge.enabled:
            check(settings.gateway.bridge)
            self.bridge = BridgeDoor(settings, self._intake, self._admission, self._events, self._index)
            self._intake.doors.append(self.bridge)
        await self._admission.start()
        if self._keys is not None and settings.gateway.gbt32960.check_secrets:
            self._checking = self.gbt32960.checking = Checking(self._keys, settings.encryption)
            await self._checking.start()
        try:
            for door, wanted in ((self.mqtt, settings.gateway.mqtt), (self.gbt32960, settings.gateway.gbt32960)):
                if wanted.enabled and wanted.plain:
                    await self._listen(door, wanted.host, wanted.port)
                if wanted.enabled and wanted.tls.enabled:
                    where = f"gateway.{door.name}.tls"
                    certificates = Certificates(wanted.tls, where, ("mqtt",) if door is self.mqtt else ())
                    self._certificates.append(certificates)
                    await self._listen(door, wanted.host, wanted.tls.port, certificates)
        except BaseException:
            await self._stop_listening()
            await self._stop_reading_store()
            raise
        self._tasks = [
            asyncio.create_task(self._committer.run(), name="gateway commits"),
            asyncio.create_task(self._sweep(), name="gateway deadlines"),
            *(asyncio.create_task(one.keep_fresh(), name="gateway certificates") for one in self._certificates),
        ]
        if self._commands is not None and settings.gateway.commands.enabled:
            self.downlink = self._lowering(self._commands)
            self._tasks.append(asyncio.create_task(self.downlink.run(), name="gateway commands"))
        if self.bridge is not None:
            self._bridging = self.bridge.tasks()
            self._tasks += self._bridging
        for task in self._tasks:
            task.add_done_callback(self._task_ended)

    def _lowering(self, queue: CommandQueue) -> Downlink:
        """What sends commands down, joined with the doors; GB/T 32960 TCP goes before MQTT."""
        doors = (self.gbt32960, self.mqtt)
        made = Downlink(
            queue,
            doors,
            self._events.origin,
            self._settings.gateway.commands,
            lambda link: int(self._connections.serial[link.slot]),
            asyncio.get_running_loop().time,
        )
        for door in doors:
            door.answered = made.answered
            door.delivered = made.delivered
            door.waits_for_answers = lambda: bool(made.flights)
        return made

    async def drain(self, timeout_s: float) -> None:
        """Accept no more, make durable and answer what has arrived, close.

        What the journal has not taken within ``timeout_s`` is not answered: its senders send it again.
        """
        if not self._tasks:
            return
        tasks, self._tasks = self._tasks, []
        for task in self._bridging:
            task.cancel()
        await self._stop_listening()
        await self._stop_reading_store()
        links = self._connections.all()
        for link in links:
            link.pause(1 << 30)
        self.mqtt.stop_verifying()
        self._intake.tick()
        try:
            await asyncio.wait_for(self._committer.flushed(), timeout_s)
        except TimeoutError:
            log.error(
                "stopping with %d bytes that the journal did not take within %.1f s; none of them was answered, "
                "so their senders will send them again",
                self._committer.in_flight_bytes,
                timeout_s,
            )
        for link in links:
            if link.slot >= 0:
                link.door.shut_down(link)
        with contextlib.suppress(TimeoutError):  # that they were closed: good to know, not worth waiting for
            await asyncio.wait_for(self._committer.flushed(), min(timeout_s, _LAST_EVENTS_S))
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        if self.downlink is not None:
            await self.downlink.hand_back()
        # a round of the loop or two lets transports send their last bytes and report their end
        for _ in range(3):
            await asyncio.sleep(0)
        for link in self._connections.all():
            link.abort()
        await asyncio.sleep(0)
        metrics.READING_PAUSED.set(0)
        metrics.IN_FLIGHT_BYTES.set(0)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome

    async def wait(self) -> None:
        """Returns after ``drain``; raises what ended one of the gateway's own tasks: a fault of ours."""
        tasks = self._tasks
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done() and not task.cancelled() and (fault := task.exception()) is not None:
                raise fault

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        """A task of ours has failed: vehicles must not go on sending to a gateway that cannot answer."""
        if task.cancelled() or (fault := task.exception()) is None:
            return
        log.critical("%s failed, every connection is closed: %s", task.get_name(), fault, exc_info=fault)
        for server in self._servers:
            server.close()
        for link in self._connections.all():
            link.abort()

    async def _listen(
        self, door: MqttDoor | GbtDoor, host: str, port: int, certificates: Certificates | None = None
    ) -> None:
        loop = asyncio.get_running_loop()
        shared = self._settings.gateway.processes > 1
        name, where, variable = door.name, f"gateway.{door.name}", f"NEVSTREAM_GATEWAY__{door.name.upper()}__PORT"
        secured: dict[str, Any] = {}
        if certificates is not None:
            name, where, variable = f"{name}_tls", f"{where}.tls", variable.replace("__PORT", "__TLS__PORT")
            handshake_s = self._settings.gateway.limits.first_packet_timeout_s
            secured = {"ssl": certificates.context, "ssl_handshake_timeout": handshake_s}
        try:
            server = await loop.create_server(
                door.factory, host, port, backlog=_BACKLOG, reuse_address=True, reuse_port=shared or None, **secured
            )
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortInUse(
                    f"{host}:{port} is in use by another program: stop it, or set {where}.port ({variable}) "
                    "to a free one"
                ) from error
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise SettingsError(
                f"cannot listen on {host}:{port} ({reason}): check gateway.{door.name}.host and {where}.port"
            ) from error
        self._servers.append(server)
        address = server.sockets[0].getsockname()
        self.addresses[name] = (address[0], address[1])
        log.info("listening for %s on %s:%d", name, address[0], address[1])

    async def _stop_listening(self) -> None:
        for server in self._servers:
            server.close()
        self._servers.clear()

    async def _stop_reading_store(self) -> None:
        await self._admission.stop()
        if self._checking is not None:
            await self._checking.stop()

    async def _sweep(self) -> None:
        """Close what has been silent for too long; one pass over an array, no timer per connection."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_SWEEP_S)
            if self._intake.held:
                continue  # it is we who do not listen
            for link in self._connections.overdue(loop.time()):
                if self._connections.state[link.slot] == State.CLOSING:
                    link.abort()
                else:
                    link.door.overdue(link)

    def _registry_changed(self) -> None:
        self.mqtt.unregistered()
        self.gbt32960.unregistered()
        if self.bridge is not None:
            self.bridge.unregistered()


def warm() -> None:
    """Compile every kernel of the gateway."""
    gather.warm()
    scan_mqtt.warm()
    scan_gbt.warm()
    bridge_scan.warm()
