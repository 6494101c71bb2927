"""What the rows of a statement that writes are for. The engine says which rows; whoever asked it writes them."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from storage.deletes import RangeDelete


class ChangeKind(enum.IntEnum):
    """Numbers are for ever: nodes tell them each other."""

    INSERT = 1
    DELETE = 2
    UPDATE = 3


@dataclass(frozen=True, slots=True)
class RowChange:
    """Rows under users' names, for ``table``: whole ones, of a DELETE their keys only.

    ``positions`` say for each partition which object was the newest in the snapshot that they rest on (LOG L26). A
    DELETE by tags and time has a ``delete`` to be stored, and one row: how many rows that takes.
    """

    kind: ChangeKind
    table: str
    table_id: int
    positions: Mapping[int, int] = field(default_factory=dict)
    delete: RangeDelete | None = None
