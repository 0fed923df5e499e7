"""The rules of access control, with and without a key."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import ValidationError
from starlette.datastructures import Headers

from bento import Settings
from bento.contract.errors import EncoderError, ForeignPage, Unauthorized, describe
from bento.web.access import Access, warning
from bento.web.middleware import RequestMiddleware
from tests.support.bento.access import BENTOML, PAGE_OF_OURS, PAGES, key


def test_a_websocket_is_closed() -> None:
    sent: list[Any] = []

    async def app(*_: Any) -> None:
        raise AssertionError("the request reached the application")

    async def gather(message: Any) -> None:
        sent.append(message)

    options: dict[str, Any] = {"budget": None, "metrics": None}
    options |= {"max_body_bytes": 1, "max_items": 1, "max_requests": 1}
    middleware = RequestMiddleware(app, access=Access(Settings()), **options)
    asyncio.run(middleware({"type": "websocket"}, None, gather))  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close"}]


def access(**settings: Any) -> Access:
    return Access(Settings(**settings))


def rejection(access: Access, method: str, path: str, **headers: str) -> type[EncoderError] | None:
    try:
        given = Headers({name.replace("_", "-"): value for name, value in headers.items()})
        access.check(method, path, given)
    except EncoderError as error:
        return type(error)
    return None


@pytest.mark.parametrize(("metrics", "ui"), [(False, False), (True, False), (False, True)])
def test_metrics_and_pages_each_have_a_setting_that_makes_them_public(
    metrics: bool, ui: bool
) -> None:
    guard = access(api_key="k", metrics_public=metrics, ui_public=ui)
    assert (rejection(guard, "GET", "/metrics") is None) == metrics
    for path in PAGES:
        assert (rejection(guard, "GET", path) is None) == ui, path
    for path in ("/ui2", "/metrics/", *BENTOML, "/images/ui/", "/docsx", "/health", "/info"):
        assert rejection(guard, "GET", path) is Unauthorized, path


@pytest.mark.parametrize(
    "given",
    [
        *("s3cret,", ",s3cret", "s3cret,,b", ",", " ", "s3cret key", "s3cret ", "a, s3cret"),
        *("s3cretключ", "s3c\tret", "s3cret\n", "s3c\x7fret"),
    ],
)
def test_a_key_that_no_header_can_carry_is_rejected_at_start(given: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(api_key=given)
    message = describe(caught.value)
    assert message.startswith("API_KEY: must be one key, or several keys separated by commas")
    assert "s3c" not in message + str(caught.value) + repr(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        *("*", "null", "pictures.example", "https://", "https://a/", "https://a/b", "HTTPS://A"),
        *("https://*.a", "https://a, https://b", "https://a,", "https://u@a", "ftp://a"),
    ],
)
def test_an_invalid_origin_is_rejected_at_start(given: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(cors_allowed_origins=given)
    assert f"CORS_ALLOWED_ORIGINS={given}: must be a comma-separated list" in describe(caught.value)


# Without a key


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ("127.0.0.1", "every program on this machine"),
        ("::1", "every program on this machine"),
        ("0.0.0.0", "anyone who can reach port 8001"),
        ("192.168.1.2", "anyone who can reach port 8001"),
        ("some-name", "anyone who can reach port 8001"),
    ],
)
def test_the_warning_says_who_can_use_a_service_without_a_key(host: str, says: str) -> None:
    message = warning(Settings(host=host))
    assert message is not None
    assert says in message
    assert f"HOST={host}" in message
    assert warning(Settings(host=host, api_key="k")) is None


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"Origin": "http://localhost:8001"}, True),
        ({"Origin": "http://localhost:8001", "Sec-Fetch-Site": "same-origin"}, True),
        (
            {"Origin": "https://gpu.example", "Sec-Fetch-Site": "same-origin"},
            True,
        ),  # through a proxy
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Origin": PAGE_OF_OURS, "Sec-Fetch-Site": "cross-site"}, True),
        ({"Origin": "https://evil.example"}, False),
        ({"Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-site"}, False),
        ({"Origin": "http://localhost:8001", "Sec-Fetch-Site": "cross-site"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "localhost:8001"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
    ],
)
def test_a_page_of_another_site_cannot_write_without_a_key(
    headers: dict[str, str], allowed: bool
) -> None:
    guard = access(cors_allowed_origins=PAGE_OF_OURS)
    for method in ("POST", "PATCH", "DELETE", "PUT"):
        found = rejection(guard, method, "/images/a", Host="localhost:8001", **headers)
        assert found is (None if allowed else ForeignPage)
    assert rejection(guard, "GET", "/ui", Host="localhost:8001", **headers) is None
    with_key = {**headers, **key("k"), "Host": "localhost:8001"}
    assert rejection(access(api_key="k"), "POST", "/search", **with_key) is None


@pytest.mark.parametrize(
    ("forwarded", "origin", "allowed"),
    [
        ("gpu.example", "https://gpu.example", True),
        ("gpu.example:8080, 10.0.0.2", "http://gpu.example:8080", True),
        ("gpu.example", "https://evil.example", False),
        ("gpu.example", "http://127.0.0.1:8001", False),  # another page of the user's machine
        ("", "https://gpu.example", False),
    ],
)
def test_pages_of_the_host_that_a_trusted_proxy_names_are_allowed(
    forwarded: str, origin: str, allowed: bool
) -> None:
    headers = {"Host": "127.0.0.1:8001", "X-Forwarded-Host": forwarded, "Origin": origin}
    found = rejection(access(), "POST", "/images", **headers)
    assert found is (None if allowed else ForeignPage)


def test_a_forwarded_host_does_not_allow_a_foreign_host_name() -> None:
    headers = {"Host": "evil.example", "X-Forwarded-Host": "localhost"}  # as after DNS rebinding
    assert rejection(access(), "GET", "/info", **headers) is ForeignPage


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost:8001", True),
        ("LOCALHOST", True),
        ("demo.localhost:80", True),
        ("127.0.0.1:8001", True),
        ("192.168.1.2", True),
        ("[::1]:8001", True),
        ("vision-encoder:8001", True),  # nobody can register this name
        ("pictures.example", True),
        ("", True),
        ("evil.example:8001", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("pictures.example.evil.example", False),
        ("[::1", False),
    ],
)
def test_a_foreign_host_name_is_rejected_without_a_key(host: str, allowed: bool) -> None:
    guard = access(cors_allowed_origins=PAGE_OF_OURS)
    found = rejection(guard, "GET", "/collections/daarion_images/images", Host=host)
    assert found is (None if allowed else ForeignPage)
    assert rejection(guard, "GET", "/readyz", Host=host) is None
    everywhere = access(host="0.0.0.0")  # its names are unknown
    assert rejection(everywhere, "GET", "/info", Host=host) is None
    assert rejection(access(api_key="k"), "GET", "/info", Host=host, X_API_Key="k") is None
