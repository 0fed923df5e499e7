"""Compare the service with the model alone and with a hand-written service.

    python -m benchmarks.serving

The model alone (`benchmarks.forward`) is measured first and last, and "of the model alone" refers
to the mean. Shared machines are noisy, so the targets are medians over turns: images alternate
with the model alone, texts with the hand-written service.
"""

from __future__ import annotations

import math
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from statistics import mean, median
from typing import Any, Final

from benchmarks.forward import Measure, alone, best_rates, limit
from benchmarks.support.command import environment, parse, parser, report, say
from benchmarks.support.load import BULK, KINDS, Kind, Loaded, load
from benchmarks.support.record import Table, table_of
from benchmarks.support.servers import Server, free_port, running, serving
from bento import Settings

PARTS: Final = ("ours", "handwritten", "sustained", "overload")
_SERVICE: Final = "service:VisionEncoder"
_OURS: Final = "this service"
_THEIRS: Final = "hand-written"
_CLIENTS: Final = (1, 8, 32, 64)
_FEW_CLIENTS: Final = (1, 32)  # of the hand-written service
_QUICK_CLIENTS: Final = (32,)
_SUSTAINED_CLIENTS: Final = 64
_MAX_QUEUE_MS: Final = 2000
_OVERLOAD: Final = 4  # times the capacity of the service
_TURNS: Final = 8
_FEW_TURNS: Final = 1  # with --quick
_COLUMNS: Final = {
    "service": "service",
    "kind": "kind",
    "clients": "clients",
    "rate": "items/s",
    "of_limit": "of the model alone",
    "p50": "p50 ms",
    "p95": "p95 ms",
    "p99": "p99 ms",
    "failures": "failures",
    "service_cpu_ms": "CPU ms, service",
    "cpu_ms": "CPU ms, generator",
}
_TURN_COLUMNS: Final = {
    "alone": "images/s, the model alone",
    "rate": "32 clients",
    "of_alone": "of the model alone",
    "alone_ms": "a forward of one, ms",
    "single_ms": "a single image, p50 ms",
    "single_over_alone": "over a forward of one",
}
_TEXT_COLUMNS: Final = {
    "hand_written": "texts/s, hand-written",
    "rate": _OURS,
    "over": "over hand-written",
}
_TARGET_COLUMNS: Final = {"target": "target", "value": "reached", "bound": "bound", "met": "met"}


def step(name: str, server: Server, kind: Any, clients: int, seconds: float) -> dict[str, Any]:
    """Load one route and return the figures, with CPU times per item."""
    say(f"{name}: {kind}, {clients} clients")
    items = BULK if kind == "bulk" else 1  # per request
    before = server.cpu_seconds()
    loaded = load(server.port, kind, clients=clients, seconds=seconds)
    cpu_ms = 1000 * (server.cpu_seconds() - before) / loaded.requests / items
    return {
        "service": name if items == 1 else f"{name}, {items} a request",
        "kind": kind if items == 1 else "image",
        "clients": clients,
        **asdict(loaded),
        "rate": loaded.rate * items,
        "cpu_ms": loaded.cpu_ms / items,
        "service_cpu_ms": cpu_ms,
    }


def in_turn(options: Namespace, measure: Measure, server: Server, dtype: str) -> dict[str, Any]:
    """Alternate images and the model alone; return the medians of the turns, and the turns."""
    turns, seconds = turns_of(options), options.seconds / 2
    loads: list[tuple[Loaded, Loaded]] = []
    limits = [measure("image", dtype, seconds)]
    for turn in range(turns):
        say(f"images and the model alone in turn, {turn + 1} of {turns}")
        crowd = load(server.port, "image", clients=32, seconds=seconds)
        loads.append((crowd, load(server.port, "image", seconds=seconds / 2)))
        limits.append(measure("image", dtype, seconds))
    rates = map(mean, pairwise(best_rates(limits)))
    singles = map(mean, pairwise(each["single_ms"] for each in limits))
    found = []
    for (crowd, single), rate, alone_ms in zip(loads, rates, singles, strict=True):
        found.append(
            {
                "alone": rate,
                "rate": crowd.rate,
                "of_alone": crowd.rate / rate,
                "alone_ms": alone_ms,
                "single_ms": single.p50,
                "single_over_alone": single.p50 / alone_ms,
            }
        )
    medians = {key: median(turn[key] for turn in found) for key in found[0]}
    failures = sum(each.failures for pair in loads for each in pair)
    return {**medians, "turns": found, "failures": failures}


