"""Measure how much a bulk upload of images delays texts.

    python -m benchmarks.isolation

One text client loads the service, then 16 image clients, then both at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Final

from benchmarks.support.command import environment, parse, parser, report, say
from benchmarks.support.load import load
from benchmarks.support.record import table
from benchmarks.support.servers import serving

_BULK_CLIENTS: Final = 16
_MOST: Final = 4.0  # bound of a text's p95 over its p95 alone


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(parser(__doc__, seconds=(20.0, 3.0)), argv)
    seconds = options.seconds
    with serving("service:VisionEncoder", **environment(options)) as server:
        say("one text client")
        text = load(server.port, "text", seconds=seconds)
        say(f"{_BULK_CLIENTS} image clients")
        bulk = load(server.port, "image", clients=_BULK_CLIENTS, seconds=seconds)
        say("both")
        with ThreadPoolExecutor() as pool:
            beside = pool.submit(load, server.port, "image", clients=_BULK_CLIENTS, seconds=seconds)
            mixed_text = load(server.port, "text", seconds=seconds)
            mixed_bulk = beside.result()
    ratio = mixed_text.of("p95") / text.of("p95")
    shown = table(
        ("load", "text p50 ms", "text p95 ms", "images/s", "failures"),
        [
            ("one text client", text.p50, text.of("p95"), None, text.failures),
            (f"{_BULK_CLIENTS} image clients", None, None, bulk.rate, bulk.failures),
            (
                "both",
                mixed_text.p50,
                mixed_text.of("p95"),
                mixed_bulk.rate,
                mixed_text.failures + mixed_bulk.failures,
            ),
            (
                f"both / alone (text p95 at most {_MOST:g})",
                mixed_text.p50 / text.p50,
                ratio,
                mixed_bulk.rate / bulk.rate,
                None,
            ),
        ],
    )
    results = {
        "text": asdict(text),
        "bulk": asdict(bulk),
        "mixed_text": asdict(mixed_text),
        "mixed_bulk": asdict(mixed_bulk),
        "p95_ratio": ratio,
        "met": ratio <= _MOST,
    }
    report("isolation", options, [shown], results)


if __name__ == "__main__":
    main()
