"""Which tables a plan scans, and with which conditions. Driven by `engine.planner`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from datafusion import DataFrame, Expr

SCAN_LINE: Final = "TableScan: "


def scan_counts(frame: DataFrame) -> dict[str, int]:
    """How often each table is scanned in the plan as written, subqueries included."""
    counts: dict[str, int] = {}
    for line in frame.logical_plan().display_indent().splitlines():
        text = line.strip()
        if text.startswith(SCAN_LINE):
            name = text.removeprefix(SCAN_LINE)
            counts[name] = counts.get(name, 0) + 1
    return counts


def scan_conditions(frame: DataFrame) -> dict[str, list[list[Expr]]]:
    """For each scan in the optimized plan, outside of expressions, what is pushed into it."""
    from datafusion.expr import Expr, TableScan

    found: dict[str, list[list[Expr]]] = {}
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
                found.setdefault(scan.table_name(), []).append([Expr(condition) for condition in scan.filters()])
    return found
