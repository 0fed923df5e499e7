"""Fetching an image from a URL, from public addresses only."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import httpx

from bento.errors import TooLarge, UrlFailed, UrlRefused

MAX_REDIRECTS: Final = 3
PORTS: Final = frozenset({80, 443})
TIMEOUT_SECONDS: Final = 10.0

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_TRANSLATED: Final = (  # IPv6 ranges that lead to an IPv4 address of any kind
    ipaddress.ip_network("64:ff9b::/96"),
    ipaddress.ip_network("64:ff9b:1::/48"),
    ipaddress.ip_network("2002::/16"),
    ipaddress.ip_network("2001::/32"),
)


def is_public(address: Address) -> bool:
    """Say whether an address is global unicast, seen through IPv4 mapped into IPv6."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return is_public(address.ipv4_mapped)
        if any(address in network for network in _TRANSLATED):
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


async def resolve(host: str, port: int) -> list[Address]:
    """Return the addresses of a host, as the system resolves them."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]


class ImageFetcher:
    """Fetches images over http(s). Off unless `enabled`; then public addresses only.

    With `hosts` from those only, whatever their addresses are.

    A host is resolved once, its address is checked, and that address is connected to, so
    that a name cannot change its mind in between. Every redirect is checked alike.
    """

    def __init__(
        self,
        *,
        enabled: bool,
        max_bytes: int,
        allow: Callable[[Address], bool] = is_public,
        hosts: frozenset[str] = frozenset(),
        ports: frozenset[int] = PORTS,
        resolver: Callable[[str, int], Awaitable[list[Address]]] = resolve,
        timeout: float = TIMEOUT_SECONDS,
    ) -> None:
        self._enabled = enabled
        self._max_bytes = max_bytes
        self._allow = allow
        self._hosts = hosts
        self._ports = ports
        self._resolve = resolver
        self._timeout = timeout

    async def fetch(self, url: str) -> bytes:
        """Return the bytes behind a URL.

        Raises `UrlRefused`, `UrlFailed` or `TooLarge`.
        """
        if not self._enabled:
            raise UrlRefused(
                "this service fetches no image URLs; send image_base64 or upload the file "
                "(an operator turns URLs on with ALLOW_IMAGE_URLS=true)"
            )
        try:
            async with asyncio.timeout(self._timeout):
                return await self._follow(url)
        except TimeoutError:
            raise UrlFailed(
                f"fetching the image took longer than {self._timeout:.0f} s: {url}"
            ) from None
        except httpx.HTTPError as error:
            what = str(error) or type(error).__name__
            raise UrlFailed(f"the image could not be fetched: {what}: {url}") from None

    async def _follow(self, url: str) -> bytes:
        # trust_env off: a proxy of the environment would connect for us, unchecked
        async with httpx.AsyncClient(trust_env=False, timeout=self._timeout) as client:
            for _ in range(MAX_REDIRECTS + 1):
                target, addresses = await self._checked(url)
                response = await self._connect(client, target, addresses)
                try:
                    if response.has_redirect_location:
                        url = str(target.join(response.headers["Location"]))
                        continue
                    if response.status_code != 200:
                        raise UrlFailed(f"the image URL answered {response.status_code}: {url}")
                    return await self._read(response)
                finally:
                    await response.aclose()
        raise UrlFailed(f"the image URL redirects more than {MAX_REDIRECTS} times: {url}")

    async def _connect(
        self, client: httpx.AsyncClient, target: httpx.URL, addresses: Sequence[Address]
    ) -> httpx.Response:
        """Ask the first of a host's addresses that can be connected to."""
        for i, address in enumerate(addresses, 1):
            request = client.build_request(
                "GET",
                target.copy_with(host=str(address)),
                headers={"Host": target.netloc.decode(), "Accept-Encoding": "identity"},
                extensions={"sni_hostname": target.host},
            )
            try:
                return await client.send(request, stream=True)
            except httpx.ConnectError:
                if i == len(addresses):
                    raise
        raise UrlFailed(f"the host {target.host} has no address")

    async def _checked(self, url: str) -> tuple[httpx.URL, Sequence[Address]]:
        try:
            target = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise UrlRefused(f"this is no URL: {error}") from None
        if target.scheme not in ("http", "https") or not target.host:
            raise UrlRefused(f"only http:// and https:// URLs are fetched, not {url[:200]}")
        if target.userinfo:
            raise UrlRefused("a URL with a user name or password is not fetched")
        if self._hosts and target.host not in self._hosts:
            raise UrlRefused(
                f"{target.host[:200]} is not one of the hosts that are fetched from "
                "(IMAGE_URL_ALLOWED_HOSTS)"
            )
        port = target.port or (443 if target.scheme == "https" else 80)
        if port not in self._ports:
            allowed = ", ".join(map(str, sorted(self._ports)))
            raise UrlRefused(
                f"port {port} is not fetched from; allowed: {allowed} (IMAGE_URL_ALLOWED_PORTS)"
            )
        try:
            addresses = await self._resolve(target.host, port)
        except (OSError, UnicodeError):
            raise UrlFailed(f"the host {target.host} could not be resolved") from None
        for address in addresses:
            if target.host not in self._hosts and not self._allow(address):
                raise UrlRefused(
                    f"{target.host} is not a public address; only public ones are fetched, and "
                    "hosts that an operator names (IMAGE_URL_ALLOWED_HOSTS)"
                )
        return target, addresses

    async def _read(self, response: httpx.Response) -> bytes:
        body = bytearray()
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > self._max_bytes:
                raise TooLarge(f"the image has more than {self._max_bytes:,} bytes, the limit")
        return bytes(body)
