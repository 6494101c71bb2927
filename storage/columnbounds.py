"""Which columns of a Parquet file may have statistics: those whose least and greatest value a reader may believe.

Parquet's statistics leave NaN out. For DataFusion NaN is greater than every number: by them it skipped row groups that
have rows for `WHERE v > 90`, and answered `max(v)` from them. Whoever writes a file asks here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from collections.abc import Collection

    import pyarrow.parquet as pq


def with_bounds(rows: pa.Table, without: Collection[str] = ()) -> list[str]:
    """The columns of ``rows`` that may have statistics, for pyarrow's writer; those in ``without`` must not."""
    return [name for name in rows.column_names if name not in without and not _has_nan(rows.column(name))]


def without_bounds(metadata: pq.FileMetaData) -> frozenset[str]:
    """The columns of a file that may hold NaN: they were written without statistics, in all of its row groups."""
    group = metadata.row_group(0)
    columns = [group.column(place) for place in range(group.num_columns)]
    return frozenset(column.path_in_schema for column in columns if column.statistics is None)


def _has_nan(values: pa.ChunkedArray) -> bool:
    return pa.types.is_floating(values.type) and bool(pc.any(pc.is_nan(values)).as_py())
