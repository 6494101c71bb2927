"""Statements that DataFusion 55 would answer wrong: planned otherwise, or refused. Driven by `engine.planner`.

Its physical planner pushes a filter below a join by the names of the filter's columns alone (apache/datafusion#21246,
mended by #25259, which no Python release has yet). Above a RIGHT JOIN stays what a WHERE says about the left side,
whose columns may be NULL there; where the right side has columns that are called the same, it is asked of those: `b
RIGHT JOIN c ON ... WHERE b.k IS NULL` had the rows of which c.k is NULL. Where the left side's rows are kept, the first
column of a name is the right one.

By names alone, too, it hands what one join has learned of its rows down through another (#25244): of three
tables with columns that are called the same rows were lost, so there a join keeps what it learns to itself.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from engine import names
from engine.errors import NotSupported
from engine.session import set_option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from datafusion import DataFrame, LogicalPlan, SessionContext

JOINS: Final = frozenset({"right", "full"})
"""A FULL JOIN is made a RIGHT JOIN where a condition needs a row on its right side."""
BETWEEN: Final = ("Projection:", "SubqueryAlias:")


DYNAMIC_FILTERS: Final = "optimizer.enable_join_dynamic_filter_pushdown"


def steadied(context: SessionContext, frame: DataFrame, statement: str) -> DataFrame:
    """The frame as it is answered right. Raises NotSupported. The context must be nobody else's meanwhile."""
    refuse_misread(context, frame, statement)
    plan = frame.logical_plan()
    if plan.display_indent().count(" Join:") < 2:
        return frame
    try:
        set_option(context, DYNAMIC_FILTERS, "false")
        return context.create_dataframe_from_logical_plan(plan)
    finally:
        set_option(context, DYNAMIC_FILTERS, "true")


def refuse_misread(context: SessionContext, frame: DataFrame, statement: str) -> None:
    """Raises NotSupported for a statement whose rows would be wrong."""
    if JOINS.isdisjoint(names.words(statement)):
        return
    try:
        plan = frame.optimized_logical_plan()
    except Exception:  # noqa: BLE001 - DataFusion says so again where it is run
        return
    for node in _nodes(plan):
        join = _right_join_of(node)
        if join is None:
            continue
        left, right = (_columns(context, side) for side in join.inputs())
        shared = sorted(name for name in left & right if _mentions(node.display(), name))
        if shared:
            raise NotSupported(
                f"a condition on {shared[0]!r}, which both sides of a RIGHT JOIN (or of a FULL JOIN that comes to the"
                " same) have: write it as a LEFT JOIN with its sides exchanged"
            )


def _mentions(condition: str, name: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?![\w.(])", condition) is not None


def _nodes(plan: LogicalPlan) -> Iterator[LogicalPlan]:
    pending = [plan]
    while pending:
        node = pending.pop()
        yield node
        pending.extend(node.inputs())


def _right_join_of(node: LogicalPlan) -> LogicalPlan | None:
    """The RIGHT JOIN whose rows a filter looks at."""
    if not node.display().startswith("Filter:"):
        return None
    (below,) = node.inputs()
    while below.display().startswith(BETWEEN):
        (below,) = below.inputs()
    return below if below.display().startswith("Right Join:") else None


def _columns(context: SessionContext, plan: LogicalPlan) -> set[str]:
    return set(context.create_dataframe_from_logical_plan(plan).schema().names)
