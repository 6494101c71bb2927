"""A statement's rung, from the choice to the source of its batches. `engine.planner` drives it from its threads.

The statement is planned twice, as DataFusion plans it for this process and as the rung wants it; the first is what
runs where the second cannot.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from engine import dfplan_pb2 as pb
from engine import onescan
from engine.explain import AnalyzedSource, ExplainedSource, stages_text
from engine.ladder import OPTIONS, Choice, LadderLimits, Rung, Workers, choose
from engine.session import set_option
from engine.staged import StagedSource
from engine.stages import CannotBeCut, Node, cut, walk
from engine.tasks import TaskContext

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from datafusion import DataFrame, LogicalPlan, SessionContext

    from engine.batches import Source
    from engine.stages import Stages

REDUCING: Final = frozenset(("aggregate", "filter", "global_limit", "local_limit"))
SEMI_JOINS: Final = frozenset((pb.LEFTSEMI, pb.LEFTANTI, pb.RIGHTSEMI, pb.RIGHTANTI))


@dataclass(frozen=True)
class Offer:
    """A statement as its rung has it. ``frame`` is None if it runs in this process."""

    choice: Choice
    frame: DataFrame | None
    is_explained: bool = False
    is_analyzed: bool = False


class Distribution:
    """What one planner needs to run statements on workers; ``gather_bytes_max`` of rows may come back of one."""

    def __init__(self, workers: Workers, limits: LadderLimits, gather_bytes_max: int) -> None:
        self._workers = workers
        self._limits = limits
        self._gather_bytes_max = gather_bytes_max
        self._tasks: TaskContext | None = None

    def may_take(self, file_bytes: int) -> bool:
        """Whether a statement that reads so much at most may run on workers."""
        return file_bytes >= self._limits.query_bytes_min

    def offer(
        self,
        context: SessionContext,
        frame: DataFrame,
        file_bytes: int,
        tails_bytes: int,
        set_partitions: Callable[[int], None],
    ) -> Offer:
        """Choose, and plan for the rung. The context must be nobody else's meanwhile."""
        plan, is_explained, is_analyzed = _meant(frame)
        choice = choose(file_bytes, tails_bytes, self._workers, self._limits)
        if choice.rung is Rung.LOCAL:
            return Offer(choice, None, is_explained, is_analyzed)
        set_partitions(choice.partitions)
        with planning_for(context, choice.rung):
            reframed = context.create_dataframe_from_logical_plan(plan)
        return Offer(choice, reframed, is_explained, is_analyzed)

    def source(
        self,
        context: SessionContext,
        offer: Offer,
        frame: DataFrame,
        local: Callable[[], Source],
        after_all: Callable[[], Source],
        runs_on: Callable[[Rung, int], None],
    ) -> Source:
        """The statement's batches. ``local`` starts it in this process at once, ``after_all`` when workers had it and
        did not finish it; ``runs_on`` hears of workers that have it.

        Raises what `local` raises.
        """
        stages, choice = self._stages(context, offer)
        lines = [("rung", f"{choice.rung}: {choice.reason}")]
        if stages is not None:
            lines.append(("stages", stages_text(stages)))
        if stages is None or (offer.is_explained and not offer.is_analyzed):
            return ExplainedSource(local(), frame.schema(), lines) if offer.is_explained else local()
        assert offer.frame is not None
        runs_on(choice.rung, 0)
        staged = StagedSource(
            stages, self._workers, self._task_context(context), offer.frame.schema(), after_all, self._gather_bytes_max,
            lambda workers: runs_on(choice.rung, workers),
        )  # fmt: skip
        return AnalyzedSource(staged, frame.schema(), lines) if offer.is_analyzed else staged

    def _stages(self, context: SessionContext, offer: Offer) -> tuple[Stages | None, Choice]:
        if offer.frame is None:
            return None, offer.choice
        try:
            stages = cut_frame(context, offer.frame)
            _refuse_if_useless(stages)
        except CannotBeCut as error:
            return None, replace(offer.choice, rung=Rung.LOCAL, reason=str(error))
        return stages, offer.choice

    def _task_context(self, context: SessionContext) -> TaskContext:
        if self._tasks is None or self._tasks.context is not context:
            self._tasks = TaskContext(context)
        return self._tasks


@contextlib.contextmanager
def planning_for(context: SessionContext, rung: Rung) -> Iterator[None]:
    """A context that plans for a rung."""
    options = OPTIONS[rung]
    try:
        for name, value in options.items():
            set_option(context, name, value)
        yield
    finally:
        for name in options:
            set_option(context, name, "true")


def cut_frame(context: SessionContext, frame: DataFrame) -> Stages:
    """The stages of a frame that was planned for a rung. Raises CannotBeCut."""
    try:
        written = frame.execution_plan().to_bytes(context)
        written = onescan.joined(written) if onescan.has_parts(frame) else written
    except Exception as error:
        raise CannotBeCut(f"the plan cannot be written down: {error}") from error
    return cut(written)


def _meant(frame: DataFrame) -> tuple[LogicalPlan, bool, bool]:
    """The plan of the rows that are meant: what an EXPLAIN explains. Whether it is one, and whether it runs it."""
    from datafusion.expr import Analyze, Explain

    plan = frame.logical_plan()
    try:
        variant: Any = plan.to_variant()
    except Exception:  # noqa: BLE001 - DataFusion has no name for every kind of plan
        return plan, False, False
    if not isinstance(variant, (Analyze, Explain)):
        return plan, False, False
    return plan.inputs()[0], True, isinstance(variant, Analyze)


def _refuse_if_useless(stages: Stages) -> None:
    """Raises CannotBeCut where workers would only send everything back."""
    if len(stages.stages) == 1:
        raise CannotBeCut("there is nothing to divide")
    if not any(_reduces(node) for stage in stages.stages[:-1] for node in walk(stage.plan)):
        raise CannotBeCut("every row that is read would come back")


def _reduces(node: Node) -> bool:
    kind = node.WhichOneof("kind")
    if kind == "parquet_scan":
        return node.parquet_scan.HasField("predicate") or node.parquet_scan.base_conf.HasField("limit")
    if kind == "sort":
        return node.sort.fetch > 0
    if kind == "hash_join":
        return node.hash_join.join_type in SEMI_JOINS
    return kind in REDUCING
