"""IP addresses: which are public, and what is one at all."""

from __future__ import annotations

import ipaddress
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_UNICAST_V6: Final = ipaddress.ip_network("2000::/3")  # all that is given out
_SPECIAL: Final = tuple(  # within what is, but of no host, or another address in disguise
    map(
        ipaddress.ip_network,
        (
            "192.0.0.0/24",
            "192.88.99.0/24",  # relays of 6to4
            "2001::/23",  # Teredo and others
            "2001:db8::/32",
            "2002::/16",  # 6to4
            "3fff::/20",
        ),
    )
)


def is_public(address: Address) -> bool:
    """Say whether an address is global unicast and no other address in disguise."""
    if any(address in network for network in _SPECIAL):
        return False
    if isinstance(address, ipaddress.IPv6Address):
        return address in _UNICAST_V6 and address.is_global
    return address.is_global and not address.is_multicast and not address.is_reserved


def is_address(host: str) -> bool:
    """Say whether a host is an IP address, as it is usually written."""
    try:
        return bool(ipaddress.ip_address(host))
    except ValueError:
        return False
