"""Who may ask for what: keys, what is public, and pages of others in somebody's browser."""

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
# What people open in a browser, and what that loads: the same in every service, and no data.
_PAGES: Final = frozenset({"/", "/ui", "/docs", "/openapi.json"})
_PAGES_FILES: Final = ("/ui/", "/docs/", "/static_content/")
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})  # they change nothing


class Access:
    """Decides, before a body is read, whether a request may be made.

    With a key, everything but the probes and what the settings make public needs it. Without one
    everybody may ask, except a foreign page in the browser of somebody who may: such a page
    cannot send a key, but without one it could write, or read under a name of its own that leads
    to this machine (DNS rebinding).
    """

    def __init__(self, settings: Settings) -> None:
        self._keys = [_digest(key) for key in settings.api_keys]
        self._metrics_public = settings.metrics_public
        self._ui_public = settings.ui_public
        self._origins = frozenset(settings.allowed_origins)
        self._hosts = {urlsplit(origin).hostname for origin in self._origins}
        self._on_loopback = _is_loopback(settings.host)

    def check(self, method: str, path: str, headers: Headers) -> None:
        """Raise `Unauthorized` or `ForeignPage` when this request may not be made."""
        if path in _PROBES:
            return
        if not self._keys:
            self._refuse_foreign_pages(method, headers)
        elif not self._has_key(headers) and not self._is_public(path):
            raise Unauthorized(_asking(path, headers))

    def _has_key(self, headers: Headers) -> bool:
        given = headers.get("x-api-key")
        if given is None:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer":
                return False
        digest = _digest(given.strip())
        # each is compared, so that the time says nothing
        return any([compare_digest(digest, key) for key in self._keys])

    def _is_public(self, path: str) -> bool:
        if path == "/metrics":
            return self._metrics_public
        return self._ui_public and _is_page(path)

    def _refuse_foreign_pages(self, method: str, headers: Headers) -> None:
        host = headers.get("host", "")
        if self._on_loopback and self._is_foreign_name(host):
            raise ForeignPage(
                f"the host of this request is {host[:80]!r}: without API_KEY, on a loopback "
                "address, this service answers to localhost, to IP addresses and to the hosts of "
                "CORS_ALLOWED_ORIGINS"
            )
        origin = headers.get("origin")
        if method in _SAFE or origin in self._origins:
            return
        # browsers send the first to https: and localhost, the second everywhere; others neither
        site = headers.get("sec-fetch-site")
        own = (
            site in ("same-origin", "none")
            if site
            else origin in (None, f"http://{host}", f"https://{host}")
        )
        if not own:
            raise ForeignPage(
                f"a page of {(origin or site or '')[:80]!r} sent this: without API_KEY only pages "
                "of this service and of CORS_ALLOWED_ORIGINS may"
            )

    def _is_foreign_name(self, host: str) -> bool:
        """Say whether a host is a name that anybody can have registered."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return True
        registrable = "." in name and not name.endswith(".localhost") and not is_address(name)
        return registrable and name not in self._hosts


def warning(settings: Settings) -> str | None:
    """Return what is to be said at start about who may use this service; None with a key."""
    if settings.api_keys:
        return None
    if _is_loopback(settings.host):
        return (
            f"API_KEY is not set: every program on this machine may use this service "
            f"(HOST={settings.host})"
        )
    return (
        f"API_KEY is not set and HOST={settings.host}: everybody who reaches port {settings.port} "
        "may search, index and delete; set API_KEY"
    )


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def _digest(key: str) -> bytes:
    return sha256(key.encode()).digest()


def _is_page(path: str) -> bool:
    return path in _PAGES or path.startswith(_PAGES_FILES)


def _asking(path: str, headers: Headers) -> str:
    """Say what is missing, or wrong, and what helps."""
    sent = "x-api-key" in headers or "authorization" in headers
    said = "the key that was sent is not one of this service's" if sent else "a key is needed"
    said += ": send one as Authorization: Bearer KEY or X-API-Key: KEY"
    if path == "/metrics":
        return f"{said}; METRICS_PUBLIC=true makes the metrics public"
    if _is_page(path):
        return (
            f"{said}. A browser cannot: UI_PUBLIC=true makes the search page and /docs public, "
            "which hold no data and ask for the key themselves"
        )
    return f"{said} (the clients of this service take it from API_KEY)"
