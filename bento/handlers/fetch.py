"""Fetch images from URLs on public addresses."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Final

import aiodns
import httpx

from bento.contract.errors import TooLarge, UrlFailed, UrlRefused
from bento.handlers.addresses import Address, is_address, is_public
from bento.runners.admission import current_claim

MAX_REDIRECTS: Final = 3
PORTS: Final = frozenset({80, 443})
TIMEOUT_SECONDS: Final = 10.0

_NUMBER: Final = re.compile(r"(^|\.)(0x[0-9a-f]*|\d+)\.?$")  # a host name never ends in a number


class Resolver:
    """Resolves host names as /etc/hosts and /etc/resolv.conf say, without threads.

    A lookup in a thread cannot be cancelled, so names that resolve slowly would fill the threads.
    `servers` replaces the name servers of /etc/resolv.conf.
    """

    def __init__(self, servers: Sequence[str] | None = None) -> None:
        self._servers = servers
        self.dns: aiodns.DNSResolver | None = None  # needs a running event loop

    async def __call__(self, host: str, port: int) -> list[Address]:
        """Return the addresses of a host name. Raises `OSError`."""
        if self.dns is None:
            self.dns = aiodns.DNSResolver(self._servers)
        try:
            found = await self.dns.getaddrinfo(
                host, family=socket.AF_UNSPEC, port=port, type=socket.SOCK_STREAM
            )
        except aiodns.error.DNSError as error:
            raise OSError(*error.args) from None
        return [ipaddress.ip_address(node.addr[0].decode()) for node in found.nodes]


@cache
def _tls() -> ssl.SSLContext:
    """Read the certificates once: that takes tens of milliseconds and blocks the event loop."""
    return httpx.create_ssl_context(trust_env=False)


class ImageFetcher:
    """Fetches images over http(s) if `enabled`, from public addresses only.

    If `hosts` is not empty, the fetcher accepts these hosts only, and their addresses may be
    private.

    The fetcher resolves a host once, checks its addresses and connects to one of them, so that
    DNS rebinding cannot change the address after the check. It checks every redirect the same way.
    """

    def __init__(
        self,
        *,
        enabled: bool,
        max_bytes: int,
        allow: Callable[[Address], bool] = is_public,
        hosts: frozenset[str] = frozenset(),
        ports: frozenset[int] = PORTS,
        max_total_bytes: int,
        resolver: Callable[[str, int], Awaitable[list[Address]]] | None = None,
        timeout: float = TIMEOUT_SECONDS,
    ) -> None:
        self._enabled = enabled
        self._max_bytes = max_bytes
        self._allow = allow
        self._hosts = frozenset(httpx.URL(f"http://{host}").raw_host for host in hosts)
        self._ports = ports
        self._max_total_bytes = max_total_bytes
        self._resolve = resolver or Resolver()
        self._timeout = timeout

    async def fetch(self, url: str) -> bytes:
        """Fetch a URL, and count its bytes towards the current request.

        Raises `UrlRefused`, `UrlFailed`, `TooLarge` or `Busy`. No error quotes a server's answer,
        or reveals whether a host name without a public address exists.
        """
        if not self._enabled:
            raise UrlRefused(
                "this service does not fetch image URLs: send image_base64 or upload the file "
                "(an operator can allow URLs with ALLOW_IMAGE_URLS=true)"
            )
        try:
            async with asyncio.timeout(self._timeout):
                return await self._follow(url)
        except TimeoutError:
            raise UrlFailed(
                f"fetching the image took longer than {self._timeout:.0f} s: {_shown(url)}"
            ) from None
        # A redirect to an invalid URL raises InvalidURL or UnicodeError.
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            raise UrlFailed(
                f"the image could not be fetched: {_cause(error)}: {_shown(url)}"
            ) from None

    async def _follow(self, url: str) -> bytes:
        # trust_env=False: a proxy from the environment would connect to unchecked addresses
        async with httpx.AsyncClient(
            verify=_tls(),
            trust_env=False,
            timeout=self._timeout,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
            headers={"User-Agent": "vision-encoder", "Accept-Encoding": "identity"},
        ) as client:
            for _ in range(MAX_REDIRECTS + 1):
                target, addresses = await self._checked(url)
                response = await self._connect(client, target, addresses)
                try:
                    if response.has_redirect_location:
                        url = str(target.join(response.headers["Location"]))
                        continue
                    if response.status_code != 200:
                        raise UrlFailed(
                            f"the image URL answered with status {response.status_code}, not 200: "
                            f"{_shown(url)}"
                        )
                    return await self._read(response)
                finally:
                    await response.aclose()
        raise UrlFailed(
            f"the image URL redirects more than {MAX_REDIRECTS} times, the limit: {_shown(url)}"
        )

    async def _connect(
        self, client: httpx.AsyncClient, target: httpx.URL, addresses: Sequence[Address]
    ) -> httpx.Response:
        """Send the request to the first address that accepts a connection."""
        for i, address in enumerate(addresses, 1):
            request = client.build_request(
                "GET",
                target.copy_with(host=str(address)),
                headers={"Host": target.netloc.decode()},
                extensions={"sni_hostname": target.raw_host.decode()},
            )
            try:
                return await client.send(request, stream=True)
            except httpx.ConnectError:
                if i == len(addresses):
                    raise
        raise AssertionError("_checked returned no address")

    async def _checked(self, url: str) -> tuple[httpx.URL, Sequence[Address]]:
        target = _parsed(url)
        if target.scheme not in ("http", "https") or not target.raw_host:
            raise UrlRefused(f"{_shown(url)!r} is not an http:// or https:// URL with a host name")
        if target.userinfo:
            raise UrlRefused("the URL has a user name or password: remove it")
        named = target.raw_host in self._hosts
        host = target.raw_host.decode()
        if self._hosts and not named:
            raise UrlRefused(
                f"this service does not fetch from {_shown(host)}; an operator can allow the host "
                "(IMAGE_URL_ALLOWED_HOSTS)"
            )
        if "%" in host or (_NUMBER.search(host) and not is_address(host)):
            raise UrlRefused(
                f"{_shown(host)} is neither a host name nor an IP address in standard notation"
            )
        port = {"http": 80, "https": 443}[target.scheme] if target.port is None else target.port
        if port not in self._ports:
            allowed = ", ".join(map(str, sorted(self._ports)))
            raise UrlRefused(
                f"this service does not fetch from port {port}; allowed: {allowed} "
                "(IMAGE_URL_ALLOWED_PORTS)"
            )
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError):
            addresses = []
        if named and not addresses:
            raise UrlFailed(f"the host name {_shown(host)} could not be resolved")
        if not (addresses and (named or all(map(self._allow, addresses)))):
            raise UrlRefused(
                f"{_shown(host)} does not have a public address, as this service requires; an "
                "operator can allow private hosts (IMAGE_URL_ALLOWED_HOSTS)"
            )
        return target, addresses

    async def _read(self, response: httpx.Response) -> bytes:
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise UrlFailed("the image URL answered with a compressed body, which is not allowed")
        body, claim = bytearray(), current_claim.get(None)
        async for chunk in response.aiter_raw():
            if claim:
                claim.take_fetched(len(chunk), self._max_total_bytes)
            body += chunk
            if len(body) > self._max_bytes:
                raise TooLarge(
                    f"the image has more than {self._max_bytes:,} bytes, the limit "
                    "(MAX_IMAGE_BYTES)"
                )
        return bytes(body)


def _parsed(url: str) -> httpx.URL:
    try:
        return httpx.URL(url)
    except (httpx.InvalidURL, UnicodeError):
        raise UrlRefused(f"{_shown(url)!r} is not a valid URL") from None


def _cause(error: Exception) -> str:
    """Describe an error without quoting the server's answer, as httpx's messages may do."""
    if isinstance(error, httpx.ConnectError):  # before the server answers
        return str(error)
    if isinstance(error, httpx.TimeoutException):
        return "the server did not answer in time"
    if isinstance(error, httpx.NetworkError):
        return "the connection was interrupted"
    return "the server's answer is not valid"


def _shown(url: str) -> str:
    return url if len(url) <= 200 else f"{url[:200]}…"
