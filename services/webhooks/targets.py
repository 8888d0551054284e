"""Which addresses a webhook may be sent to.

URLs come from the settings only, never from a request, so they are an operator's choice.  But a name can be made to
point anywhere by whoever owns it: it is resolved here, every address is judged, and the connection goes to the
address that was judged, not to the name (which might say something else a moment later).
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Final, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from services.settings import WebhookTargets

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Where clouds hand out credentials, besides link-local 169.254.169.254: Alibaba, and AWS over IPv6.
_CREDENTIALS: Final = {ipaddress.ip_address("100.100.100.200"), ipaddress.ip_address("fd00:ec2::254")}


class Refused(Exception):
    """The name leads to no address that may be used, or to none at all."""


class Target(NamedTuple):
    """``url`` goes to an address; ``host`` is the Host header, ``name`` the one that the certificate must have."""

    url: str
    host: str
    name: str


def allowed(address: Address, targets: WebhookTargets) -> bool:
    """Whether a webhook may be sent there."""
    mapped = getattr(address, "ipv4_mapped", None)
    address = mapped or address
    if address.is_link_local or address.is_multicast or address.is_unspecified or address in _CREDENTIALS:
        return False
    return targets is WebhookTargets.ANY or address.is_global


async def resolved(url: str, targets: WebhookTargets) -> Target:
    """The URL with an address that may be used in place of its name.  Raises ``Refused``."""
    parts = urlsplit(url)
    name = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Refused(f"the name {name} cannot be resolved: {error}") from error
    addresses = list(dict.fromkeys(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found))
    good = [address for address in addresses if allowed(address, targets)]
    if not good:
        where = ", ".join(map(str, addresses))
        raise Refused(f"{name} leads to {where}, which alarms.webhook_targets = {targets.value!r} does not allow")
    chosen = f"[{good[0]}]" if good[0].version == 6 else str(good[0])
    at = urlunsplit((parts.scheme, f"{chosen}:{port}", parts.path or "/", parts.query, ""))
    shown = f"[{name}]" if ":" in name else name
    return Target(at, shown if parts.port is None else f"{shown}:{parts.port}", name)
