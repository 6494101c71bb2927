"""Rows on their way between nodes: an Arrow IPC stream of one batch, with its dictionaries.

Pure. An owner packs the rows of a `TailAnswer`, the query node unpacks them.
"""

from __future__ import annotations

import pyarrow as pa

from storage.errors import CorruptObject


def pack_rows(rows: pa.RecordBatch) -> bytes:
    """One batch as a stream; of a slice only its rows are written."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_batch(rows)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def unpack_rows(data: bytes | memoryview, where: str) -> pa.RecordBatch:
    """The batch of a stream, as views of ``data``. Raises CorruptObject if it is not a stream of one batch."""
    try:
        reader = pa.ipc.open_stream(pa.py_buffer(data))
        batch = reader.read_next_batch()
        batch.validate()
    except (pa.ArrowException, OSError, EOFError, StopIteration, ValueError) as error:
        raise CorruptObject(f"{where}: rows cannot be read: {error}") from error
    return batch
