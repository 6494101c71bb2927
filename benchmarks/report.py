"""A run's figures as aligned Markdown (printed and stored alike) and as JSON, with the machine and the versions.

Driven by `benchmarks.run`.
"""

from __future__ import annotations

import json
import os
import platform
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from benchmarks.goals import GOALS, INFLUXDB, VICTORIA, figures, judge

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.goals import Verdict
    from benchmarks.ingest import Ingested
    from benchmarks.queries import Asked
    from benchmarks.startup import Recovered, Started

RESULTS = Path(__file__).resolve().parent / "results"
MEGABYTE = 1_000_000
NOTHING = "-"
_MET = {True: "yes", False: "NO", None: NOTHING}


@dataclass(slots=True)
class Report:
    """Everything one run found. ``failures`` are parts that could not be measured, with the reason."""

    quick: bool
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    partial: bool = False
    begun: datetime = field(default_factory=lambda: datetime.now(UTC))
    ingested: list[Ingested] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    started: Started | None = None
    recovered: list[Recovered] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def verdicts(self) -> list[Verdict]:
        """Each goal beside what was measured."""
        measured = figures(self.ingested, self.asked, self.started, self.recovered)
        return [judge(goal, measured) for goal in GOALS]

    def as_json(self) -> dict[str, Any]:
        return {
            "begun": self.begun.isoformat(timespec="seconds"),
            "quick": self.quick,
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "goals": [_goal_json(verdict) for verdict in self.verdicts()],
            "ingest": [each.as_json() for each in self.ingested],
            "queries": [each.as_json() for each in self.asked],
            "startup": self.started.as_json() if self.started else None,
            "recovery": [each.as_json() for each in self.recovered],
            "failures": self.failures,
        }

    def markdown(self) -> str:
        """The whole report: goals first, then every figure."""
        parts = [
            f"# Benchmark of {self.begun:%Y-%m-%d %H:%M} UTC" + (" (quick: sizes too small to judge by)" * self.quick),
            "\n".join(f"- {name}: {value}" for name, value in {**self.machine, **self.versions}.items()),
            "## Goals\n\n" + goals_table(self.verdicts()),
        ]
        if self.ingested:
            parts.append("## Ingest\n\n" + ingest_table(self.ingested))
        if self.asked:
            parts.append("## Queries\n\n" + queries_table(self.asked))
        if self.started or self.recovered:
            parts.append("## Start and recovery\n\n" + startup_table(self.started, self.recovered))
        if self.failures:
            parts.append("## Not measured\n\n" + "\n".join(f"- {failure}" for failure in self.failures))
        return "\n\n".join(parts) + "\n"

    def store(self, folder: Path = RESULTS) -> Path:
        """Write ``<date>-<host kind>.{md,json}``; the Markdown file's path.

        Quick and partial runs get names of their own, so they never replace a whole run of the same day.
        """
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"{self.begun:%Y-%m-%d}-{host_kind(self.machine)}" + "-quick" * self.quick + "-partial" * self.partial
        (folder / f"{stem}.json").write_text(json.dumps(self.as_json(), indent=2) + "\n")
        page = folder / f"{stem}.md"
        page.write_text(self.markdown())
        return page


def machine() -> dict[str, Any]:
    """What the figures depend on, and nothing that names this host."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def host_kind(about: Mapping[str, Any]) -> str:
    """Machines that compare share it: ``2x-amd-epyc``."""
    model = re.sub(r"\((r|tm)\)|processor|cpu|@.*|\d+-core", " ", str(about["cpu"]).lower())
    return f"{about['cores']}x-" + "-".join(re.findall(r"[a-z0-9]+", model))


def goals_table(verdicts: Sequence[Verdict]) -> str:
    """Load, goal, each server's figure, how many times ours each peer's is, and whether the goal was met."""
    header = ["load", "unit", "goal", "Runnel", "InfluxDB", "VictoriaMetrics", "Influx/Runnel", "VM/Runnel", "met"]
    rows = [
        [
            verdict.goal.load,
            verdict.goal.unit,
            bounds_text(verdict),
            number(verdict.ours),
            number(verdict.peers.get(INFLUXDB)),
            number(verdict.peers.get(VICTORIA)),
            times(verdict.ratio(INFLUXDB)),
            times(verdict.ratio(VICTORIA)),
            _MET[verdict.met],
        ]
        for verdict in verdicts
    ]
    return table(header, rows)


def bounds_text(verdict: Verdict) -> str:
    """A goal's bounds in words: ``<= 1.6, Influx >= 5x``."""
    goal, short = verdict.goal, {INFLUXDB: "Influx", VICTORIA: "VM"}
    parts = [f"{'>=' if goal.at_least else '<='} {goal.bound:g}"] if goal.bound is not None else []
    parts += [f"{short[peer]} >= {factor:g}x" for peer, factor in goal.times_less]
    return ", ".join(parts) or "report"


