"""Physical plans whose joins can be stopped: DataFusion's own CooperativeExec above each of them.

DataFusion 55 makes the leaves of a plan give way from time to time. A join makes so many rows of each batch of its
leaves that this moment may never come: dropping the query's stream does not stop it, its thread is lost, and a few
such queries take all threads. A plan cannot be changed from Python, but written down and read again: this module
finds the joins in the written form (datafusion.proto, `PhysicalPlanNode`) and puts a node above them. Driven by
`engine.planner`, for statements that join, which the merges inside views do not count as, and for those that read many
large files, whose scans are put together in the same form (`engine.onescan`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from engine import onescan
from engine.viewsql import NEWER, OLDER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from datafusion import DataFrame, SessionContext
    from datafusion.record_batch import RecordBatchStream

MERGE: Final = 13
"""`PhysicalPlanNode.merge`, a CoalescePartitionsExec; its child is field 1."""
COOPERATIVE: Final = 32
"""`PhysicalPlanNode.cooperative`, a CooperativeExec; its child is field 1."""
JOINS: Final = frozenset({9, 16, 22, 34})
"""hash_join, cross_join, nested_loop_join, sort_merge_join."""
CHILDREN: Final[dict[int, tuple[int, ...]]] = {
    4: (1,), 6: (1,), 7: (1,), 8: (4,), 9: (1, 2), 10: (1,), 11: (1,), 12: (1,), MERGE: (1,), 14: (1,), 15: (1,),
    16: (1, 2), 19: (1,), 21: (1,), 22: (1, 2), 23: (3,), 26: (1,), 30: (1,), COOPERATIVE: (1,), 34: (1, 2),
}  # fmt: skip
"""Where each kind of node has its children; a kind that is missing here and has children is left as it is."""
TAILS_BYTES_MAX: Final = 8 * 2**20
"""A written plan holds the rows in memory that it reads, several times while it is read again; with more of them a
statement runs as it is."""
_JOIN: Final = re.compile(r"^\s*\w+ Join:.*\n\s*(.*)$", re.MULTILINE)
"""A join's line in a logical plan, and the first line of what it joins."""
_BYTES: Final = 2
_FIXED: Final = {1: 8, 5: 4}


def execute(context: SessionContext, frame: DataFrame, tails_bytes: int) -> RecordBatchStream:
    """Start the frame, which reads so many bytes of rows in memory. Raises what DataFusion raises."""
    plan = _plan(context, frame, tails_bytes)
    return frame.execute_stream() if plan is None else context.execute(plan, 0)


def execute_in(
    pool: SessionContext, context: SessionContext, frame: DataFrame, tails_bytes: int
) -> list[RecordBatchStream]:
    """Start the frame, planned in ``context``, with the memory of ``pool``. Raises what DataFusion raises.

    Its partitions: DataFusion's own `execute_stream`, which joins them, runs a frame where it was planned only.
    """
    plan = _plan(context, frame, tails_bytes) or frame.execution_plan()
    return [pool.execute(plan, number) for number in range(plan.partition_count)]


def joins(frame: DataFrame) -> bool:
    """Whether the statement itself joins: the merges of views are in its plan too, told by the alias of their input."""
    plan = frame.logical_plan().display_indent()
    merges = (f"SubqueryAlias: {NEWER}", f"SubqueryAlias: {OLDER}")
    return any(not first.startswith(merges) for first in _JOIN.findall(plan))


def _plan(context: SessionContext, frame: DataFrame, tails_bytes: int) -> Any:
    """The frame's plan as it is to run; None if as it is."""
    stops = tails_bytes <= TAILS_BYTES_MAX and joins(frame)
    in_parts = tails_bytes <= onescan.TAILS_BYTES_MAX and onescan.has_parts(frame)
    return _rewritten(context, frame, stops, in_parts) if stops or in_parts else None


def _rewritten(context: SessionContext, frame: DataFrame, stops: bool, in_parts: bool) -> Any:
    """The frame's plan, of one partition; None if it has no written form.

    `stops`: with every join under a CooperativeExec. `in_parts`: with parts of scans joined (`engine.onescan`).
    """
    from datafusion.plan import ExecutionPlan

    plan = frame.execution_plan()
    try:
        written = plan.to_bytes(context)
    except Exception:  # noqa: BLE001 - DataFusion raises bare Exception for a node that has no written form
        return None
    try:
        changed: bytes | memoryview = onescan.joined(written) if in_parts else written
        changed = wrap_joins(memoryview(changed)) if stops else changed
    except RecursionError:
        return None
    if plan.partition_count > 1:
        changed = _field(MERGE, _field(1, changed))
    try:
        return ExecutionPlan.from_bytes(context, bytes(changed))
    except Exception:  # noqa: BLE001 - as above
        return None


def wrap_joins(node: memoryview) -> bytes | memoryview:
    """A written plan node with every join in it under a CooperativeExec."""
    ((kind, _, body),) = _fields(node)
    children = CHILDREN.get(kind, ())
    if not children or body is None:
        return node
    parts = [
        _field(number, wrap_joins(content)) if number in children and content is not None else whole
        for number, whole, content in _fields(body)
    ]
    changed = _field(kind, b"".join(parts))
    return _field(COOPERATIVE, _field(1, changed)) if kind in JOINS else changed


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview, memoryview | None]]:
    """Number, whole bytes, and content if it has a length, of each field of a protobuf message."""
    at = 0
    while at < len(message):
        begin = at
        tag, at = _varint(message, at)
        content = None
        if tag & 7 == _BYTES:
            length, at = _varint(message, at)
            content = message[at : at + length]
            at += length
        elif tag & 7 in _FIXED:
            at += _FIXED[tag & 7]
        else:
            _, at = _varint(message, at)
        yield tag >> 3, message[begin:at], content


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def _field(number: int, content: bytes | memoryview) -> bytes:
    return b"".join((_written(number << 3 | _BYTES), _written(len(content)), content))


def _written(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)
