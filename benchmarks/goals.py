"""What must be reached, as data, and whether a run reached it.

Driven by `benchmarks.report`. A goal names one figure of a run by a key (``ingest/cpu/runnel/cpu_at_rest``); a
figure that was not measured leaves its goal open, neither met nor missed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.ingest import Ingested
    from benchmarks.queries import Asked
    from benchmarks.startup import Recovered, Started

Figures = dict[str, float]
OURS = "runnel"
INFLUXDB = "influxdb"
VICTORIA = "victoria-metrics"
MEGABYTE = 1_000_000


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound on one figure, in ``unit``. ``bound`` None: the figure is reported only.

    ``times_less`` bounds ratios: a peer's figure must be at least that many times ours.
    """

    load: str
    figure: str
    unit: str
    bound: float | None
    at_least: bool = False
    times_less: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """A goal beside what was measured. ``met`` is None when the goal has no bound or something was not measured."""

    goal: Goal
    ours: float | None
    peers: Mapping[str, float]
    met: bool | None

    def ratio(self, peer: str) -> float | None:
        """How many times ours the peer's figure is; above 1 we are cheaper."""
        if peer not in self.peers or not self.ours:
            return None
        return self.peers[peer] / self.ours


def _cpu(load: str, bound: float, *times_less: tuple[str, float]) -> Goal:
    return Goal(f"{load}, CPU s per million lines", f"ingest/{load}/{{server}}/cpu", "s", bound, times_less=times_less)


def _query(name: str, bound: float | None = None, share: float | None = None) -> Goal:
    times_less = ((INFLUXDB, 1 / share),) if share else ()
    return Goal(name, f"queries/{name}/{{server}}/median_ms", "ms", bound, times_less=times_less)


GOALS = (
    _cpu("cpu", 1.6, (INFLUXDB, 5.0), (VICTORIA, 2.5)),
    _cpu("cpu gzip", 1.9),
    _cpu("doubles", 2.3),
    _cpu("narrow", 0.8),
    _cpu("50-line bodies", 3.0),
    _cpu("1-line bodies", 90.0),
    Goal("cpu, bytes on disk per value", "ingest/cpu/{server}/disk", "B", 0.45),
    Goal("doubles, bytes on disk per value", "ingest/doubles/{server}/disk", "B", None),
    Goal("narrow, bytes on disk per value", "ingest/narrow/{server}/disk", "B", None),
    _query("double-groupby-1", share=0.4),
    _query("high-cpu-all", share=0.4),
    _query("groupby-orderby-limit", share=0.4),
    _query("single-groupby-1-1-1", bound=5.0),
    _query("lastpoint"),
    Goal("ready on an empty folder", "startup/{server}/ready_seconds", "s", 2.5),
    Goal("resident memory, ready and untouched", "startup/{server}/rss_ready", "MB", 250.0),
    Goal("resident memory, after a write and a query", "startup/{server}/rss_used", "MB", 350.0),
    Goal("recovery, Log of 1 MB objects", "recovery/1 MB objects/{server}/rate", "MB/s", 300.0, at_least=True),
    Goal("recovery, Log of small objects", "recovery/small objects/{server}/objects", "objects/s", None),
)


def figures(
    ingested: list[Ingested], asked: list[Asked], started: Started | None, recovered: list[Recovered]
) -> Figures:
    """Every figure that a goal may name, by its key."""
    found: Figures = {}
    for load in ingested:
        # A peer is charged up to its last acknowledgement only, which favours it; Runnel pays for its Parquet too.
        cpu = load.cpu_at_rest if load.server == OURS else load.cpu_acknowledged
        found[f"ingest/{load.load}/{load.server}/cpu"] = cpu
        if load.disk_bytes_per_value is not None:
            found[f"ingest/{load.load}/{load.server}/disk"] = load.disk_bytes_per_value
    for query in asked:
        found[f"queries/{query.query}/{query.server}/median_ms"] = query.median_ms
    if started is not None:
        found[f"startup/{OURS}/ready_seconds"] = started.ready_seconds
        found[f"startup/{OURS}/rss_ready"] = started.rss_ready_bytes / MEGABYTE
        found[f"startup/{OURS}/rss_used"] = started.rss_used_bytes / MEGABYTE
    for each in recovered:
        found[f"recovery/{each.name}/{OURS}/rate"] = each.megabytes_per_second
        found[f"recovery/{each.name}/{OURS}/objects"] = each.objects_per_second
    return found


def judge(goal: Goal, measured: Mapping[str, float]) -> Verdict:
    """Compare one goal with a run's figures."""
    ours = measured.get(goal.figure.format(server=OURS))
    keys = {peer: goal.figure.format(server=peer) for peer in (INFLUXDB, VICTORIA)}
    peers = {peer: measured[key] for peer, key in keys.items() if key in measured}
    return Verdict(goal, ours, peers, _met(goal, ours, peers))


def _met(goal: Goal, ours: float | None, peers: Mapping[str, float]) -> bool | None:
    """False as soon as one bound is missed; None while a bound cannot be judged or there is none."""
    if ours is None:
        return None
    parts: list[bool | None] = []
    if goal.bound is not None:
        parts.append(ours >= goal.bound if goal.at_least else ours <= goal.bound)
    for peer, times in goal.times_less:
        parts.append(peers[peer] >= ours * times if peer in peers else None)
    if False in parts:
        return False
    return None if None in parts or not parts else True
