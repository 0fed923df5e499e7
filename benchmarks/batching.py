"""Compare the service's queues with BentoML's `batchable=True` and with no batching.

    python -m benchmarks.batching

For each tower one client loads the service, then 32 clients at once, then one again. Clients and
service share the machine, so trust the ratios.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from benchmarks.support.command import environment, parse, parser, report, say
from benchmarks.support.load import Kind, load
from benchmarks.support.record import table
from benchmarks.support.servers import serving

_CLIENTS: Final = 32
_SERVICES: Final[dict[str, tuple[str, tuple[Kind, Kind]]]] = {
    "in-process queue": ("service:VisionEncoder", ("text", "image")),
    "batchable=True": ("benchmarks.support.batchable:Batchable", ("texts", "images")),
    "no batching": ("benchmarks.support.batchable:Unbatched", ("texts", "images")),
}


def measure(port: int, kind: Kind, seconds: float) -> dict[str, Any]:
    """Load a route with one client, with many, and with one again."""
    before = load(port, kind, seconds=seconds)
    crowd = load(port, kind, clients=_CLIENTS, seconds=seconds)
    after = load(port, kind, seconds=seconds)
    return {"before": asdict(before), "crowd": asdict(crowd), "after": asdict(after)}


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(parser(__doc__, seconds=(10.0, 0.7)), argv)
    seconds = options.seconds
    rows: list[dict[str, Any]] = []
    for service, (target, kinds) in _SERVICES.items():
        say(f"serving {target}")
        with serving(target, **environment(options)) as server:
            for kind in kinds:
                say(f"  {kind}")
                measured = measure(server.port, kind, seconds)
                rows.append({"service": service, "kind": kind.rstrip("s"), **measured})
    shown = table(
        (
            "service",
            "kind",
            f"requests/s, {_CLIENTS} clients",
            "p50 ms",
            "p50 ms of one client before",
            "after",
            "failures",
        ),
        [
            (
                row["service"],
                row["kind"],
                row["crowd"]["rate"],
                *(
                    (row[phase]["latency"] or {}).get("p50")
                    for phase in ("crowd", "before", "after")
                ),
                sum(row[phase]["failures"] for phase in ("before", "crowd", "after")),
            )
            for row in rows
        ],
    )
    report("batching", options, [shown], rows)


if __name__ == "__main__":
    main()
