"""What a statement leaves of a table: conditions on the rows, and the columns that matter.

Learned from the statement's optimized plan over a probe of the table, `engine.views` builds cheaper views with it:
DataFusion pushes nothing into a merge, and where a plan is written down, rows in memory are written with all columns.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from engine import viewsql
from storage.deletes import TIME_MAX, TIME_MIN
from storage.schema import TIME_COLUMN

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from datafusion import Expr

    from engine.layers import Range
    from engine.scans import Scan
    from storage.schema import Table

TIMES: Final = (TIME_MIN, TIME_MAX)
"""Every time there is, in ns."""
TRANSPARENT: Final = frozenset(
    ("BinaryExpr", "Between", "Cast", "InList", "IsNotNull", "IsNull", "Like", "Not", "ScalarFunction")
)
"""Expressions whose operands DataFusion's Python API lists completely."""


@dataclass(frozen=True)
class Pushed:
    """Conditions on key columns that hold for every row a query can use, named as `qualifier`.column.

    ``low`` and ``high`` are the inclusive times in ns that they leave. ``columns`` are those, by the users' names, that
    the query's answer depends on; None: all. `is_unsteady`: the query's other conditions may say something else of a
    key in each layer, and must not get below a merge.
    """

    qualifier: str
    conditions: tuple[Expr | str, ...]
    low: int = TIME_MIN
    high: int = TIME_MAX
    columns: frozenset[str] | None = None
    is_unsteady: bool = False
    is_backwards: bool = False
    """Whether the statement may have a constant before an equals sign."""


def probe_name(table: Table) -> str:
    """What plans call the scan of a table's probe."""
    return f"_runnel_probe_{table.id}"


def usable(table: Table, scans: Sequence[Scan]) -> Pushed:
    """What all ``scans`` that there are of a table's probe leave of it.

    Conditions only where there is one, and of its conditions those that touch key columns only: a condition on a field
    sees merged rows only (LOG L26).
    """
    keys = {column.name for column in viewsql.keys(table)}
    qualifier = probe_name(table)
    conditions = scans[0].conditions if len(scans) == 1 else ()
    known = tuple(c for c in conditions if _touches_only(c, keys, qualifier))
    low, high = time_range([str(c) for c in known], qualifier)
    return Pushed(qualifier, known, low, high, _columns_of(scans))


def _columns_of(scans: Sequence[Scan]) -> frozenset[str] | None:
    """The columns that scans have, and those of their conditions; None if that is not known."""
    found: set[str] = set()
    for scan in scans:
        parts = [scan.columns, *(_columns(condition) for condition in scan.conditions)]
        for part in parts:
            if part is None:
                return None
            found.update(part)
    return frozenset(found)


def time_range(conditions: Sequence[str], qualifier: str) -> Range:
    """The inclusive times in ns that conditions leave, as far as they compare the time with a constant."""
    pattern = re.compile(rf"Expr\({qualifier}\.{TIME_COLUMN} (>=|>|<=|<|=) TimestampNanosecond\((-?\d+), None\)\)")
    low, high = TIME_MIN, TIME_MAX
    for condition in conditions:
        match = pattern.fullmatch(condition)
        if match is None:
            continue
        operator, value = match.group(1), int(match.group(2))
        if operator in (">=", ">", "="):
            low = max(low, value + (operator == ">"))
        if operator in ("<=", "<", "="):
            high = min(high, value - (operator == "<"))
    return low, high


def constants(conditions: Sequence[Expr | str]) -> dict[str, Expr]:
    """Columns that have to equal a constant, by their names."""
    found: dict[str, Expr] = {}
    for condition in conditions:
        if isinstance(condition, str) or condition.variant_name() != "BinaryExpr":
            continue
        left, right = condition.rex_call_operands()
        if condition.rex_call_operator() != "=":
            continue
        if left.variant_name() == "Column" and right.variant_name() == "Literal":
            found[left.to_variant().name()] = right
    return found


def _touches_only(condition: Expr, names: Collection[str], qualifier: str) -> bool:
    """Whether a condition is known to refer to `names` only: what its text and its tree say must agree."""
    found = _columns(condition)
    if found is None or str(condition).count(f"{qualifier}.") != len(found):
        return False
    return set(found) <= set(names)


def _columns(expression: Expr) -> list[str] | None:
    """The columns that an expression refers to; None if it holds anything that is not known here."""
    variant = expression.variant_name()
    if variant == "Literal":
        return []
    if variant == "Column":
        name: str = expression.to_variant().name()
        return [name]
    if variant not in TRANSPARENT:
        return None
    found: list[str] = []
    for operand in expression.rex_call_operands():
        inner = _columns(operand)
        if inner is None:
            return None
        found += inner
    return found
