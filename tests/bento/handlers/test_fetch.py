"""`ImageFetcher` fetches from public addresses only, however a URL or a redirect names them."""

from __future__ import annotations

import asyncio
import gzip
import ipaddress
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from bento.contract.errors import Busy, TooLarge, UrlFailed, UrlRefused
from bento.handlers.addresses import Address, is_public
from bento.handlers.fetch import ImageFetcher
from bento.runners.admission import ByteBudget
from tests.support.wire import Wire, answer, wire

LOOPBACK: Address = ipaddress.ip_address("127.0.0.1")


class Server(ThreadingHTTPServer):
    """An HTTP server that records the hosts and headers of its requests."""

    def __init__(self, address: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__((address, port), Site)
        self.hosts: list[str | None] = []
        self.headers: list[set[str]] = []  # the names of each request's headers
        self.release = threading.Event()  # /slow waits for it


class Site(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.hosts.append(self.headers["Host"])
        self.server.headers.append({name.lower() for name in self.headers})
        if self.path == "/slow":
            self.server.release.wait(10)
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.send_header("Set-Cookie", "session=1; Path=/")
            self.end_headers()
            return
        self.send_response(404 if self.path == "/gone" else 200)
        self.end_headers()
        self.wfile.write(b"p" * (5000 if self.path == "/big" else 10))

    def log_message(self, *arguments: Any) -> None:
        pass


@contextmanager
def serving(address: str = "127.0.0.1", port: int = 0) -> Iterator[Server]:
    server = Server(address, port)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def site() -> Iterator[Server]:
    with serving() as server:
        yield server


def fetcher(site: Server | Wire, **options: Any) -> ImageFetcher:
    """Return a fetcher for which only the site's address is public."""

    async def resolver(host: str, port: int) -> list[Address]:
        if host == "private.test":
            return [ipaddress.ip_address("10.0.0.1")]
        return [LOOPBACK]

    settings: dict[str, Any] = {
        "enabled": True,
        "max_bytes": 1000,
        "max_total_bytes": 1000,
        "allow": lambda address: address == LOOPBACK,
        "ports": frozenset({site.port if isinstance(site, Wire) else site.server_port, 80}),
        "resolver": resolver,
        "timeout": 2.0,
    }
    return ImageFetcher(**{**settings, **options})


def get(fetcher: ImageFetcher, url: str) -> bytes:
    return asyncio.run(fetcher.fetch(url))


def url(site: Server | Wire, path: str) -> str:
    port = site.port if isinstance(site, Wire) else site.server_port
    return f"http://picture.test:{port}{path}"


def test_an_image_is_fetched_under_its_host_name(site: Server) -> None:
    assert get(fetcher(site), url(site, "/a.png")) == b"p" * 10
    assert site.hosts == [f"picture.test:{site.server_port}"]


def test_fetching_is_off_by_default(site: Server) -> None:
    with pytest.raises(UrlRefused, match="ALLOW_IMAGE_URLS=true"):
        get(fetcher(site, enabled=False), url(site, "/a.png"))
    assert site.hosts == []


@pytest.mark.parametrize(
    "bad",
    [
        "file:///etc/passwd",
        "ftp://picture.test/a.png",
        "http://user:secret@picture.test/a.png",
        "http://private.test@picture.test/a.png",
        "http://picture.test@private.test/a.png",
        "http://picture.test:80@private.test/a.png",
        "http://private.test\\@picture.test/a.png",
        "http://picture.test%00/a.png",
        "http://[2606:4700::1111%25lo]/a.png",
        "http://picture.test:22/a.png",
        "http://picture.test:0/a.png",
        "http://picture.test:99999/a.png",
        "http://private.test/a.png",
        "picture.png",
        "http://",
        "http://[::1",
        "http://\ud800/a.png",
        "\ud800",
        "http://picture.test/\r\nX: 1",
        "http:picture.test/a.png",
        "//picture.test/a.png",
        "",
    ],
)
def test_other_urls_are_rejected(site: Server, bad: str) -> None:
    with pytest.raises(UrlRefused):
        get(fetcher(site), bad)


def test_a_redirect_to_a_private_address_is_refused(site: Server) -> None:
    with pytest.raises(UrlRefused, match=r"private\.test does not have a public address"):
        get(fetcher(site), url(site, "/to/http://private.test/a.png"))


def test_redirects_are_followed_three_times(site: Server) -> None:
    assert get(fetcher(site), url(site, "/to//to//to//a.png")) == b"p" * 10
    with pytest.raises(UrlFailed, match="redirects more than 3 times"):
        get(fetcher(site), url(site, "/to//to//to//to//a.png"))


def test_reading_stops_at_the_byte_limit(site: Server) -> None:
    with pytest.raises(TooLarge, match="1,000 bytes"):
        get(fetcher(site), url(site, "/big"))


def test_an_error_names_the_status_of_the_site(site: Server) -> None:
    with pytest.raises(UrlFailed, match="status 404"):
        get(fetcher(site), url(site, "/gone"))


def test_a_slow_site_times_out(site: Server) -> None:
    with pytest.raises(UrlFailed, match="took longer"):
        get(fetcher(site, timeout=0.1), url(site, "/slow"))


def test_errors_do_not_reveal_names_of_a_private_network(site: Server) -> None:
    async def resolver(host: str, port: int) -> list[Address]:
        if host == "nowhere.test":
            raise OSError("unknown")
        return [] if host == "empty.test" else [ipaddress.ip_address("10.0.0.1")]

    said = set()
    for host in ("nowhere.test", "empty.test", "private.test"):
        with pytest.raises(UrlRefused) as caught:
            get(fetcher(site, resolver=resolver), f"http://{host}/a.png")
        said.add(str(caught.value).replace(host, "HOST"))
    assert len(said) == 1


def test_an_allowed_host_that_does_not_resolve_fails(site: Server) -> None:
    async def resolver(host: str, port: int) -> list[Address]:
        raise OSError("unknown")

    named = fetcher(site, resolver=resolver, hosts=frozenset({"picture.test"}))
    with pytest.raises(UrlFailed, match=r"picture\.test could not be resolved"):
        get(named, url(site, "/a.png"))


def test_a_host_is_reached_at_the_address_that_listens(site: Server) -> None:
    async def resolver(host: str, port: int) -> list[Address]:
        return [ipaddress.ip_address("127.0.0.99"), LOOPBACK]  # nothing listens on the first

    both = fetcher(site, resolver=resolver, allow=lambda address: True)
    assert get(both, url(site, "/a.png")) == b"p" * 10


def test_a_host_with_one_private_address_is_rejected(site: Server) -> None:
    async def resolver(host: str, port: int) -> list[Address]:
        return [LOOPBACK, ipaddress.ip_address("192.168.0.1")]

    with pytest.raises(UrlRefused):
        get(fetcher(site, resolver=resolver), url(site, "/a.png"))


def test_only_allowed_hosts_are_fetched_and_they_may_be_private(site: Server) -> None:
    named = fetcher(site, allow=is_public, hosts=frozenset({"picture.test"}))
    assert get(named, url(site, "/a.png")) == b"p" * 10
    for bad in ("http://other.test/a.png", "http://picture.test./a.png", "http://127.0.0.1/a.png"):
        with pytest.raises(UrlRefused):
            get(named, bad)
    with pytest.raises(UrlRefused, match=r"does not fetch from other\.test"):
        get(named, url(site, "/to/http://other.test/a.png"))
    with pytest.raises(UrlRefused, match=r"port 1; allowed: .*IMAGE_URL_ALLOWED_PORTS"):
        get(named, "http://picture.test:1/a.png")


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.1", "2130706433", "0x7f000001", "0X7F.1", "0177.0.0.1", "127.0.0.1."),
        *(
            "localhost",
            "localhost.",
            "LOCALHOST",
            "０",
            "0",
            "0.0.0.0",
            "127.0.0.1%00.picture.test",
        ),
        *("[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]"),
        *("[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[fe80::1%25lo]", "[fe80::1%lo]", "[::1%251]"),
        *("１２７.０.０.１", "127。0。0。1", "ⓛocalhost", "%6cocalhost", "%31%32%37.0.0.1"),
        # public, but in a notation that only hides an address
        *("134744072", "0x08080808", "8.8.2056", "010.8.8.8", "[::ffff:8.8.8.8]", "[::8.8.8.8]"),
    ],
)
def test_a_private_address_is_rejected_in_every_notation(host: str) -> None:
    with pytest.raises(UrlRefused):
        get(ImageFetcher(enabled=True, max_bytes=10, max_total_bytes=10), f"http://{host}/a.png")


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("2a00:1450::1", True),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("127.0.0.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("192.0.0.8", False),
        ("192.0.2.1", False),
        ("192.88.99.1", False),
        ("198.18.0.1", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("0.0.0.0", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("fe80::1", False),
        ("fe80::1%eth0", False),
        ("fec0::1", False),
        ("fc00::1", False),
        ("ff02::1", False),
        ("ff0e::1", False),
        ("100::1", False),
        ("4000::1", False),
        ("2001:db8::1", False),
        ("3fff::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", False),
        ("::ffff:0:8.8.8.8", False),
        ("::8.8.8.8", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::808:808", False),
        ("64:ff9b:1::1", False),
        ("2002:7f00:1::", False),
        ("2002:808:808::", False),
        ("2001:0:7f00:1::", False),
    ],
)
def test_only_global_unicast_is_public(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


def test_the_connection_goes_to_the_checked_address() -> None:
    """DNS rebinding: the first answer is a public address, all later ones are the loopback."""
    answers = ["127.0.0.2"]

    async def resolver(host: str, port: int) -> list[Address]:
        return [ipaddress.ip_address(answers.pop() if answers else "127.0.0.1")]

    public = ipaddress.ip_address("127.0.0.2")
    with serving("127.0.0.2") as outside, serving("127.0.0.1", outside.server_port) as inside:
        rebound = fetcher(outside, resolver=resolver, allow=lambda address: address == public)
        assert get(rebound, url(outside, "/a.png")) == b"p" * 10
        answers.append("127.0.0.2")
        with pytest.raises(UrlRefused):
            get(rebound, url(outside, "/to//a.png"))
        assert (len(outside.hosts), inside.hosts) == (2, [])


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "http://user:secret@picture.test/a.png",
        "http://picture.test:22/a.png",
        "http://127.1/a.png",
        "//private.test/a.png",
    ],
)
def test_a_redirect_is_checked_like_the_first_url(site: Server, location: str) -> None:
    with pytest.raises(UrlRefused):
        get(fetcher(site), url(site, f"/to/{location}"))
    assert len(site.hosts) == 1


@pytest.mark.parametrize(
    "location",
    [
        *("http://a:b/", "http://xn--a/", "http://0177.0.0.1/"),
        *("mailto:x", "http:foo", "data:,x"),
    ],
)
def test_a_redirect_to_an_invalid_url_fails(site: Server, location: str) -> None:
    with pytest.raises(UrlFailed, match="could not be fetched: the server's answer is not valid"):
        get(fetcher(site), url(site, f"/to/{location}"))


def test_a_fetch_sends_no_cookies_and_no_credentials(
    site: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login user password secret")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with wire(answer(200, "the proxy")) as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy"):
            monkeypatch.setenv(name, proxy.url)
        # the redirect sets a cookie
        assert get(fetcher(site), url(site, "/to//a.png")) == b"p" * 10
        assert proxy.requests == []
    plain = {"host", "accept", "accept-encoding", "connection", "user-agent"}
    assert site.headers == [plain, plain]


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"


@pytest.mark.parametrize(
    "drips", [[HEAD, *[b"p"] * 30], [b"HTTP/1.1 200 OK\r\n", *[b"X: 1\r\n"] * 30]]
)
def test_a_site_that_drips_is_given_up_after_the_same_time(drips: list[bytes]) -> None:
    started = time.monotonic()
    with wire(drips) as dripping:
        with pytest.raises(UrlFailed):
            get(fetcher(dripping, timeout=0.3), url(dripping, "/a.png"))
        assert time.monotonic() - started < 2  # all drips take 3 s, a single one 0.1 s


def test_a_compressed_body_is_rejected(site: Server) -> None:
    bomb = gzip.compress(bytes(10_000_000))
    with wire(answer(200, bomb, "Content-Encoding: gzip")) as compressing:
        with pytest.raises(UrlFailed, match="compressed"):
            get(fetcher(compressing, max_bytes=20_000_000), url(compressing, "/a.png"))
        assert b"accept-encoding: identity" in compressing.requests[0].lower()


@pytest.mark.parametrize(
    "thing",
    [
        b"SSH-2.0-secret_1.0\r\n",
        b"220 secret ESMTP\r\n",
        answer(403, "secret"),
        answer(200, "secret", "Content-Encoding: secret"),
        answer(302, "secret", "Location: http://a:secret/"),
    ],
)
def test_an_error_quotes_nothing_from_the_site(thing: bytes) -> None:
    with wire(thing) as other, pytest.raises(UrlFailed) as caught:
        get(fetcher(other), url(other, "/a.png"))
    assert "secret" not in str(caught.value)


def test_a_name_is_resolved_as_it_is_sent(site: Server) -> None:
    asked = []

    async def resolver(host: str, port: int) -> list[Address]:
        asked.append(host)
        return [LOOPBACK]

    named = fetcher(site, resolver=resolver, hosts=frozenset({"straße.test"}))
    get(named, f"http://straße.test:{site.server_port}/a.png")
    assert asked == ["xn--strae-oqa.test"]  # not strasse.test, which is another host
    assert site.hosts == [f"xn--strae-oqa.test:{site.server_port}"]


def test_fetched_bytes_count_like_bytes_of_the_request_body(site: Server) -> None:
    refusals: list[int] = []
    budget = ByteBudget(25, lambda: refusals.append(1))

    async def fetch_twice(limit: int) -> None:
        with budget.claim():
            for _ in range(2):
                await fetcher(site, max_total_bytes=limit).fetch(url(site, "/a.png"))
            assert budget.held == 20

    asyncio.run(fetch_twice(20))
    with pytest.raises(TooLarge, match="more than 19 bytes in total"):
        asyncio.run(fetch_twice(19))
    with budget.claim() as other:
        other.take(6)
        with pytest.raises(Busy):
            asyncio.run(fetch_twice(20))
    assert (budget.held, refusals) == (0, [1])
