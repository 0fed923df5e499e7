"""Compare the Python clients with requests written by hand.

    python -m benchmarks.client

Texts are sent one by one. Pictures are uploaded one by one, as a script would do it, and with
`embed_images`. Client and service share the cores.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx

from benchmarks.support.command import environment, parse, parser, report, say
from benchmarks.support.inputs import TEXTS, photos
from benchmarks.support.record import table
from benchmarks.support.servers import serving
from loadtests.samples import percentile
from router_client import AsyncVisionEncoderClient, VisionEncoderClient


def each(call: Callable[[str], Any], texts: Sequence[str]) -> list[float]:
    """Return the duration of each call in seconds."""
    seconds = []
    for text in texts:
        began = time.perf_counter()
        call(text)
        seconds.append(time.perf_counter() - began)
    return seconds


async def each_async(url: str, texts: Sequence[str]) -> list[float]:
    """Return the duration of each call of the asyncio client in seconds."""
    async with AsyncVisionEncoderClient(url) as client:
        seconds = []
        for text in texts:
            began = time.perf_counter()
            await client.embed_text(text)
            seconds.append(time.perf_counter() - began)
        return seconds


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(parser(__doc__), argv)
    texts = TEXTS * (2 if options.quick else 20)
    pictures = photos(40 if options.quick else 400)
    say("starting the service")
    with serving("service:VisionEncoder", **environment(options)) as server:
        by_hand = httpx.Client(base_url=server.url, timeout=60)
        client = VisionEncoderClient(server.url)

        def embed(text: str) -> Any:
            return by_hand.post("/embed/text", json={"text": text}).json()["embedding"]

        def upload(data: bytes) -> Any:
            return by_hand.post("/embed/image/upload", files={"file": data}).json()["embedding"]

        each(embed, TEXTS)  # warm-up
        say("texts")
        latencies = {
            "by hand, httpx and JSON": each(embed, texts),
            "VisionEncoderClient": each(client.embed_text, texts),
            "AsyncVisionEncoderClient": asyncio.run(each_async(server.url, texts)),
        }
        say("pictures")
        began = time.perf_counter()
        for data in pictures:
            upload(data)
        one_by_one = len(pictures) / (time.perf_counter() - began)
        began = time.perf_counter()
        assert sum(1 for _ in client.embed_images(pictures)) == len(pictures)
        streamed = len(pictures) / (time.perf_counter() - began)
        client.close()
        by_hand.close()
    p50 = {name: percentile(seconds, 50) * 1000 for name, seconds in latencies.items()}
    reference = p50["by hand, httpx and JSON"]
    rows: list[tuple[Any, ...]] = [
        ("p50 of a text, ms", name, value, value / reference) for name, value in p50.items()
    ]
    rows += [
        ("pictures/s", "by hand, one upload after the other", one_by_one, 1.0),
        ("pictures/s", "embed_images", streamed, streamed / one_by_one),
    ]
    shown = table(("measured", "by", "figure", "over by hand"), rows)
    report("client", options, [shown], {"p50_ms": p50, "pictures": [one_by_one, streamed]})


if __name__ == "__main__":
    main()