def texts_in_turn(options: Namespace, server: Server, theirs: Server) -> dict[str, Any]:
    """Alternate with the hand-written service; return the ratio of the texts/s of 32 clients."""
    turns, seconds = turns_of(options), options.seconds / 2
    found, failures = [], 0
    for turn in range(turns):
        say(f"texts and the hand-written service in turn, {turn + 1} of {turns}")
        pair = (server, theirs) if turn % 2 else (theirs, server)
        loads = {each: load(each.port, "text", clients=32, seconds=seconds) for each in pair}
        rate, hand_written = loads[server].rate, loads[theirs].rate
        found.append({"hand_written": hand_written, "rate": rate, "over": rate / hand_written})
        failures += loads[server].failures
    over = median(turn["over"] for turn in found)
    return {"over": over, "turns": found, "failures": failures}


def sustained(options: Namespace, server: Server, idle: Server) -> dict[str, Any]:
    """Load each route for a long time; return latencies before and after, failures and memory.

    `idle` is as in `overload`.
    """
    seconds = long_of(options)
    found: dict[str, Any] = {}
    held, peak = server.memory_bytes(), 0
    for kind in KINDS:
        say(f"sustained: {kind}, {_SUSTAINED_CLIENTS} clients for {seconds:g} s")
        before, failed_before = single_over_idle(options, server, idle, kind)
        with server.memory_samples() as memory:
            crowd = load(server.port, kind, clients=_SUSTAINED_CLIENTS, seconds=seconds)
        after, failed_after = single_over_idle(options, server, idle, kind)
        peak = max(peak, *memory)
        found[kind] = {
            "before": before,
            "crowd": asdict(crowd),
            "after": after,
            "after_over_before": after / before,
            "failures": failed_before + crowd.failures + failed_after,
        }
    return {**found, "idle_mb": held / 1e6, "peak_over_idle_mb": (peak - held) / 1e6}


def single_over_idle(
    options: Namespace, server: Server, idle: Server, kind: Kind
) -> tuple[float, int]:
    """Return a single client's p50 over its p50 at an idle service, and the failures.

    The client asks both in turn.
    """
    seconds, ratios, failures = long_of(options) / 30, [], 0
    for turn in range(turns_of(options)):
        pair = (server, idle) if turn % 2 else (idle, server)
        loads = {each: load(each.port, kind, seconds=seconds) for each in pair}
        ratios.append(loads[server].p50 / loads[idle].p50)
        failures += loads[server].failures
    return median(ratios), failures


def overload(options: Namespace, server: Server, idle: Server) -> dict[str, Any]:
    """Send several times the capacity in images; allow 200 and 429 only.

    `idle` is a second service. The first is compared with it before and after, so that a change of
    the machine's speed cancels out.
    """
    seconds = long_of(options)
    capacity = load(server.port, "image", clients=32, seconds=seconds / 6).rate
    before, failed_before = single_over_idle(options, server, idle, "image")
    say(f"overload: {_OVERLOAD * capacity:.0f} images/s for {seconds:g} s")
    held = server.memory_bytes()
    with server.memory_samples() as memory:
        loaded = load(
            server.port, "image", rate=_OVERLOAD * capacity, seconds=seconds, busy_allowed=True
        )
    after, failed_after = single_over_idle(options, server, idle, "image")
    quarter = len(memory) // 4
    grown = median(memory[-quarter:]) - median(memory[-2 * quarter : -quarter])
    return {
        "capacity": capacity,
        **asdict(loaded),
        "failures": failed_before + loaded.failures + failed_after,
        "after_over_before": after / before,
        "peak_over_before_mb": (max(memory) - held) / 1e6,
        "grown_mb": grown / 1e6,
    }


def turns_of(options: Namespace) -> int:
    return _FEW_TURNS if options.quick else _TURNS


def long_of(options: Namespace) -> float:
    """Return the duration of the sustained load and of the overload in seconds."""
    return 1.5 if options.quick else 60.0


