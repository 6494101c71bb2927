"""A result as pieces of one Arrow IPC stream, each small enough for any client's gRPC. Driven by the door."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from nodes.backend import QueryResult

PIECE_BYTES: Final = 1 << 20
"""gRPC's clients take 4 MiB in one message unless they are told otherwise."""


class _Sink:
    """What Arrow's writer writes into: keeps the bytes until they are taken."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self.size = 0

    def write(self, data: pa.Buffer | bytes) -> int:
        part = bytes(data)
        self._parts.append(part)
        self.size += len(part)
        return len(part)

    def flush(self) -> None:
        """Nothing is behind it."""

    def close(self) -> None:
        """Nothing to let go."""

    def take(self) -> Iterator[bytes]:
        """Everything so far, cut into pieces."""
        whole = memoryview(b"".join(self._parts))
        self._parts, self.size = [], 0
        for start in range(0, len(whole), PIECE_BYTES):
            yield bytes(whole[start : start + PIECE_BYTES])


async def ipc_pieces(result: QueryResult) -> AsyncIterator[bytes]:
    """The first piece begins with the schema, at once; the last ends with Arrow's end of stream."""
    sink = _Sink()
    schema = _plain_schema(result.schema)
    writer = pa.ipc.new_stream(pa.PythonFile(sink, "w"), schema)
    for piece in sink.take():
        yield piece
    async for batch in result:
        writer.write_batch(batch if batch.schema.types == schema.types else batch.cast(schema))
        if sink.size >= PIECE_BYTES:
            for piece in sink.take():
                yield piece
    writer.close()
    for piece in sink.take():
        yield piece


def _plain_schema(schema: pa.Schema) -> pa.Schema:
    """Without views, which readers of other makers may not know."""
    plain = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
    return pa.schema([field.with_type(plain.get(field.type, field.type)) for field in schema])
