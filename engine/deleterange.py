"""Whether a DELETE's condition is about tags and time only, and may be stored as it was written (LOG L26).

Driven by `engine.planner`, with the statement planned over a plain table of the same columns: DataFusion has
put constants, types and BETWEEN into their simplest form then. Whatever is not known here is resolved to keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from storage.deletes import DELETE_BYTES_MAX, TAG_VALUES_MAX, TIME_MAX, TIME_MIN, RangeDelete, TagValues
from storage.schema import Role

if TYPE_CHECKING:
    from datafusion import DataFrame, Expr

    from storage.schema import Table

    Values = frozenset[str | None]


class _Unknown(Exception):
    """A condition that a range delete cannot say."""


def range_delete(frame: DataFrame, table: Table) -> RangeDelete | None:
    """The delete of exactly the rows of ``frame``, a plan over one scan of ``table``; None if there is none such."""
    try:
        found = _Ranges(table)
        for condition in _conditions(frame):
            found.add(condition)
        return found.delete()
    except _Unknown:
        return None


def _conditions(frame: DataFrame) -> list[Expr]:
    """The conditions of a plan that is a scan, perhaps filtered, and nothing else."""
    from datafusion.expr import Expr, Filter, SubqueryAlias, TableScan

    try:
        node = frame.optimized_logical_plan()
    except Exception as error:  # DataFusion raises bare Exception; the real plan will report it
        raise _Unknown from error
    found: list[Expr] = []
    while node.display().startswith(("Filter: ", "SubqueryAlias: ")):
        variant = node.to_variant()
        if isinstance(variant, Filter):
            predicate = variant.predicate()
            found.append(predicate if isinstance(predicate, Expr) else Expr(predicate))
        elif not isinstance(variant, SubqueryAlias):
            raise _Unknown
        (node,) = node.inputs()
    if not node.display().startswith("TableScan: ") or not isinstance(node.to_variant(), TableScan):
        raise _Unknown
    return found


class _Ranges:
    """What conditions leave of times and tags, all of them together."""

    def __init__(self, table: Table) -> None:
        self._low, self._high = TIME_MIN, TIME_MAX
        self._time = next(column.name for column in table.columns if column.role is Role.TIME)
        self._ids = {tag.name: tag.id for tag in table.tags}
        self._tags: dict[str, Values] = {}

    def add(self, condition: Expr) -> None:
        """Narrow down. Raises _Unknown."""
        if _is(condition, "BinaryExpr") and condition.rex_call_operator() == "AND":
            for operand in condition.rex_call_operands():
                self.add(operand)
            return
        bounds = self._bounds(condition)
        if bounds is not None:
            self._low, self._high = max(self._low, bounds[0]), min(self._high, bounds[1])
            return
        tag, values = self._values(condition)
        self._tags[tag] = self._tags.get(tag, values) & values

    def delete(self) -> RangeDelete:
        """What is left; _Unknown if it is nothing, or too much to be said."""
        count = sum(len(values) for values in self._tags.values())
        if self._low > self._high or not all(self._tags.values()) or count > TAG_VALUES_MAX:
            raise _Unknown
        tags = [TagValues(self._ids[name], tuple(sorted(found, key=str))) for name, found in self._tags.items()]
        found = RangeDelete(self._low, self._high, tuple(tags))
        if found.bytes > DELETE_BYTES_MAX:
            raise _Unknown
        return found

    def _bounds(self, condition: Expr) -> tuple[int, int] | None:
        """The inclusive times that a comparison of the time with a constant leaves; None for another condition."""
        if not _is(condition, "BinaryExpr"):
            return None
        left, right = condition.rex_call_operands()
        if not _is(left, "Column") or left.to_variant().name() != self._time:
            return None
        value, operator = _literal(right), condition.rex_call_operator()
        if operator not in ("=", "<", "<=", ">", ">="):
            raise _Unknown
        at: int = value.value
        low = at + (operator == ">") if operator in ("=", ">", ">=") else TIME_MIN
        high = at - (operator == "<") if operator in ("=", "<", "<=") else TIME_MAX
        return low, high

    def _values(self, condition: Expr) -> tuple[str, Values]:
        """A tag, and the values of it that a condition leaves."""
        operator = condition.rex_call_operator() if _is(condition, "BinaryExpr", "InList", "IsNull") else ""
        if operator == "OR":
            (tag, some), (other, more) = (self._values(operand) for operand in condition.rex_call_operands())
            if tag != other:
                raise _Unknown
            return tag, some | more
        if operator not in ("=", "in list", "is null") or _is_negated(condition):
            raise _Unknown
        column, *constants = condition.rex_call_operands()
        if not _is(column, "Column") or column.to_variant().name() not in self._ids:
            raise _Unknown
        name = str(column.to_variant().name())
        return name, frozenset(_text(one) for one in constants) if constants else frozenset({None})


def _is(expression: Expr, *variants: str) -> bool:
    return expression.variant_name() in variants


def _is_negated(condition: Expr) -> bool:
    """NOT IN, of which the operator is called as that of IN is."""
    return _is(condition, "InList") and bool(condition.to_variant().negated())


def _literal(expression: Expr) -> Any:
    if not _is(expression, "Literal"):
        raise _Unknown
    return expression.python_value()


def _text(expression: Expr) -> str:
    value = _literal(expression).as_py()
    if not isinstance(value, str):
        raise _Unknown
    return value
