"""Whether a SELECT can be kept as a materialized view, and what columns it has. Driven by `engine.planner`.

A view is kept by buckets of time: a bucket is computed again, as a whole, when a row of it has changed. So its SELECT
must group the rows of one table by ``date_bin(...)`` of their time, and by tags if it likes; and it must say the same
of the same rows whenever it is asked.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from engine.changes import NewView
from engine.errors import InvalidStatement, NotSupported
from engine.names import tokens
from engine.viewstate import FOLDED_HIGH, FOLDED_LOW, WIDTH_MAX
from storage.changes import ColumnSpec
from storage.schema import TIME_COLUMN, Column, Role, TypeKind

if TYPE_CHECKING:
    from datafusion import DataFrame, Expr, SessionContext

    from storage.schema import Table

SHAPE: Final = "a materialized view is SELECT date_bin(INTERVAL '...', time) AS time, tags, aggregates FROM table"
UNSTEADY: Final = frozenset(
    (
        "now", "current_date", "current_time", "current_timestamp", "today", "random", "rand", "uuid",
        "input_file_name", "file_row_index",
    )
)  # fmt: skip
"""Words, and functions in quotes, that mean something else each time."""
DAY_NS: Final = 86_400 * 10**9
_BIN: Final = "date_bin("


def check_steady(text: str) -> None:
    """Refuse what would not say the same of the same rows. Raises NotSupported."""
    found = tokens(text)
    for token, after in itertools.pairwise((*found, *found[-1:])):
        if token.kind == "param" or (token.kind == "symbol" and token.text == "?"):
            raise NotSupported(f"a materialized view with the parameter {token.text}: write its value")
        is_name = token.kind == "word" or (token.kind == "quoted" and after.text == "(")
        if is_name and token.name.lower() in UNSTEADY:
            raise NotSupported(f"a materialized view with {token.text}: it would say something else at each moment")


def definition(context: SessionContext, frame: DataFrame, source: Table, text: str, exist_ok: bool) -> NewView:
    """The view that ``frame``, the planned ``text`` over ``source``, makes. Raises NotSupported, InvalidStatement."""
    projection, aggregate = _shape(frame)
    bins = [one for one in aggregate.group_by_exprs() if _is_bin(one)]
    tags = {c.name for c in source.tags}
    others = [one for one in aggregate.group_by_exprs() if not _is_bin(one)]
    unknown = [str(one) for one in others if _column(one) not in tags]
    if len(bins) != 1 or unknown:
        what = f"; {unknown[0]} is no tag" if unknown else ""
        raise NotSupported(f"{SHAPE} GROUP BY 1 and tags of that table{what}")
    width, origin = _bucket(context, bins[0])
    keys = {bins[0].schema_name(): TIME_COLUMN} | {_column(one): _column(one) for one in others}
    columns: list[ColumnSpec] = []
    for item, field in zip(projection.projections(), frame.schema(), strict=True):
        key = keys.pop(_column(item) or "", None)
        if key == TIME_COLUMN and field.name != TIME_COLUMN:
            raise InvalidStatement(f"call the bucket time: date_bin(...) AS {TIME_COLUMN}, not {field.name!r}")
        if key == TIME_COLUMN:
            continue
        columns.append(_spec(field, Role.FIELD if key is None else Role.TAG))
    if keys:
        raise InvalidStatement(f"select all that is grouped by: {next(iter(keys.values()))!r} is missing")
    if all(column.role is Role.TAG for column in columns):
        raise InvalidStatement("a materialized view needs an aggregate")
    return NewView(source.id, text, width, origin % width, tuple(columns), exist_ok)


def with_names(table: Table, frame: DataFrame) -> Table:
    """The table as it may come to be, with columns that are called as those of a SELECT from it are.

    Another view of that is one that a column may break which is written later: its GROUP BY has a name of its own.
    """
    named = [name for name in frame.schema().names if name not in table.by_name]
    after = max(column.id for column in table.columns) + 1
    columns = [Column(after + at, name, name, Role.FIELD, TypeKind.STRING) for at, name in enumerate(named)]
    return replace(table, columns=(*table.columns, *columns))


def _shape(frame: DataFrame) -> tuple[Any, Any]:
    """The projection over the aggregate of the rows of a table, perhaps filtered."""
    from datafusion.expr import Aggregate, Filter, Projection, SubqueryAlias, TableScan

    plan = frame.logical_plan()
    projection = plan.to_variant()
    inputs = plan.inputs()
    aggregate = inputs[0].to_variant() if isinstance(projection, Projection) and inputs else None
    if not isinstance(aggregate, Aggregate):
        raise NotSupported(f"{SHAPE} [WHERE ...] GROUP BY ..., without HAVING, ORDER BY, LIMIT, windows and unions")
    node = inputs[0].inputs()[0]
    while isinstance(node.to_variant(), Filter | SubqueryAlias):
        node = node.inputs()[0]
    if not isinstance(node.to_variant(), TableScan):
        raise NotSupported(f"{SHAPE}: of one table, without joins and subqueries")
    return projection, aggregate


def _is_bin(expression: Expr) -> bool:
    return expression.variant_name() == "ScalarFunction" and expression.schema_name().startswith(_BIN)


def _column(item: Expr) -> str | None:
    """The column that an expression is, by itself or under another name."""
    from datafusion.expr import Alias, Expr

    variant = item.to_variant() if item.variant_name() in ("Alias", "Column") else None
    if isinstance(variant, Alias):
        inner = variant.expr()
        return _column(inner if isinstance(inner, Expr) else Expr(inner))
    return None if variant is None else str(variant.name())


def _bucket(context: SessionContext, expression: Expr) -> tuple[int, int]:
    """The width and the origin of ``date_bin(width, time, origin)``, in ns."""
    from datafusion import functions
    from datafusion.expr import Expr

    width, column, *origin = (Expr(operand) for operand in expression.rex_call_operands())
    if _column(column) != TIME_COLUMN:
        raise NotSupported(f"{SHAPE}: date_bin of the column {TIME_COLUMN!r} itself")
    items = [functions.arrow_cast(width, "Interval(MonthDayNano)").alias("width")]
    items += [functions.arrow_cast(one, "Timestamp(ns)").alias("origin") for one in origin]
    try:
        row = pa.Table.from_batches(context.sql("SELECT 1 AS one").select(*items).collect()).combine_chunks()
    except Exception as error:
        raise NotSupported(f"{SHAPE}: the width and the origin of date_bin must be constants") from error
    months, days, nanoseconds = row.column("width")[0].as_py()
    width_ns = days * DAY_NS + nanoseconds
    if months or width_ns <= 0:
        raise NotSupported("a materialized view needs buckets of a fixed width above 0: months have none")
    origin_ns = row.column("origin").cast(pa.int64())[0].as_py() if origin else 0
    if width_ns > WIDTH_MAX or origin_ns is None or not FOLDED_LOW <= origin_ns <= FOLDED_HIGH:
        raise NotSupported("a materialized view needs buckets of at most 73 years, and an origin from 1823 to 2116")
    return width_ns, origin_ns


def _spec(field: pa.Field, role: Role) -> ColumnSpec:
    return ColumnSpec(field.name, role, _kind(field))


def _kind(field: pa.Field) -> TypeKind:
    """What a result is stored as."""
    kind = field.type
    if pa.types.is_boolean(kind):
        return TypeKind.BOOL
    if pa.types.is_uint64(kind):
        return TypeKind.UINT64
    if pa.types.is_integer(kind):
        return TypeKind.INT64
    if pa.types.is_floating(kind):
        return TypeKind.FLOAT64
    if pa.types.is_string(kind) or pa.types.is_string_view(kind) or pa.types.is_large_string(kind):
        return TypeKind.STRING
    raise NotSupported(
        f"a materialized view stores numbers, text and booleans; cast {field.name!r}, which is {kind}, "
        "with ::bigint, ::double or ::varchar"
    )
