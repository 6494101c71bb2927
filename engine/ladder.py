"""Which rung a statement runs on: in this process, or in stages on workers, by the bytes that it reads. Pure.

`engine.planner` asks before it plans. A rung is nothing but options of DataFusion's planner: where it puts exchanges
is where `engine.stages` cuts.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from engine.stages import Stages
    from engine.tasks import TaskFigures, TaskInputs

TAILS_BYTES_MAX: Final = 64 * 2**20
"""Rows in memory travel to the workers with each statement; with more of them it stays here."""


class Rung(enum.StrEnum):
    """Where a statement runs."""

    LOCAL = "local stream"
    """Whole, in this process."""
    PARTIAL_FINAL = "partial/final"
    """Workers scan, filter, join with small tables and aggregate what they have seen; the rest happens here."""
    FULL_SHUFFLE = "full shuffle"
    """Joins, groups and windows are divided among the workers by a hash of their keys."""


@dataclass(frozen=True, slots=True)
class LadderLimits:
    """From how many bytes of files on a statement runs on workers, and has them exchange rows; and of one task."""

    query_bytes_min: int = 64 * 2**20
    shuffle_bytes_min: int = 256 * 2**20
    task_bytes: int = 32 * 2**20


@dataclass(frozen=True, slots=True)
class Choice:
    """A rung, the partitions to plan for, and why."""

    rung: Rung
    partitions: int
    reason: str


class WorkersLost(Exception):
    """The workers went away, or there are none: the same stages may run on others."""


class TaskFailed(Exception):
    """A task cannot be done, by any worker."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """What the last stage reads, and what the tasks before it did."""

    inputs: TaskInputs
    figures: tuple[TaskFigures, ...]


class Workers(Protocol):
    """Where stages run. `engine.workers.RayWorkers`; tests run them in their own process."""

    def slots(self) -> int:
        """How many tasks would run at once now. 0 asks for workers, if there may be some. From any thread."""
        ...

    def reason(self) -> str:
        """Why there are none, or what there is."""
        ...

    async def run(self, stages: Stages, began: Callable[[int], None]) -> Gathered:
        """Run all stages but the last; ``began`` is called, in any thread, with the number of workers that have tasks.

        Raises WorkersLost, TaskFailed; cancelling it stops the tasks.
        """
        ...

    async def aclose(self) -> None:
        """Let the workers go. Idempotent."""
        ...


COMMON: Final[Mapping[str, str]] = {
    # A join's filter waits for all partitions of its build side; in a task there is one, and it waits for ever.
    "optimizer.enable_join_dynamic_filter_pushdown": "false",
    "optimizer.enable_aggregate_dynamic_filter_pushdown": "false",
    "optimizer.enable_topk_dynamic_filter_pushdown": "false",
    # These have nodes that are not cut, or that lose what they promise when a plan is written down.
    "optimizer.enable_physical_uncorrelated_scalar_subquery": "false",
    "optimizer.enable_sort_pushdown": "false",
    # It spreads rows among threads; a task has one.
    "optimizer.enable_round_robin_repartition": "false",
}
OPTIONS: Final[Mapping[Rung, Mapping[str, str]]] = {
    Rung.LOCAL: {},
    Rung.PARTIAL_FINAL: {
        **COMMON,
        "optimizer.repartition_aggregations": "false",
        "optimizer.repartition_joins": "false",
        "optimizer.repartition_windows": "false",
    },
    Rung.FULL_SHUFFLE: COMMON,
}
"""What differs from DataFusion's defaults while a statement is planned, all of them true; without ``datafusion.``."""


def choose(file_bytes: int, tails_bytes: int, workers: Workers, limits: LadderLimits) -> Choice:
    """The rung for a statement that reads so much. Workers are asked for only when they are wanted."""
    if file_bytes < limits.query_bytes_min:
        return Choice(Rung.LOCAL, 0, f"{file_bytes} bytes of files are fewer than ray.query_bytes_min")
    if tails_bytes > TAILS_BYTES_MAX:
        return Choice(Rung.LOCAL, 0, f"{tails_bytes} bytes of rows are in memory, more than {TAILS_BYTES_MAX}")
    slots = workers.slots()
    if slots < 2:
        return Choice(Rung.LOCAL, 0, workers.reason())
    partitions = max(2, min(slots, -(-file_bytes // max(1, limits.task_bytes))))
    rung = Rung.FULL_SHUFFLE if file_bytes >= limits.shuffle_bytes_min else Rung.PARTIAL_FINAL
    return Choice(rung, partitions, f"{file_bytes} bytes of files, {slots} free workers")
