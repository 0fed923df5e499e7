"""Access control: API keys, public routes, and requests from pages of other sites."""

from __future__ import annotations

import ipaddress
from hashlib import sha256
from hmac import compare_digest
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from bento.contract.errors import ForeignPage, Unauthorized
from bento.handlers.addresses import is_address
from bento.settings import Settings

_PROBES: Final = frozenset({"/livez", "/readyz", "/healthz"})
# Pages for browsers, and the files that they load. They contain no data.
_PAGES: Final = frozenset({"/", "/ui", "/docs", "/openapi.json"})
_PAGES_FILES: Final = ("/ui/", "/docs/", "/static_content/")
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})  # these methods change nothing


class Access:
    """Decides whether a request is allowed, before its body is read.

    With a key, every route needs it, except the probes and the routes that the settings make
    public. Without a key, every client may send requests, except pages of other sites in a user's
    browser. These pages could otherwise write, or read through a host name of their own that
    resolves to this machine (DNS rebinding). If there is a key, they can do neither, because they
    do not know it.
    """

    def __init__(self, settings: Settings) -> None:
        self._keys = [_digest(key) for key in settings.api_keys]
        self._metrics_public = settings.metrics_public
        self._ui_public = settings.ui_public
        self._origins = frozenset(settings.allowed_origins)
        self._hosts = {urlsplit(origin).hostname for origin in self._origins}
        self._on_loopback = _is_loopback(settings.host)

    def check(self, method: str, path: str, headers: Headers) -> None:
        """Raise `Unauthorized` or `ForeignPage` if the request is not allowed."""
        if path in _PROBES:
            return
        if not self._keys:
            self._reject_foreign_pages(method, headers)
        elif not self._has_key(headers) and not self._is_public(path):
            raise Unauthorized(_key_message(path, headers))

    def _has_key(self, headers: Headers) -> bool:
        given = headers.get("x-api-key")
        if given is None:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer":
                return False
        digest = _digest(given.strip())
        # compares every key, so that the time does not depend on which one matches
        return sum(compare_digest(digest, key) for key in self._keys) > 0

    def _is_public(self, path: str) -> bool:
        if path == "/metrics":
            return self._metrics_public
        return self._ui_public and _is_page(path)

    def _reject_foreign_pages(self, method: str, headers: Headers) -> None:
        host = headers.get("host", "")
        if self._on_loopback and self._is_foreign_name(host):
            raise ForeignPage(
                f"without API_KEY, this service does not answer to the Host header {host[:80]!r}. "
                "On a loopback address, it answers only to localhost, IP addresses and the hosts "
                "in CORS_ALLOWED_ORIGINS. Set API_KEY, or add the host's origin there"
            )
        # A page cannot set this header for a request to another site.
        host = headers.get("x-forwarded-host", host).partition(",")[0].strip()
        origin = headers.get("origin")
        if method in _SAFE or origin in self._origins:
            return
        # Browsers send Sec-Fetch-Site to https: and localhost only, and Origin always. Other
        # clients send neither.
        site = headers.get("sec-fetch-site")
        own = (
            site in ("same-origin", "none")
            if site
            else origin in (None, f"http://{host}", f"https://{host}")
        )
        if not own:
            raise ForeignPage(
                f"without API_KEY, this service does not accept {method[:10]} requests from pages "
                f"of {(origin or site or '')[:80]!r}. Set API_KEY, or add the page's origin to "
                "CORS_ALLOWED_ORIGINS"
            )

    def _is_foreign_name(self, host: str) -> bool:
        """Return whether `host` is a domain name that somebody else could have registered."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return True
        registrable = "." in name and not name.endswith(".localhost") and not is_address(name)
        return registrable and name not in self._hosts


def warning(settings: Settings) -> str | None:
    """Return a warning that says who can use a service without a key; None if it has one."""
    if settings.api_keys:
        return None
    if _is_loopback(settings.host):
        return (
            "API_KEY is not set: every program on this machine can use this service "
            f"(HOST={settings.host})"
        )
    return (
        f"API_KEY is not set and HOST={settings.host}: anyone who can reach port {settings.port} "
        "can search, index and delete. Set API_KEY"
    )


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def _digest(key: str) -> bytes:
    return sha256(key.encode()).digest()


def _is_page(path: str) -> bool:
    return path in _PAGES or path.startswith(_PAGES_FILES)


def _key_message(path: str, headers: Headers) -> str:
    if "x-api-key" in headers or "authorization" in headers:
        message = "this service does not accept the API key: send one of its keys"
    else:
        message = "the API key is missing: send it"
    message += " as Authorization: Bearer KEY or X-API-Key: KEY"
    if path == "/metrics":
        return f"{message}. METRICS_PUBLIC=true serves /metrics without a key"
    if _is_page(path):
        return (
            f"{message}. A browser cannot send it: UI_PUBLIC=true serves the search page and /docs "
            "without a key. They contain no data and ask for the key themselves"
        )
    return f"{message}. The clients of this project read it from API_KEY"
