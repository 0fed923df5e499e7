"""Security headers, and CORS options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

ALWAYS: Final = (
    # Pages have a policy of their own. Nothing else may run scripts, load files or be framed.
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
)
_NEVER: Final = frozenset({b"server", b"x-bentoml-request-id"})


class SecurityHeaders:
    """Adds the security headers that an answer lacks, and removes those that name the software."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [one for one in message.get("headers", ()) if one[0] not in _NEVER]
                given = {name for name, _ in kept}
                more = [one for one in ALWAYS if one[0] not in given]
                message = {**message, "headers": kept + more}
            await send(message)

        await self.app(scope, receive, send_secured)


def cors_options(origins: Sequence[str]) -> dict[str, Any]:
    """Return the options of Starlette's CORSMiddleware that allow pages of `origins`."""
    return {
        "allow_origins": origins,
        "allow_methods": ["GET", "POST", "PATCH", "DELETE"],
        "allow_headers": ["Authorization", "X-API-Key", "X-Request-ID", "If-None-Match"],
        "expose_headers": ["X-Request-ID", "Retry-After", "ETag"],
    }
