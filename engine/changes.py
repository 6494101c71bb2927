"""What the rows of a statement that writes are for. The engine says which rows; whoever asked it writes them."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from storage.changes import ColumnSpec
    from storage.deletes import RangeDelete


class ChangeKind(enum.IntEnum):
    """Numbers are for ever: nodes tell them each other."""

    INSERT = 1
    DELETE = 2
    UPDATE = 3
    CREATE_VIEW = 4
    REFRESH_VIEW = 5


@dataclass(frozen=True, slots=True)
class NewView:
    """What CREATE MATERIALIZED VIEW asks of the Catalog, as `storage.changes.CreateView` has it."""

    table_id: int
    text: str
    width_ns: int
    origin_ns: int
    columns: Sequence[ColumnSpec]
    exist_ok: bool


@dataclass(frozen=True, slots=True)
class ViewProgress:
    """How far a materialized view is when the rows are written: the new ``state``, for the table ``state_id``.

    "": as far as it was, and there is nothing to write. With ``has_more`` there was more to fold than was asked for.
    """

    state_id: int
    state: str
    has_more: bool


@dataclass(frozen=True, slots=True)
class RowChange:
    """Rows under users' names, for ``table``: whole ones, of a DELETE their keys only.

    ``positions`` say for each partition which object was the newest in the snapshot that they rest on (LOG L26). A
    DELETE by tags and time has a ``delete`` to be stored, and one row: how many rows that takes. CREATE MATERIALIZED
    VIEW has no rows; the rows of a REFRESH have `storage.schema.OP_COLUMN`, and ``positions`` are those of its state.
    """

    kind: ChangeKind
    table: str
    table_id: int
    positions: Mapping[int, int] = field(default_factory=dict)
    delete: RangeDelete | None = None
    view: NewView | ViewProgress | None = None
