"""Fetching URLs: public addresses only, whatever the name says and wherever it leads."""

from __future__ import annotations

import asyncio
import ipaddress
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from bento.errors import TooLarge, UrlFailed, UrlRefused
from bento.fetch import Address, ImageFetcher, is_public

LOOPBACK: Address = ipaddress.ip_address("127.0.0.1")


class Server(ThreadingHTTPServer):
    """Remembers which hosts it was asked for, and holds /slow until released."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Site)
        self.hosts: list[str | None] = []
        self.release = threading.Event()


class Site(BaseHTTPRequestHandler):
    """A site of our own on the loopback."""

    server: Server

    def do_GET(self) -> None:
        self.server.hosts.append(self.headers["Host"])
        if self.path == "/slow":
            self.server.release.wait(10)
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
            return
        self.send_response(404 if self.path == "/gone" else 200)
        self.end_headers()
        self.wfile.write(b"p" * (5000 if self.path == "/big" else 10))

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def site() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()
    thread.join()


def fetcher(site: Server, **options: Any) -> ImageFetcher:
    """Return a fetcher to which the site's address is public, and `private.test` is not."""

    async def resolver(host: str, port: int) -> list[Address]:
        if host == "private.test":
            return [ipaddress.ip_address("10.0.0.1")]
        return [LOOPBACK]

    settings: dict[str, Any] = {
        "enabled": True,
        "max_bytes": 1000,
        "allow": lambda address: address == LOOPBACK,
        "ports": frozenset({site.server_port, 80}),
        "resolver": resolver,
        "timeout": 2.0,
    }
    return ImageFetcher(**{**settings, **options})


def get(fetcher: ImageFetcher, url: str) -> bytes:
    return asyncio.run(fetcher.fetch(url))


def url(site: Server, path: str) -> str:
    return f"http://picture.test:{site.server_port}{path}"


def test_an_image_is_fetched_under_its_host_name(site: Server) -> None:
    assert get(fetcher(site), url(site, "/a.png")) == b"p" * 10
    assert site.hosts == [f"picture.test:{site.server_port}"]


def test_fetching_is_off_unless_turned_on(site: Server) -> None:
    with pytest.raises(UrlRefused, match="ALLOW_IMAGE_URLS=true"):
        get(fetcher(site, enabled=False), url(site, "/a.png"))
    assert site.hosts == []


@pytest.mark.parametrize(
    "bad",
    [
        "file:///etc/passwd",
        "ftp://picture.test/a.png",
        "http://user:secret@picture.test/a.png",
        "http://picture.test:22/a.png",
        "http://private.test/a.png",
        "picture.png",
        "http://",
        "http://[::1",
    ],
)
def test_other_urls_are_refused(site: Server, bad: str) -> None:
    with pytest.raises(UrlRefused):
        get(fetcher(site), bad)


def test_a_redirect_to_a_private_address_is_refused(site: Server) -> None:
    with pytest.raises(UrlRefused, match=r"private\.test is not a public address"):
        get(fetcher(site), url(site, "/to/http://private.test/a.png"))


def test_redirects_are_followed_three_times(site: Server) -> None:
    assert get(fetcher(site), url(site, "/to//to//to//a.png")) == b"p" * 10
    with pytest.raises(UrlFailed, match="redirects more than 3 times"):
        get(fetcher(site), url(site, "/to//to//to//to//a.png"))


def test_too_many_bytes_are_not_read(site: Server) -> None:
    with pytest.raises(TooLarge, match="1,000 bytes"):
        get(fetcher(site), url(site, "/big"))


def test_an_error_of_the_site_is_told(site: Server) -> None:
    with pytest.raises(UrlFailed, match="answered 404"):
        get(fetcher(site), url(site, "/gone"))


def test_a_slow_site_is_given_up(site: Server) -> None:
    with pytest.raises(UrlFailed, match="took longer"):
        get(fetcher(site, timeout=0.3), url(site, "/slow"))


def test_a_name_that_does_not_resolve_is_told(site: Server) -> None:
    async def resolver(host: str, port: int) -> list[Address]:
        raise OSError("unknown")

    with pytest.raises(UrlFailed, match=r"picture\.test could not be resolved"):
        get(fetcher(site, resolver=resolver), url(site, "/a.png"))


def test_a_host_that_listens_on_one_of_its_addresses_is_found(site: Server) -> None:
    async def resolver(host: str, port: int) -> list[Address]:
        return [ipaddress.ip_address("127.0.0.99"), LOOPBACK]  # nothing listens on the first

    both = fetcher(site, resolver=resolver, allow=lambda address: True)
    assert get(both, url(site, "/a.png")) == b"p" * 10


def test_a_host_with_one_private_address_is_refused(site: Server) -> None:
    async def resolver(host: str, port: int) -> list[Address]:
        return [LOOPBACK, ipaddress.ip_address("192.168.0.1")]

    with pytest.raises(UrlRefused):
        get(fetcher(site, resolver=resolver), url(site, "/a.png"))


def test_a_host_that_is_named_may_be_private_and_no_other_is_fetched(site: Server) -> None:
    named = fetcher(site, allow=is_public, hosts=frozenset({"picture.test"}))
    assert get(named, url(site, "/a.png")) == b"p" * 10
    for bad in ("http://other.test/a.png", "http://picture.test./a.png", "http://127.0.0.1/a.png"):
        with pytest.raises(UrlRefused, match="IMAGE_URL_ALLOWED_HOSTS"):
            get(named, bad)
    with pytest.raises(UrlRefused, match=r"other\.test is not one of the hosts"):
        get(named, url(site, "/to/http://other.test/a.png"))
    with pytest.raises(UrlRefused, match=r"port 1 is not fetched from.*IMAGE_URL_ALLOWED_PORTS"):
        get(named, "http://picture.test:1/a.png")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.1", "2130706433", "0x7f000001", "localhost", "[::1]", "0.0.0.0"]
)
def test_the_loopback_is_refused_however_it_is_written(host: str) -> None:
    with pytest.raises(UrlRefused, match="not a public address"):
        get(ImageFetcher(enabled=True, max_bytes=10), f"http://{host}/a.png")


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("0.0.0.0", False),
        ("255.255.255.255", False),
        ("::", False),
        ("fe80::1", False),
        ("fc00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_only_global_unicast_is_public(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public
