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
from typing import Final

from schemas.downlink import CommandQueue
from schemas.keyring import KeyStore
from schemas.seams import JournalWriter, VehicleDirectory
from services import metrics
from services.certificates import Certificates
from services.errors import PortInUse, SettingsError
from services.gateway import bridge_scan, gather, scan_gbt, scan_mqtt
from services.gateway.accepting import SPARE_ROWS, Acceptor, Crowd, Pace, listen
from services.gateway.admission import Admission
from services.gateway.bridge import BridgeDoor
from services.gateway.bridge_line import check
from services.gateway.checking import Checking
from services.gateway.commit import Committer
from services.gateway.connections import Connections, State
from services.gateway.door import BaseDoor
from services.gateway.downlink import Downlink
from services.gateway.events import Events
from services.gateway.gbt_door import GbtDoor
from services.gateway.intake import Intake
from services.gateway.metering import Meters
from services.gateway.mqtt_door import MqttDoor
from services.gateway.strangers import Strangers
from services.settings import Settings

log = logging.getLogger("nevstream.gateway")

_SWEEP_S: Final = 0.5
_REFILL_S: Final = 0.1
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
        self._acceptors: list[Acceptor] = []
        self._certificates: list[Certificates] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Bind every enabled door.  Raises ``PortInUse`` or ``SettingsError``, with nothing left open."""
        loop = asyncio.get_running_loop()
        settings = self._settings
        limits = settings.gateway.limits
        self._connections = Connections(limits.connections_max + SPARE_ROWS, settings.journal.partitions)
        self._crowd, self._pace = Crowd(limits), Pace(limits, loop.time())
        strangers = Strangers(float(limits.strangers_kept_per_s_max), loop.time())
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
            Meters(limits, len(self._connections.links)),
            self._committer,
            packet_bytes_max=max(limits.packet_bytes_max, limits.frame_bytes_max),
            carry_bytes_max=limits.in_flight_bytes_max,
            entries_max=max(_ENTRIES_MIN, limits.packet_bytes_max // 2 + 2),
            loop=loop,
            strangers=strangers,
        )
        self._admission = Admission(settings.gateway, self._directory, self._registry_changed)
        self._events = Events(
            self._committer,
            settings.journal.partitions,
            settings.gateway.link_events_per_s_max,
            loop.time,
            strangers,
        )
        self.mqtt = MqttDoor(settings, self._intake, self._admission, self._events)
        self.gbt32960 = GbtDoor(settings, self._intake, self._admission, self._events)
        self._intake.doors = [self.mqtt, self.gbt32960]
        self._doors: dict[int, BaseDoor] = {self.mqtt.number: self.mqtt, self.gbt32960.number: self.gbt32960}
        if settings.gateway.bridge.enabled:
            check(settings.gateway.bridge)
            self.bridge = BridgeDoor(settings, self._intake, self._admission, self._events, self._index)
            self._intake.doors.append(self.bridge)
            self._doors[self.bridge.number] = self.bridge
        await self._admission.start()
        if self._keys is not None and settings.gateway.gbt32960.check_secrets:
            self._checking = self.gbt32960.checking = Checking(self._keys, settings.encryption)
            await self._checking.start()
        try:
            for door, wanted in ((self.mqtt, settings.gateway.mqtt), (self.gbt32960, settings.gateway.gbt32960)):
                if wanted.enabled and wanted.plain:
                    self._listen(door, wanted.host, wanted.port)
                if wanted.enabled and wanted.tls.enabled:
                    where = f"gateway.{door.name}.tls"
                    certificates = Certificates(wanted.tls, where, ("mqtt",) if door is self.mqtt else ())
                    self._certificates.append(certificates)
                    self._listen(door, wanted.host, wanted.tls.port, certificates)
        except BaseException:
            self._stop_listening()
            await self._stop_reading_store()
            raise
        self._tasks = [
            asyncio.create_task(self._committer.run(), name="gateway commits"),
            asyncio.create_task(self._sweep(), name="gateway deadlines"),
            asyncio.create_task(self._refill(), name="gateway rates"),
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
        self._stop_listening()
        await self._stop_reading_store()
        for _ in range(3):  # what was taken out of the kernel's queue becomes a connection that can be told
            await asyncio.sleep(0)
        for acceptor in self._acceptors:
            await acceptor.ended()
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
        if self.bridge is not None:
            await self.bridge.left()
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
        metrics.show_lag("gateway", 0.0, "working")
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
        self._stop_listening()
        for link in self._connections.all():
            link.abort()

    def _listen(self, door: MqttDoor | GbtDoor, host: str, port: int, certificates: Certificates | None = None) -> None:
        shared = self._settings.gateway.processes > 1
        name, where, variable = door.name, f"gateway.{door.name}", f"NEVSTREAM_GATEWAY__{door.name.upper()}__PORT"
        if certificates is not None:
            name, where, variable = f"{name}_tls", f"{where}.tls", variable.replace("__PORT", "__TLS__PORT")
        try:
            listeners = listen(host, port, _BACKLOG, shared)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortInUse(
                    f"{host}:{port} is in use by another program: stop it, or set {where}.port ({variable}) "
                    "to a free one"
                ) from error
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
            raise SettingsError(
                f"cannot listen on {host}:{port} ({reason}): check gateway.{door.name}.host and {where}.port"
            ) from error
        limits, context = self._settings.gateway.limits, certificates.context if certificates is not None else None
        for listener in listeners:
            self._acceptors.append(
                Acceptor(listener, name, door.factory, door.closed_unheard, self._crowd, self._pace, limits, context)
            )
        self.addresses[name] = self._acceptors[-len(listeners)].address
        log.info("listening for %s on %s:%d", name, *self.addresses[name])

    def _stop_listening(self) -> None:
        for acceptor in self._acceptors:
            acceptor.stop()

    async def _stop_reading_store(self) -> None:
        await self._admission.stop()
        if self._checking is not None:
            await self._checking.stop()

    async def _sweep(self) -> None:
        """Close what has been silent for too long; one pass over an array, no timer per connection."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_SWEEP_S)
            metrics.show_lag("gateway", *self._committer.lag())
            if self._intake.held:
                continue  # it is we who do not listen
            rows, meters, now_s = self._connections, self._intake.meters, loop.time()
            for link in rows.overdue(now_s):
                if rows.state[link.slot] == State.CLOSING:
                    link.abort()
                elif not link.rated:  # else it is we who do not listen
                    link.door.overdue(link)
            for late, say in ((meters.slow(now_s), BaseDoor.slow), (meters.deaf(now_s), BaseDoor.deaf)):
                for slot in late:
                    late_link = rows.links[slot]
                    if late_link is not None and rows.state[slot] != State.CLOSING:
                        say(self._doors[late_link.door.number], late_link)

    async def _refill(self) -> None:
        """Let connections send again that have sent too much; one pass over arrays, no timer per connection."""
        loop = asyncio.get_running_loop()
        before_s = loop.time()
        while True:
            await asyncio.sleep(_REFILL_S)
            now_s = loop.time()
            self._intake.refill(now_s - before_s)
            before_s = now_s

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
