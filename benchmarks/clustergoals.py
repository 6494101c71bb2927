"""What a cluster must reach, beside what it reached: a table to print and to store with the machine and the versions.

Driven by `benchmarks.cluster`.
"""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from benchmarks.report import RESULTS, host_kind, number, table

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_MET: Final = {True: "yes", False: "NO", None: "-"}


@dataclass(frozen=True, slots=True)
class ClusterGoal:
    """An upper bound on one figure; None: reported only."""

    figure: str
    unit: str
    bound: float | None


def _fail_over(part: str, median: float, worst: float) -> tuple[ClusterGoal, ...]:
    return (ClusterGoal(f"{part}: median", "s", median), ClusterGoal(f"{part}: worst", "s", worst))


GOALS: Final = (
    *_fail_over("kill -9 of an owner until its shards acknowledge", 3, 6),
    *_fail_over("SIGSTOP of an owner", 8, 14),
    *_fail_over("cut of an owner", 8, 14),
    *_fail_over("SIGSTOP of an owner, fast probes", 4, 8),
    *_fail_over("cut of an owner, fast probes", 4, 8),
    ClusterGoal("SIGTERM of each node: client errors", "", 0),
    ClusterGoal("SIGTERM of each node: longest pause of writes", "s", 1),
    ClusterGoal("SIGTERM of each node: longest pause of schema changes", "s", 4),
    ClusterGoal("SIGTERM of each node: longest pause of reads", "s", None),
    ClusterGoal("rolling restart: client errors", "", 0),
    ClusterGoal("rolling restart: longest pause of writes", "s", 1),
    ClusterGoal("rolling restart: longest pause of schema changes", "s", 4),
    ClusterGoal("rolling restart: longest pause of reads", "s", None),
    *(ClusterGoal(f"ingest, {owners} owners: CPU per million lines", "s", 3.0) for owners in (1, 2, 3)),
    *(ClusterGoal(f"ingest, {owners} owners: CPU when acknowledged", "s", None) for owners in (1, 2, 3)),
    *(ClusterGoal(f"ingest, {owners} owners: thousand lines a second", "", None) for owners in (1, 2, 3)),
    ClusterGoal("ingest: dearest number of owners over the cheapest", "%", 15),
    ClusterGoal("one-row SELECT through a gateway: p50", "ms", 6),
    ClusterGoal("one-row SELECT through a gateway: p99", "ms", None),
    *(ClusterGoal(f"memory of an idle {kind} node (PSS)", "MB", 250) for kind in ("gateway", "ingest", "query")),
)


@dataclass(slots=True)
class ClusterReport:
    """Figures of a run by their goals' names; ``notes`` are what a table has no room for."""

    machine: Mapping[str, Any]
    parts: tuple[str, ...] = ()
    begun: datetime = field(default_factory=lambda: datetime.now(UTC))
    figures: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def put(self, figure: str, value: float) -> None:
        """Keep a figure; a name that no goal has is a mistake of the benchmark."""
        assert any(goal.figure == figure for goal in GOALS), figure
        self.figures[figure] = value

    def is_met(self, goal: ClusterGoal) -> bool | None:
        """Whether a goal was reached; None when nothing was measured or it has no bound."""
        found = self.figures.get(goal.figure)
        return None if found is None or goal.bound is None else found <= goal.bound

    def markdown(self) -> str:
        """The whole report."""
        rows = [
            [goal.figure, goal.unit, "report" if goal.bound is None else f"<= {goal.bound:g}",
             number(self.figures[goal.figure]), _MET[self.is_met(goal)]]
            for goal in GOALS
            if goal.figure in self.figures
        ]  # fmt: skip
        about = {**self.machine, **versions()}
        parts = [
            f"# Cluster benchmark of {self.begun:%Y-%m-%d %H:%M} UTC",
            "\n".join(f"- {name}: {value}" for name, value in about.items()),
            table(["what", "unit", "goal", "measured", "met"], rows) if rows else "Nothing was measured.",
        ]
        if self.notes:
            parts.append("## Notes\n\n" + "\n".join(f"- {note}" for note in self.notes))
        if self.failures:
            parts.append("## Not measured\n\n" + "\n".join(f"- {failure}" for failure in self.failures))
        return "\n\n".join(parts) + "\n"

    def as_json(self) -> dict[str, Any]:
        return {
            "begun": self.begun.isoformat(timespec="seconds"),
            "parts": list(self.parts),
            "machine": dict(self.machine),
            "versions": versions(),
            "figures": self.figures,
            "goals": {goal.figure: goal.bound for goal in GOALS},
            "notes": self.notes,
            "failures": self.failures,
        }

    def store(self, *, partial: bool, folder: Path = RESULTS) -> Path:
        """Write ``<date>-<host kind>-cluster.{md,json}``; the Markdown file's path."""
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"{self.begun:%Y-%m-%d}-{host_kind(self.machine)}-cluster" + "-partial" * partial
        (folder / f"{stem}.json").write_text(json.dumps(self.as_json(), indent=2) + "\n")
        page = folder / f"{stem}.md"
        page.write_text(self.markdown())
        return page


def versions() -> dict[str, str]:
    """Of Runnel and of what its speed depends on."""
    names = ("runnel", "datafusion", "pyarrow", "grpcio", "pysyncobj", "numba", "uvicorn")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
