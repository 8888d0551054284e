"""New connections: taken from the kernel's queue at a measured pace, counted per address, their TLS handshakes bounded.

What is too much for the process waits in the kernel's queue; what is too much from one address is refused, some of
it with an answer, the rest by closing.  Nothing here reads a byte of what a peer says.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import ssl
import struct
from collections import OrderedDict
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from typing import Any, Final

from services import metrics
from services.gateway.link import Link
from services.settings import Limits

log = logging.getLogger("nevstream.gateway")

# Connections taken per turn of the event loop: those that are open are served in between.
_PER_TURN: Final = 4
# So many connections does one count as that is ended for what it sent before it said who it is; twice as many each
# time, up to so many seconds' worth, while nothing good comes from its address.
_PENALTY: Final = 20.0
_PENALTY_MAX_S: Final = 10.0
_DOUBLINGS_MAX: Final = 16
# One address may make so many seconds' worth of connections at once: vehicles behind one NAT that all come back.
_BURST_S: Final = 20.0
# Refusals that are told in the protocol (an answer to the first packet), per second and at once; others are closed.
_TOLD_PER_S: Final = 20.0
_TOLD_AT_ONCE: Final = 100.0
_NO_ROOM_PAUSE_S: Final = 0.2
_NO_ROOM: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_TICK_S: Final = 0.005  # the loop's clock goes by the millisecond, and a timer may come that much early
# A handshake that has taken longer gives way to others when all are taken.
_HANDSHAKE_OLD_S: Final = 2.0
# Closing with a reset leaves nothing of a refused connection behind, here or in the kernel.
_RESET: Final = struct.pack("ii", 1, 0)
# Addresses that are remembered for their rate without having a connection.
_REMEMBERED_MAX: Final = 100_000


class Bucket:
    """A token bucket; ``take`` says whether there was one.  A rate of 0 has no limit."""

    __slots__ = ("_at_s", "_most", "_rate", "bad", "tokens")

    def __init__(self, rate: float, most: float, now_s: float) -> None:
        self.bad = 0  # connections ended for what they sent, since a good one
        self._rate = rate
        self._most = self.tokens = most
        self._at_s = now_s

    def take(self, now_s: float) -> bool:
        if not self._rate:
            return True
        self.tokens = min(self._most, self.tokens + (now_s - self._at_s) * self._rate)
        self._at_s = now_s
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True

    def wait_s(self) -> float:
        """Seconds until there is one again."""
        return max(0.0, (1.0 - self.tokens) / self._rate)


class Crowd:
    """Connections per address, open and new; one for all listeners of a process."""

    def __init__(self, limits: Limits) -> None:
        self._open_max = limits.connections_per_address_max
        self._rate = float(limits.connects_per_address_per_s_max)
        self._unlimited = [ip_network(one) for one in limits.unlimited_addresses]
        self.total = 0
        self._open: dict[str, int] = {}
        self._identified: dict[str, int] = {}  # open ones that have said who they are
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def address(self, host: str) -> str:
        """What is counted as one address: an IPv4 address, or 64 bits of an IPv6 one; "" is not counted."""
        if ":" not in host and not self._unlimited:
            return host
        found = ip_address(host.partition("%")[0])
        mapped = getattr(found, "ipv4_mapped", None)
        if mapped is not None:
            found = mapped
        if any(found in network for network in self._unlimited):
            return ""
        return str(found) if found.version == 4 else f"{int(found) >> 64:016x}/64"

    def refuses(self, address: str, now_s: float) -> str:
        """Why one more connection of ``address`` is refused; "" when it is not.  Counts the attempt."""
        if not address:
            return ""
        if self._rate:
            bucket = self._buckets.get(address)
            if bucket is None:
                if len(self._buckets) >= _REMEMBERED_MAX:
                    self._buckets.popitem(last=False)
                bucket = self._buckets[address] = Bucket(self._rate, self._rate * _BURST_S, now_s)
            else:
                self._buckets.move_to_end(address)
            if not bucket.take(now_s):
                return "connect_rate"
        if self._open_max and self._open.get(address, 0) >= self._open_max:
            return "address_limit"
        return ""

    def penalize(self, address: str) -> None:
        """A connection of ``address`` was ended for what it sent."""
        bucket = self._buckets.get(address)
        if bucket is None:
            return
        cost = min(_PENALTY * 2**bucket.bad, max(_PENALTY, _PENALTY_MAX_S * self._rate))
        bucket.tokens = max(bucket.tokens - cost, -cost)
        if address not in self._identified:  # else vehicles come from there, too: behind a NAT one does not pay for all
            bucket.bad = min(bucket.bad + 1, _DOUBLINGS_MAX)

    def identified(self, address: str) -> None:
        """A connection of ``address`` has said who it is."""
        if not address:
            return
        self._identified[address] = self._identified.get(address, 0) + 1
        bucket = self._buckets.get(address)
        if bucket is not None:
            bucket.bad = 0

    def came(self, address: str) -> None:
        self.total += 1
        if address:
            self._open[address] = self._open.get(address, 0) + 1

    def went(self, address: str, identified: bool = False) -> None:
        self.total -= 1
        if address:
            _one_less(self._open, address)
            if identified:
                _one_less(self._identified, address)


def _one_less(counts: dict[str, int], address: str) -> None:
    left = counts[address] - 1
    if left:
        counts[address] = left
    else:
        del counts[address]


# cause of a refusal → the setting that made it
SETTING_OF: Final = {
    "limit": "connections_max",
    "address_limit": "connections_per_address_max",
    "connect_rate": "connects_per_address_per_s_max",
}


# Rows beyond connections_max, for those that are told of their refusal.
SPARE_ROWS: Final = int(_TOLD_AT_ONCE) + 256


class Pace:
    """How fast a process takes connections, and how many refusals it explains; one for all its listeners."""

    def __init__(self, limits: Limits, now_s: float) -> None:
        self.connects = Bucket(limits.connects_per_s_max, max(16.0, limits.connects_per_s_max / 10), now_s)
        self.told = Bucket(_TOLD_PER_S, _TOLD_AT_ONCE, now_s)


class Acceptor:
    """One listening socket.  ``make`` makes a link for a connection that is taken.

    ``turned_away`` is told (cause, peer, address) of a connection that is closed; one that gets an answer is
    ``Link.denied``.
    """

    def __init__(
        self,
        listener: socket.socket,
        name: str,
        make: Callable[[], Link],
        turned_away: Callable[[str, str, str], None],
        crowd: Crowd,
        pace: Pace,
        limits: Limits,
        context: ssl.SSLContext | None,
    ) -> None:
        self.name = name
        self.address: tuple[str, int] = listener.getsockname()[:2]
        self._listener = listener
        self._make = make
        self._turned_away = turned_away
        self._crowd = crowd
        self._pace = pace
        self._limits = limits
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._tasks: dict[asyncio.Task[None], float] = {}  # handshakes under way, oldest first, and since when
        self._pause: asyncio.TimerHandle | None = None
        self._reading = False
        self._open = True
        self._said_no_room = False
        metrics.ACCEPTING.labels(name).set(1)
        self._read()

    # -- the listener ------------------------------------------------------------------------------
    def stop(self) -> None:
        """Take what waits in the queue, so that it is told to go elsewhere and not just cut off; then close.

        What comes between the last of it and the close is reset by the kernel, and finds another process at its
        next attempt; with ``net.ipv4.tcp_migrate_req=1`` the kernel hands it over itself.
        """
        if not self._open:
            return
        self._open = False
        metrics.ACCEPTING.labels(self.name).set(0)
        self._rest()
        if self._pause is not None:
            self._pause.cancel()
        for _ in range(socket.SOMAXCONN):
            if self._take() is None:
                break
        self._listener.close()

    async def ended(self) -> None:
        """End the handshakes that are under way."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _read(self) -> None:
        self._pause = None
        if self._open and not self._reading:
            self._reading = True
            self._loop.add_reader(self._listener.fileno(), self._ready)

    def _rest(self, seconds: float | None = None) -> None:
        """Leave new connections in the kernel's queue, for ``seconds`` or until ``_read``."""
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._listener.fileno())
        if seconds is not None and self._pause is None and self._open:
            self._pause = self._loop.call_later(seconds, self._read)

    def _ready(self) -> None:
        for _ in range(_PER_TURN):
            now_s = self._loop.time()
            if self._context is not None and len(self._tasks) >= self._limits.handshakes_max:
                self._reached("handshakes_max")
                self._give_way(now_s)
                self._rest(0.05)
                return
            if not self._pace.connects.take(now_s):
                self._reached("connects_per_s_max")
                self._rest(self._pace.connects.wait_s())
                return
            taken = self._take()
            if not taken:
                self._pace.connects.tokens += 1.0  # the pace of those that are taken is not set by those that are not
            if taken is None:
                return

    # -- one connection ----------------------------------------------------------------------------
    def _take(self) -> bool | None:
        """Take one connection out of the queue; returns whether it became one of ours, None when there was none."""
        try:
            sock, peer = self._listener.accept()
        except (BlockingIOError, InterruptedError):
            return None
        except ConnectionError:
            return False  # gone before its turn
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            if not self._said_no_room:
                self._said_no_room = True
                log.error(
                    "%s: no new connections, %s: raise the limit of open files (ulimit -n) above "
                    "gateway.limits.connections_max",
                    self.name,
                    os.strerror(error.errno),
                )
            metrics.ACCEPTING.labels(self.name).set(0)
            self._rest(_NO_ROOM_PAUSE_S)
            return None
        if self._said_no_room:
            self._said_no_room = False
            metrics.ACCEPTING.labels(self.name).set(1)
        now_s = self._loop.time()
        address, named = self._crowd.address(peer[0]), f"{peer[0]}:{peer[1]}"
        cause = self._crowd.refuses(address, now_s) or (
            "limit" if self._crowd.total >= self._limits.connections_max else ""
        )
        if cause:
            self._reached(SETTING_OF[cause])
            if self._context is not None or not self._pace.told.take(now_s):
                self._turned_away(cause, named, address)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                sock.close()
                return False
        self._begin(sock, address, named, cause, now_s)
        return True

    def _begin(self, sock: socket.socket, address: str, peer: str, cause: str, now_s: float) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = self._make()
        link.denied = cause
        link.address = address
        self._crowd.came(address)
        link.uncounted = lambda: self._crowd.went(address, link.proven)
        link.identified = lambda: self._crowd.identified(address)
        link.penalty = lambda: self._crowd.penalize(address)
        task = self._loop.create_task(self._connect(sock, link, address, peer, now_s), name="gateway accept")
        self._tasks[task] = now_s
        task.add_done_callback(self._connected)

    async def _connect(self, sock: socket.socket, link: Link, address: str, peer: str, since_s: float) -> None:
        secured: dict[str, Any] = {}
        if self._context is not None:
            secured = {"ssl": self._context, "ssl_handshake_timeout": self._limits.handshake_timeout_s}
        try:
            await self._loop.connect_accepted_socket(lambda: link, sock, **secured)
        except (OSError, ssl.SSLError, asyncio.CancelledError) as error:
            sock.close()
            if self._context is not None:
                took_s = self._loop.time() - since_s
                if isinstance(error, asyncio.CancelledError) or took_s >= self._limits.handshake_timeout_s - _TICK_S:
                    self._reached("handshake_timeout_s")
                self._crowd.penalize(address)
                self._turned_away("handshake", peer, address)
        finally:
            link.never_came()

    def _connected(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._loop.call_exception_handler({"message": "a connection could not be taken", "exception": fault})

    def _give_way(self, now_s: float) -> None:
        """All handshakes are taken: the oldest ends, unless it is young enough to be honest."""
        task, since_s = next(iter(self._tasks.items()))
        if now_s - since_s > _HANDSHAKE_OLD_S:
            task.cancel()

    def _reached(self, setting: str) -> None:
        metrics.LIMITS_REACHED.labels(self.name, setting).inc()


def listen(host: str, port: int, backlog: int, shared: bool) -> list[socket.socket]:
    """Listening sockets on every address of ``host``, not blocking; raises ``OSError``, with nothing left open."""
    made: list[socket.socket] = []
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            sock = socket.socket(family, kind, protocol)
            made.append(sock)
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
            sock.listen(backlog)
    except BaseException:
        for sock in made:
            sock.close()
        raise
    return made
