"""Tell which IP addresses are public, and which host names are IP addresses."""

from __future__ import annotations

import ipaddress
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_UNICAST_V6: Final = ipaddress.ip_network("2000::/3")  # as allocated by IANA
_SPECIAL: Final = tuple(  # not public: reserved, or with another address embedded
    map(
        ipaddress.ip_network,
        (
            "192.0.0.0/24",
            "192.88.99.0/24",  # 6to4 relays
            "2001::/23",  # IETF protocols, Teredo among them
            "2001:db8::/32",
            "2002::/16",  # 6to4
            "3fff::/20",
        ),
    )
)


def is_public(address: Address) -> bool:
    """Return whether an address is global unicast and does not embed another address."""
    if any(address in network for network in _SPECIAL):
        return False
    if isinstance(address, ipaddress.IPv6Address):
        return address in _UNICAST_V6 and address.is_global
    return address.is_global and not address.is_multicast and not address.is_reserved


def is_address(host: str) -> bool:
    """Return whether a host is an IP address in its standard notation."""
    try:
        return bool(ipaddress.ip_address(host))
    except ValueError:
        return False
