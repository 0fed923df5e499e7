"""The router's connections, with the limits of the service's."""

from __future__ import annotations

from typing import Any

from bento.contract.errors import ServiceError
from bento.web.connections.connection import Connection
from router_client.router.rules import RouterResponse


class RouterConnection(Connection):
    """A connection of the router, whose errors have the router's shape."""

    def error_body(self, error: ServiceError) -> dict[str, Any]:
        return RouterResponse(ok=False, error=str(error)).model_dump()
