"""Fetching an image from a URL, from public addresses only."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Final

import httpx

from bento.contract.errors import TooLarge, UrlFailed, UrlRefused
from bento.handlers.addresses import Address, is_address, is_public
from bento.handlers.fetched import fetched

MAX_REDIRECTS: Final = 3
PORTS: Final = frozenset({80, 443})
TIMEOUT_SECONDS: Final = 10.0

_NUMBER: Final = re.compile(r"(^|\.)(0x[0-9a-f]*|\d+)\.?$")  # what no name ends in
_RESOLVING: Final = ThreadPoolExecutor(16, "resolve")  # slow names hold up nothing else


async def resolve(host: str, port: int) -> list[Address]:
    """Return the addresses of a host, as the system resolves them."""
    find = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = await asyncio.get_running_loop().run_in_executor(_RESOLVING, find)
    return [ipaddress.ip_address(entry[4][0]) for entry in found]


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
        self._hosts = frozenset(httpx.URL(f"http://{host}").raw_host for host in hosts)
        self._ports = ports
        self._resolve = resolver
        self._timeout = timeout

    async def fetch(self, url: str) -> bytes:
        """Return the bytes behind a URL, which count as bytes of the request at hand.

        Raises `UrlRefused`, `UrlFailed`, `TooLarge` or `Busy`. No error tells anything of what
        an answer had in it, nor whether a name that leads to no public address exists.
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
                f"fetching the image took longer than {self._timeout:.0f} s: {_shown(url)}"
            ) from None
        # the latter two of what redirects name
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            # the words of others would quote what a server that speaks no HTTP said
            what = str(error) if isinstance(error, httpx.ConnectError) else type(error).__name__
            raise UrlFailed(f"the image could not be fetched: {what}: {_shown(url)}") from None

    async def _follow(self, url: str) -> bytes:
        # trust_env off: a proxy of the environment would connect for us, unchecked
        async with httpx.AsyncClient(
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
                            f"the image URL answered {response.status_code}: {_shown(url)}"
                        )
                    return await self._read(response)
                finally:
                    await response.aclose()
        raise UrlFailed(f"the image URL redirects more than {MAX_REDIRECTS} times: {_shown(url)}")

    async def _connect(
        self, client: httpx.AsyncClient, target: httpx.URL, addresses: Sequence[Address]
    ) -> httpx.Response:
        """Ask the first of a host's addresses that can be connected to."""
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
        raise AssertionError("a host that was checked has an address")

    async def _checked(self, url: str) -> tuple[httpx.URL, Sequence[Address]]:
        target = _parsed(url)
        if target.scheme not in ("http", "https") or not target.raw_host:
            raise UrlRefused(f"only http:// and https:// URLs are fetched, not {_shown(url)}")
        if target.userinfo:
            raise UrlRefused("a URL with a user name or password is not fetched")
        named = target.raw_host in self._hosts
        host = target.raw_host.decode()
        if self._hosts and not named:
            raise UrlRefused(
                f"{_shown(host)} is not one of the hosts that are fetched from "
                "(IMAGE_URL_ALLOWED_HOSTS)"
            )
        if "%" in host or (_NUMBER.search(host) and not is_address(host)):
            raise UrlRefused(
                f"{_shown(host)} is no host name, nor an address as it is usually written"
            )
        port = {"http": 80, "https": 443}[target.scheme] if target.port is None else target.port
        if port not in self._ports:
            allowed = ", ".join(map(str, sorted(self._ports)))
            raise UrlRefused(
                f"port {port} is not fetched from; allowed: {allowed} (IMAGE_URL_ALLOWED_PORTS)"
            )
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError):
            addresses = []
        if named and not addresses:
            raise UrlFailed(f"the host {_shown(host)} could not be resolved")
        if not (addresses and (named or all(map(self._allow, addresses)))):
            raise UrlRefused(
                f"{_shown(host)} does not lead to a public address; only public ones are fetched, "
                "and hosts that an operator names (IMAGE_URL_ALLOWED_HOSTS)"
            )
        return target, addresses

    async def _read(self, response: httpx.Response) -> bytes:
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise UrlFailed("the image URL answers compressed, though asked for the image as it is")
        body, of_request = bytearray(), fetched.get(None)
        async for chunk in response.aiter_raw():
            if of_request:
                of_request.add(len(chunk))
            body += chunk
            if len(body) > self._max_bytes:
                raise TooLarge(f"the image has more than {self._max_bytes:,} bytes, the limit")
        return bytes(body)


def _parsed(url: str) -> httpx.URL:
    try:
        return httpx.URL(url)
    except (httpx.InvalidURL, UnicodeError) as error:
        raise UrlRefused(f"this is no URL: {error}") from None


def _shown(url: str) -> str:
    return url if len(url) <= 200 else f"{url[:200]}…"
