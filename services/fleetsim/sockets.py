"""How many connections this machine lets one process, and one address, have."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Final

from services.errors import UsageError

OTHER_FILES: Final = 64  # besides the vehicles' sockets
_PORTS_FILE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_PORTS_USUAL: Final = 28_232


def allow_sockets(vehicles: int, who: str) -> None:
    """Let this process open a socket for each of ``vehicles``.  Raises ``UsageError`` when the system forbids it."""
    wanted = vehicles + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise UsageError(
            f"{who}: {vehicles} vehicles need as many sockets, this system allows {hard} open files: "
            f"raise the hard limit (ulimit -Hn {wanted}), or simulate fewer"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def ports_per_address() -> int:
    """How many connections to one target can come from one address."""
    try:
        low, high = _PORTS_FILE.read_text("ascii").split()
    except (OSError, ValueError):
        return _PORTS_USUAL
    return int(high) - int(low) + 1