def targets(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the targets of the parts that were measured, with the values reached."""
    batch_ms = 1000 * Settings().max_batch_size / results["limit"]["mean"]["image"]["rate"]
    found: list[dict[str, Any]] = []

    def target(name: str, value: float | None, *, least: float = 0, most: float = math.inf) -> None:
        met = value is not None and least <= value <= most
        bound = f"at most {most:g}" if most < math.inf else f"at least {least:g}"
        found.append({"target": name, "value": value, "bound": bound, "met": met})

    if turns := results["in_turn"]:
        target("images/s at 32 clients, of the model alone in turn", turns["of_alone"], least=0.92)
        over = turns["single_over_alone"]
        target("single image p50, over a forward of one in turn", over, most=1.2)
        failures = (row["failures"] for row in results["loads"] if row["service"] != _THEIRS)
        target("failures", sum(failures) + turns["failures"], most=0)
    if texts := results["texts_in_turn"]:
        target("texts/s at 32 clients, over hand-written in turn", texts["over"], least=10)
        target("failures, texts in turn", texts["failures"], most=0)
    if long := results["sustained"]:
        for kind in KINDS:
            ratio = long[kind]["after_over_before"]
            target(f"single {kind} p50, after over before", ratio, most=1.1)
        target("failures, sustained", sum(long[kind]["failures"] for kind in KINDS), most=0)
        target("peak memory over idle, MB", long["peak_over_idle_mb"], most=400)
    if over := results["overload"]:
        target("failures, overloaded (neither 200 nor 429)", over["failures"], most=0)
        p99 = (over["latency"] or {}).get("p99")
        target("p99 of accepted, overloaded, ms", p99, most=_MAX_QUEUE_MS + batch_ms)
        target("single image p50 after it, over before", over["after_over_before"], most=1.1)
        target("peak memory over before it, MB", over["peak_over_before_mb"], most=200)
        target("memory, last quarter of it over the one before, MB", over["grown_mb"], most=20)
    return found


def served(options: Namespace, results: dict[str, Any]) -> None:
    """Run the parts of `--only`, and measure the model alone before and after them."""
    quick, parts, seconds = options.quick, options.only, options.seconds
    loads, variables = results["loads"], environment(options)
    bounded = {**variables, "MAX_QUEUE_MS": str(_MAX_QUEUE_MS)}
    with (
        serving(_SERVICE, **variables) as server,
        serving(
            _SERVICE, **bounded
        ) as overloaded,  # idle while the other has its load, and vice versa
        alone(options) as measure,
    ):
        dtypes = _dtypes(server)
        say(f"the model alone, in {dtypes}")
        before = limit(measure, dtypes, seconds)
        if "sustained" in parts:  # first, because memory is compared with that of a fresh service
            results["sustained"] = sustained(options, server, overloaded)
        if "ours" in parts:
            clients = _QUICK_CLIENTS if quick else _CLIENTS
            loads += [step(_OURS, server, k, n, seconds) for k in KINDS for n in clients]
            if not quick:
                loads.append(step(_OURS, server, "ukrainian", 32, seconds))
                loads.append(step(_OURS, server, "bulk", 8, seconds))
            results["in_turn"] = in_turn(options, measure, server, dtypes["image"])
        if "handwritten" in parts:
            few = _QUICK_CLIENTS if quick else _FEW_CLIENTS
            command = [sys.executable, "-m", "benchmarks.support.handwritten"]
            with running(command, free_port(), "/readyz", **variables) as theirs:
                loads += [step(_THEIRS, theirs, k, n, seconds) for k in KINDS for n in few]
                results["texts_in_turn"] = texts_in_turn(options, server, theirs)
        if "overload" in parts:
            results["overload"] = overload(options, overloaded, server)
        say("the model alone, again")
        after = limit(measure, dtypes, seconds)
    both = {
        kind: {key: (before[kind][key] + after[kind][key]) / 2 for key in ("rate", "single_ms")}
        for kind in dtypes
    }
    results["limit"] = {"before": before, "after": after, "mean": both}
    for row in loads:
        if row["kind"] in both:
            row["of_limit"] = row["rate"] / both[row["kind"]]["rate"]


def _dtypes(server: Server) -> dict[str, str]:
    info = server.get("/info")
    dtypes: dict[str, str] = info.get("dtypes") or dict.fromkeys(KINDS, info["dtype"])
    return dtypes


def tables(results: dict[str, Any]) -> list[Table]:
    """Return the tables: loads, the model alone and the overload, turns, targets."""
    others = [
        {
            "service": f"the model alone, {when}",
            "kind": kind,
            "rate": results["limit"][when][kind]["rate"],
            "p50": results["limit"][when][kind]["single_ms"],
        }
        for when in ("before", "after")
        for kind in KINDS
    ]
    if over := results["overload"]:
        name = f"{_OURS}, {_OVERLOAD} times too many"
        others.append({"service": name, "kind": "image", **over, **(over["latency"] or {})})
    loads = [{**row, **(row["latency"] or {})} for row in results["loads"]]
    reached = [{**row, "met": "yes" if row["met"] else "no"} for row in results["targets"]]
    made = [table_of(_COLUMNS, loads)] if loads else []
    title = "The model alone, and the overload"
    made.append(table_of(_COLUMNS, others, title=title, detail=bool(loads)))
    if turns := results["in_turn"]:
        title = "Images in turn with the model alone"
        made.append(table_of(_TURN_COLUMNS, turns["turns"], title=title, detail=True))
    if texts := results["texts_in_turn"]:
        title = "Texts in turn with the hand-written service"
        made.append(table_of(_TEXT_COLUMNS, texts["turns"], title=title, detail=True))
    return [*made, table_of(_TARGET_COLUMNS, reached, title="Targets")]


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__, seconds=(10.0, 0.3))
    made.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, help="the parts to run (default: all)"
    )
    options = parse(made, argv)
    parts = ("in_turn", "texts_in_turn", "sustained", "overload")
    results: dict[str, Any] = {"loads": [], **dict.fromkeys(parts)}
    served(options, results)
    results["targets"] = targets(results)
    report("serving", options, tables(results), results)


if __name__ == "__main__":
    main()
