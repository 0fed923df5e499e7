"""A client of the shared service, and a second service with keys and small limits."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.support.bento.access import KEYS, LIMIT, PAGE_OF_OURS
from tests.support.serving import Server, serving


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="package")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start a service with two keys and small limits."""
    with serving(
        tmp_path_factory.mktemp("locked"),
        API_KEY=",".join(KEYS),
        CORS_ALLOWED_ORIGINS=f"{PAGE_OF_OURS},http://localhost:3000",
        MAX_IMAGE_BYTES="1000000",
        MAX_REQUEST_BYTES=str(LIMIT),
        MAX_QUEUE_BYTES="4000000",
    ) as server:
        yield server
