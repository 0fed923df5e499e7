"""The report of a run: a summary in Markdown, a plot and a timeline in CSV."""

from __future__ import annotations

import csv
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from loadtests.objectives import Objective, Span, latency, shown
from loadtests.samples import Answer, Outcome, Samples

SUMMARY: Final = "summary.md"
PLOT: Final = "plot.png"
TIMELINE: Final = "timeline.csv"
_LIMIT: Final = 0.8  # of one core; above it, the generator slows down its own requests
_PROBLEMS: Final = 10  # kinds of failures that the summary lists
_LATENCIES: Final = ("p50", "p95", "p99")
_COLOURS: Final[dict[Outcome, str]] = {
    "ok": "#2563eb",
    "busy": "#f59e0b",
    "failed": "#dc2626",
    "wrong": "#7e22ce",
}


@dataclass(frozen=True)
class Report:
    """The result of a run, and the verdict."""

    title: str
    facts: Mapping[str, str]
    objectives: Sequence[Objective]
    samples: Samples
    spans: Sequence[Span]
    knee: str = ""
    problem: str = ""  # why the run was not judged

    @property
    def missed(self) -> list[Objective]:
        return [objective for objective in self.objectives if not objective.met]

    @property
    def passed(self) -> bool:
        return bool(self.objectives) and not self.missed

    def verdict(self) -> str:
        """Return the last lines of the output: pass or fail, and the missed objectives."""
        lines = [f"{'PASS' if self.passed else 'FAIL'}: {self.title}"]
        if not self.objectives:
            reason = self.problem or "it was stopped before its end"
            lines.append(f"- the run was not judged: {reason}")
        lines += [f"- {objective}" for objective in self.missed]
        if self.knee:
            lines.append(self.knee)
        if warning := self.warning():
            lines.append(warning)
        return "\n".join(lines)

    def generator(self) -> dict[str, float]:
        """Return the mean share of a core that each generator process used."""
        shares = defaultdict(list)
        for usage in self.samples.usages:
            if self.spans and self.spans[0].start <= usage.at < self.spans[-1].end:
                shares[usage.process].append(usage.share)
        return {process: sum(each) / len(each) for process, each in shares.items()}

    def warning(self) -> str | None:
        """Return a warning if the generator may have limited the load."""
        most = max(self.generator().values(), default=0.0)
        if most <= _LIMIT:
            return None
        return (
            f"warning: the generator used {100 * most:.0f} % of a core and may have limited the "
            "load; use more processes (--processes) or machines (--master, --worker)"
        )

    def write(self, folder: Path) -> None:
        """Write the summary, the timeline and the plot."""
        (folder / SUMMARY).write_text(self._markdown())
        self._timeline(folder / TIMELINE)
        self._plot(folder / PLOT)

    def _markdown(self) -> str:
        title = f"# {'Pass' if self.passed else 'FAIL'}: {self.title}"
        return "\n\n".join((title, f"```\n{self.verdict()}\n```", f"![]({PLOT})", self.tables()))

    def tables(self) -> str:
        """Return the facts, the counts and every figure with its limit as Markdown tables."""
        shares = self.generator()
        facts = {
            **self.facts,
            "generator": ", ".join(
                f"{process} {100 * share:.0f} % of a core" for process, share in shares.items()
            )
            or "not measured",
        }
        parts = [
            _table(("", ""), list(facts.items())),
            _table(("user", "correct", "429", "failed", "wrong"), self._counts()),
        ]
        phases = dict.fromkeys(objective.phase for objective in self.objectives)
        parts += map(self._figures, phases)
        if self.samples.problems:
            most = self.samples.problems.most_common(_PROBLEMS)
            parts.append(_table(("count", "failure"), [(str(n), text) for text, n in most]))
        return "\n\n".join(parts) + "\n"

    def _figures(self, phase: str) -> str:
        """Return the table of a phase: the figures of its users, each with its limit."""
        rows: dict[str, dict[str, str]] = defaultdict(dict)
        for objective in self.objectives:
            if objective.phase == phase:
                rows[objective.user][objective.figure] = _cell(objective)
        figures = list(dict.fromkeys(figure for row in rows.values() for figure in row))
        lines = [[user, *(row.get(each, "") for each in figures)] for user, row in rows.items()]
        return _table([phase or "user", *figures], lines)

    def _counts(self) -> list[tuple[str, ...]]:
        of = {answer.user: Counter[Outcome]() for answer in self.samples.answers}
        for answer in self.samples.answers:
            of[answer.user][answer.outcome] += 1
        return [
            (user, *(str(counted[outcome]) for outcome in _COLOURS))
            for user, counted in sorted(of.items())
        ]

    def _timeline(self, file: Path) -> None:
        """Write the outcomes and latencies of each user in each second of the run."""
        of: dict[tuple[int, str], list[Answer]] = defaultdict(list)
        for second, answers in self._seconds().items():
            for answer in answers:
                of[second, answer.user].append(answer)
        with file.open("w", newline="") as output:
            rows = csv.writer(output)
            rows.writerow(["second", "user", *_COLOURS, *(f"{each}_ms" for each in _LATENCIES)])
            for (second, user), answers in sorted(of.items()):
                outcomes = Counter(answer.outcome for answer in answers)
                latencies = (f"{latency(answers, each):.2f}" for each in _LATENCIES)
                rows.writerow([second, user, *(outcomes[each] for each in _COLOURS), *latencies])

    def _seconds(self) -> dict[int, list[Answer]]:
        """Group the answers by the second of the run in which their requests were sent."""
        seconds: dict[int, list[Answer]] = defaultdict(list)
        if self.spans:
            begin = self.spans[0].start
            for answer in self.samples.within(begin, self.spans[-1].end):
                seconds[math.floor(answer.at - begin)].append(answer)
        return seconds

    def _plot(self, file: Path) -> None:
        """Draw answers per second, latencies over all users, and the p95 of each user."""
        import matplotlib

        matplotlib.use("agg")
        from matplotlib import pyplot

        if not self.spans:
            return
        seconds, begin = self._seconds(), self.spans[0].start
        times = range(max(seconds, default=0) + 1)
        figure, (rates, over_all, each) = pyplot.subplots(
            3, 1, figsize=(10, 9), sharex=True, layout="constrained"
        )
        outcomes = [Counter(answer.outcome for answer in seconds[t]) for t in times]
        rates.stackplot(
            times,
            [[counted[outcome] for counted in outcomes] for outcome in _COLOURS],
            labels=["correct", "429", "failed", "wrong"],
            colors=list(_COLOURS.values()),
            step="post",
        )
        rates.set_ylabel("answers/s")
        width = max(1, math.ceil(len(times) / 30))
        windows = range(times.start, times.stop, width)
        grouped = [[a for t in range(w, w + width) for a in seconds[t]] for w in windows]
        for name in _LATENCIES:
            over_all.plot(windows, [latency(group, name) for group in grouped], label=name)
        over_all.set_ylabel("latency, ms")
        for user in sorted({answer.user for answer in self.samples.answers}):
            own = [[a for a in group if a.user == user] for group in grouped]
            each.plot(windows, [latency(group, "p95") for group in own], ".-", label=user)
        each.set_ylabel("p95, ms")
        each.set_xlabel("s")
        for axes in (rates, over_all, each):
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
            axes.grid(alpha=0.3)
            for span in self.spans[1:]:
                axes.axvline(span.start - begin, color="gray", linewidth=0.8, linestyle="--")
        for axes in (over_all, each):
            axes.set_yscale("log")
        rates.set_title(self.verdict().split("\n")[0])
        figure.savefig(file, dpi=110)
        pyplot.close(figure)


def _cell(objective: Objective) -> str:
    sign = "≥" if objective.at_least else "≤"
    value, limit = (shown(each, objective.unit) for each in (objective.value, objective.limit))
    return f"{value} {sign} {limit}" if objective.met else f"**{value}**, not {sign} {limit}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in line) + " |"
        for line in lines
    )
