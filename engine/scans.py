"""Which tables a plan scans, and what of them. Driven by `engine.planner`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from datafusion import DataFrame, Expr

SCAN_LINE: Final = "TableScan: "


class Scan(NamedTuple):
    """What one scan has to give: rows for which all ``conditions`` hold, of them these ``columns`` (None: all)."""

    conditions: tuple[Expr, ...]
    columns: tuple[str, ...] | None


def scan_counts(frame: DataFrame) -> dict[str, int]:
    """How often each table is scanned in the plan as written, subqueries included."""
    counts: dict[str, int] = {}
    for line in frame.logical_plan().display_indent().splitlines():
        text = line.strip()
        if text.startswith(SCAN_LINE):
            name = text.removeprefix(SCAN_LINE)
            counts[name] = counts.get(name, 0) + 1
    return counts


def pushed_scans(frame: DataFrame) -> dict[str, list[Scan]]:
    """By the table, each scan in the optimized plan, outside of expressions, with what is pushed into it."""
    from datafusion.expr import Expr, TableScan

    found: dict[str, list[Scan]] = {}
    try:
        pending = [frame.optimized_logical_plan()]
    except Exception:  # noqa: BLE001 - DataFusion raises bare Exception; the real plan will report it
        return {}
    while pending:
        node = pending.pop()
        pending.extend(node.inputs())
        if node.display().startswith(SCAN_LINE):
            scan = node.to_variant()
            if isinstance(scan, TableScan):
                columns = scan.projection()
                names = None if columns is None else tuple(name for _, name in columns)
                conditions = tuple(Expr(condition) for condition in scan.filters())
                found.setdefault(scan.table_name(), []).append(Scan(conditions, names))
    return found
