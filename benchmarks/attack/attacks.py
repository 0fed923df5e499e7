"""The attacks. Run one against a service: `python -m benchmarks.attack.attacks NAME PORT`."""

from __future__ import annotations

import io
import os
import resource
import socket
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, Final

import httpx
from PIL import Image

from benchmarks.support.inputs import ROOT, encoded, photo

_JSON: Final = {"Content-Type": "application/json"}
_HELD: Final = 8.0  # seconds for which connections are held
_LARGE: Final = (5600, 5600)  # pixels: the most of a file with less than 1 byte per 32 pixels
_PICTURES: Final = 300


class Attacker:
    """Sends requests to a service, and ignores what it answers."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def connect(self, begin: bytes = b"") -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        connection.sendall(begin)
        return connection

    def send(self, method: str, path: str, **request: Any) -> int:
        with suppress(httpx.HTTPError):
            return httpx.request(method, self.url + path, timeout=90, **request).status_code
        return 0

    def at_once(self, count: int, call: Callable[[], Any]) -> None:
        self.together([call] * count)

    def together(self, calls: Sequence[Callable[[], Any]]) -> None:
        with ThreadPoolExecutor(len(calls)) as threads:
            for done in [threads.submit(call) for call in calls]:
                done.result()

    def index(self, id: str, data: bytes, **fields: Any) -> int:
        from bento.contract.embedding import base64_of

        body = {"id": id, "image_base64": base64_of(data), **fields}
        return self.send("POST", "/images", json=body)


def fill(attacker: Attacker) -> None:
    """Index some pictures, which the neighbour and the attacks search."""

    def one(n: int) -> None:
        picture = encoded(photo(n, 64, 64))
        while attacker.index(f"own{n}", picture, metadata={"tags": [f"t{n % 50}"]}) == 429:
            time.sleep(0.1)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(one, range(_PICTURES)))


def headers(attacker: Attacker) -> None:
    """Headers, chunk extensions and trailers without end, on 8 connections."""
    begin = b"POST /embed/text HTTP/1.1\r\nHost: x\r\n"
    chunked = begin + b"Transfer-Encoding: chunked\r\n\r\n1"
    starts = (begin + b"X-Long: ", begin, chunked + b";ext=", chunked + b"\r\na\r\n0\r\n")
    until = time.monotonic() + _HELD

    def one(n: int) -> None:
        piece = (b"X-More: 1\r\n" if n % 4 in (1, 3) else b"x") * 20_000
        while time.monotonic() < until:
            with suppress(OSError), attacker.connect(starts[n % 4]) as connection:
                for _ in range(400):
                    connection.sendall(piece)

    attacker.together([partial(one, n) for n in range(8)])


def connections(attacker: Attacker) -> None:
    """3,000 connections that send nothing, or half of their headers."""
    with ExitStack() as stack:
        for n in range(3000):
            with suppress(OSError):
                stack.enter_context(attacker.connect(b"GET / HTTP/1.1\r\nX: " if n % 2 else b""))
        time.sleep(_HELD)


def json_bodies(attacker: Attacker) -> None:
    """Four bodies of 60 MB with small values, on each route."""
    values = b"1," * 30_000_000 + b"1]}"
    starts = {
        "/embed/text": b'{"text":[',
        "/embed/texts": b'{"texts":[',
        "/search": b'{"weights":[',
        "/search/batch": b'{"searches":[',
        "/v1/embeddings": b'{"input":[',
    }
    for path, start in starts.items():
        send = partial(attacker.send, "POST", path, content=start + values, headers=_JSON)
        attacker.at_once(4, send)


def metadata(attacker: Attacker) -> None:
    """Pictures with as much metadata as is accepted, and pages and batches of them."""
    picture = encoded(photo(0, 64, 64))
    small = {"note": "x" * 65_000, "tags": ["heavy"]}

    def one(n: int) -> None:
        attacker.index(f"heavy{n}", picture, metadata={"note": "x" * 1_000_000})
        attacker.index(f"heavy{n}", picture, metadata=small)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(one, range(200)))
    heavy = {"text": "a", "top_k": 1000, "filter": _match("tags", ["heavy"])}
    grouped = {**heavy, "group_by": "tags", "group_size": 100}
    for body in (heavy, grouped, {**heavy, "diversity": 0.5}):
        attacker.at_once(8, partial(attacker.send, "POST", "/search", json=body))
    batch = {"searches": [heavy] * 100}
    attacker.at_once(4, partial(attacker.send, "POST", "/search/batch", json=batch))
    attacker.at_once(8, partial(attacker.send, "GET", "/collections/daarion_images/images"))


def unread(attacker: Attacker) -> None:
    """200 connections that ask for large answers and never read them."""
    request = b"GET /collections/daarion_images/images HTTP/1.1\r\nHost: localhost\r\n\r\n"
    texts = b'{"texts":[' + b'"a",' * 999 + b'"a"]}'
    head = (
        b"POST /embed/texts HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % len(texts)
    )
    with ExitStack() as stack:
        for n in range(200):
            begin = request if n % 20 else head + texts
            with suppress(OSError):
                stack.enter_context(attacker.connect(begin))
        time.sleep(3 * _HELD)


def previews(attacker: Attacker) -> None:
    """Large pictures: uploads, their previews six at a time, and 10,000 paths of one file."""
    buffer = io.BytesIO()
    Image.new("RGBA", _LARGE, (1, 2, 3, 4)).save(buffer, "PNG")
    file = ROOT / ".data" / "attack.bin"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(os.urandom(17_000_000))
    paths = {"image_path": str(file), "duplicates": [str(file)] * 9_000}
    large = [partial(attacker.index, f"large{n}", buffer.getvalue(), **paths) for n in range(3)]
    attacker.together(large)
    gets = [partial(attacker.send, "GET", f"/images/large{n % 3}/thumbnail") for n in range(6)]
    attacker.together(gets)
    attacker.together(
        [partial(attacker.send, "GET", f"/images/own{n}/thumbnail") for n in range(8)]
    )
    file.unlink()


def abandoned(attacker: Attacker) -> None:
    """Upload large pictures, and leave at once."""
    buffer = io.BytesIO()
    Image.new("RGBA", _LARGE, (1, 2, 3, 4)).save(buffer, "PNG")
    part = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        + buffer.getvalue()
        + b"\r\n--b--\r\n"
    )
    head = (
        b"POST /embed/image/upload HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: %d\r\n\r\n" % len(part)
    )
    for _ in range(60):
        with suppress(OSError), attacker.connect(head + part):
            time.sleep(0.05)


def store(attacker: Attacker) -> None:
    """Many grouped searches in one batch, filters of the largest size, and deep pages."""
    grouped = {"text": "a", "top_k": 100, "group_by": "tags", "group_size": 5}
    lists = [f"t{n}" for n in range(1000)]
    filters = [
        {"should": [_match("tags", lists)["must"][0]] * 5},
        {"must": [{"key": "n", "range": {"gt": -n}} for n in range(1, 101)]},
        {"must_not": [{"key": f"k{n}", "range": {"gt": 0}} for n in range(100)]},
    ]
    searches = [{"text": "a", "top_k": 100, "offset": 9000, "filter": f} for f in filters]
    batch = {"searches": [grouped] * 80}

    def one(n: int) -> None:
        if n < 2:
            attacker.send("POST", "/search/batch", json=batch)
        else:
            attacker.send("POST", "/search", json=searches[n % 3])

    attacker.together([partial(one, n) for n in range(22)])


def bombs(attacker: Attacker) -> None:
    """Malformed pictures, 16 at once."""
    files = sorted((ROOT / "tests" / "data" / "malformed").glob("*.*"))
    pictures = [file.read_bytes() for file in files if file.suffix not in (".py", ".md")]

    def one(data: bytes) -> None:
        attacker.send("POST", "/embed/image/upload", files={"file": data})

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(one, pictures * 2))


def _match(key: str, values: Sequence[str]) -> dict[str, Any]:
    return {"must": [{"key": key, "match": {"any": list(values)}}]}


ATTACKS: Final = {
    attack.__name__: attack
    for attack in (
        headers,
        connections,
        json_bodies,
        metadata,
        unread,
        previews,
        abandoned,
        store,
        bombs,
    )
}


def main() -> None:
    name, port = sys.argv[1:]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    {"fill": fill, **ATTACKS}[name](Attacker(int(port)))


if __name__ == "__main__":
    main()
