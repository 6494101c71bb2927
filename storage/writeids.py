"""Write ids that a Log's owner remembers, so that a repeated write is answered with the first one's outcome (LOG L7).

Pure. `storage.shardstate` and `storage.catalogstate` keep them in the order of the Log, above a horizon; both are
part of their Checkpoints.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

import pyarrow as pa

from storage.checkpoint import SCHEMAS, Section
from storage.frames import WriteId

if TYPE_CHECKING:
    from collections.abc import Sequence

RETRY_SECONDS_MAX: Final = 600
"""The longest time in which a writer repeats a write; older write ids are forgotten."""
WRITE_IDS_MAX: Final = 100_000
"""Write ids remembered; when there are more the horizon moves up."""
WRITE_IDS_PIECE: Final = 4096
"""Write ids that are encoded at once."""


class Remembered(NamedTuple):
    """Where the entry of a write id stands. In the Catalog ``first_offset`` is its Revision."""

    sequence: int
    first_offset: int
    written_ms: int


def forget(
    write_ids: OrderedDict[WriteId, Remembered], horizon: int, before_ms: int, count_max: int = WRITE_IDS_MAX
) -> int:
    """Forget ids of objects written before ``before_ms``, and the oldest of too many; return the new horizon."""
    while write_ids:
        key, at = next(iter(write_ids.items()))
        if at.written_ms >= before_ms and len(write_ids) <= count_max:
            break
        del write_ids[key]
        horizon = max(horizon, at.sequence)
    return horizon


def write_id_table(ids: Sequence[WriteId], places: Sequence[Remembered]) -> pa.Table:
    """Column by column, a few at a time: a hundred thousand ids as rows would take most of a second, and as
    one piece would keep the event loop from running beside this thread."""
    schema = SCHEMAS[Section.WRITE_IDS]
    pieces = []
    for start in range(0, len(ids), WRITE_IDS_PIECE):
        end = start + WRITE_IDS_PIECE
        columns = (*zip(*ids[start:end], strict=True), *zip(*places[start:end], strict=True))
        arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
        pieces.append(pa.RecordBatch.from_arrays(arrays, schema=schema))
    return pa.Table.from_batches(pieces, schema)


def read_write_ids(table: pa.Table) -> OrderedDict[WriteId, Remembered]:
    """The reverse of `write_id_table`."""
    columns = [column.to_pylist() for column in table.columns]
    keys = map(WriteId._make, zip(*columns[:5], strict=True))
    return OrderedDict(zip(keys, map(Remembered._make, zip(*columns[5:], strict=True)), strict=True))