def ingest_table(ingested: Sequence[Ingested]) -> str:
    header = [
        "load", "server", "lines", "k lines/s", "CPU s/M acked", "CPU s/M at rest", "k lines/s/core",
        "p50 ms", "p99 ms", "RSS MB", "peak MB", "B/value",
    ]  # fmt: skip
    rows = [
        [
            each.load,
            each.server,
            str(each.lines),
            number(each.lines_per_second / 1e3),
            number(each.cpu_acknowledged),
            number(each.cpu_at_rest),
            number(1e3 / each.cpu_at_rest if each.cpu_at_rest else None),
            number(each.p50_ms),
            number(each.p99_ms),
            number(each.rss_bytes / MEGABYTE),
            number(each.rss_peak_bytes / MEGABYTE),
            number(each.disk_bytes_per_value),
        ]
        for each in ingested
    ]
    return table(header, rows)


def queries_table(asked: Sequence[Asked]) -> str:
    header = ["query", "server", "rows", "median ms", "p99 ms", "CPU ms"]
    rows = [
        [each.query, each.server, str(each.rows), number(each.median_ms), number(each.p99_ms), number(each.cpu_ms)]
        for each in asked
    ]
    return table(header, rows)


def startup_table(started: Started | None, recovered: Sequence[Recovered]) -> str:
    rows = []
    if started is not None:
        rows = [
            ["ready on an empty folder", f"{started.ready_seconds:.2f} s"],
            ["CPU until ready", f"{started.ready_cpu_seconds:.2f} s"],
            ["resident, ready and untouched", f"{started.rss_ready_bytes / MEGABYTE:.0f} MB"],
            ["resident, after a write and a query", f"{started.rss_used_bytes / MEGABYTE:.0f} MB"],
        ]
    for each in recovered:
        size = f"{each.objects} objects, {each.log_bytes / MEGABYTE:.0f} MB, {each.rows} rows"
        rates = f"{each.megabytes_per_second:.0f} MB/s, {each.objects_per_second:.0f} objects/s"
        rows.append([f"recovery of {each.name}: {size}", f"{rates} ({each.replay_seconds:.2f} s)"])
    return table(["what", "measured"], rows)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An aligned Markdown table; columns of figures stand to the right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    right = [bool(rows) and all(_is_figure(row[column]) for row in rows) for column in range(len(header))]
    rule = [("-" * (width - 1) + ":") if flag else "-" * width for width, flag in zip(widths, right, strict=True)]

    def line(cells: Sequence[str]) -> str:
        placed = zip(cells, widths, right, strict=True)
        return "| " + " | ".join(c.rjust(w) if flag else c.ljust(w) for c, w, flag in placed) + " |"

    return "\n".join([line(header), line(rule), *(line(row) for row in rows)])


def number(value: float | None) -> str:
    """About three digits: ``1234``, ``12.3``, ``1.23``; a dash for nothing."""
    if value is None:
        return NOTHING
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def times(ratio: float | None) -> str:
    return NOTHING if ratio is None else f"{number(ratio)}x"


def _is_figure(cell: str) -> bool:
    return cell == NOTHING or cell.removesuffix("x").replace(".", "", 1).isdigit()


def _goal_json(verdict: Verdict) -> dict[str, Any]:
    return {
        "load": verdict.goal.load,
        "unit": verdict.goal.unit,
        "goal": bounds_text(verdict),
        "runnel": verdict.ours,
        **dict(verdict.peers),
        "met": verdict.met,
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine() or "unknown"
