"""Results as bytes, in InfluxDB 3's exact text, streamed in bounded pieces.

The doors drive it. JSON, CSV and the table are written by the same Rust code as InfluxDB's (arrow-rs, through
DataFusion), because floats, escapes and quoting have no second implementation that agrees in every case. Its
writers know only files: each piece goes through a file in a temporary folder, which costs 0.3 ms.
"""

from __future__ import annotations

import asyncio
import atexit
import enum
import itertools
import shutil
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import pyarrow as pa

from engine.errors import NotSupported, QueryFailed, QueryMemoryExhausted
from engine.session import new_context

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

    from datafusion import SessionContext

PIECE_ROWS: Final = 8_192
PIECE_BYTES: Final = 4 * 2**20
"""Small batches are gathered up to one of these before they are written; larger batches are cut to the rows."""
ROW_GROUP_ROWS: Final = 131_072
"""Rows of a row group of a Parquet result, if they are below `ROW_GROUP_BYTES`."""
ROW_GROUP_BYTES: Final = 32 * 2**20
PRETTY_BYTES_MAX: Final = 64 * 2**20
"""A table's column widths are known only at its end, so all of it is held: that much of Arrow data and no more."""
WRITER_MEMORY_BYTES: Final = 64 * 2**20


class ResultFormat(enum.StrEnum):
    """The formats of InfluxDB's ``format`` parameter."""

    JSON = "json"
    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"
    PRETTY = "pretty"

    @property
    def content_type(self) -> str:
        return _CONTENT_TYPES[self]


_CONTENT_TYPES: Final = {
    ResultFormat.JSON: "application/json",
    ResultFormat.JSONL: "application/jsonl",
    ResultFormat.CSV: "text/csv",
    ResultFormat.PARQUET: "application/vnd.apache.parquet",
    ResultFormat.PRETTY: "text/plain; charset=utf-8",
}


class BatchStream(Protocol):
    """What is encoded: `engine.stream.QueryStream`, or anything like it."""

    @property
    def schema(self) -> pa.Schema: ...

    def __aiter__(self) -> AsyncIterator[pa.RecordBatch]: ...

    async def aclose(self) -> None: ...


async def encode(format: ResultFormat, stream: BatchStream, folder: Path | None = None) -> AsyncGenerator[bytes, None]:
    """The result's bytes in pieces; closing it early closes `stream`, which cancels the query.

    `folder` takes the writers' temporary files (at most one piece for each result that is being sent); None is the
    system's. Raises what `stream` raises, NotSupported for a type that the format has no text for, and
    QueryMemoryExhausted for a table over its limit.
    """
    try:
        async for piece in _ENCODERS[format](stream, folder):
            yield piece
    finally:
        await stream.aclose()


async def _json(stream: BatchStream, folder: Path | None) -> AsyncIterator[bytes]:
    opening = b"["
    async for batches in _pieces(stream, PIECE_ROWS, PIECE_BYTES):
        lines = await _write("json", batches, folder)
        # Line breaks inside strings are escaped, so each raw one ends a row.
        yield opening + lines[:-1].replace(b"\n", b",")
        opening = b","
    yield b"]" if opening == b"," else b"[]"


async def _jsonl(stream: BatchStream, folder: Path | None) -> AsyncIterator[bytes]:
    async for batches in _pieces(stream, PIECE_ROWS, PIECE_BYTES):
        yield await _write("json", batches, folder)


async def _csv(stream: BatchStream, folder: Path | None) -> AsyncIterator[bytes]:
    header = True
    async for batches in _pieces(stream, PIECE_ROWS, PIECE_BYTES, with_empty=True):
        yield await _write("csv", batches, folder, header)
        header = False


async def _parquet(stream: BatchStream, _folder: Path | None) -> AsyncIterator[bytes]:
    sink = _Sink()
    writer: Any = None
    try:
        async for batches in _pieces(stream, ROW_GROUP_ROWS, ROW_GROUP_BYTES, with_empty=True):
            if writer is None:
                writer = _parquet_writer(sink, batches[0].schema)
            await asyncio.to_thread(_write_group, writer, batches)
            yield sink.take()
        if writer is not None:
            await asyncio.to_thread(writer.close)
            yield sink.take()
    finally:
        if writer is not None and writer.is_open:
            writer.close()


async def _pretty(stream: BatchStream, _folder: Path | None) -> AsyncIterator[bytes]:
    held: list[pa.RecordBatch] = []
    held_bytes = 0
    async for batch in stream:
        held.append(batch)
        held_bytes += batch.nbytes
        if held_bytes > PRETTY_BYTES_MAX:
            raise QueryMemoryExhausted(
                f"the table is larger than {PRETTY_BYTES_MAX >> 20} MiB: use another format, or LIMIT"
            )
    yield (await asyncio.to_thread(pretty_table, held)).encode()


_ENCODERS: Final[dict[ResultFormat, Callable[[BatchStream, Path | None], AsyncIterator[bytes]]]] = {
    ResultFormat.JSON: _json,
    ResultFormat.JSONL: _jsonl,
    ResultFormat.CSV: _csv,
    ResultFormat.PARQUET: _parquet,
    ResultFormat.PRETTY: _pretty,
}


def pretty_table(batches: Sequence[pa.RecordBatch]) -> str:
    """arrow-rs's table of the batches, without a line break at its end. Blocking."""
    from datafusion import DataFrame

    if not batches:
        return "++\n++"
    schema = batches[0].schema
    filled = [batch for batch in batches if batch.num_rows]
    if filled:
        return DataFrame.default_str_repr(filled, schema, False, "").split("\n", 1)[1]
    nulls = pa.RecordBatch.from_arrays([pa.nulls(1, field.type) for field in schema], schema=_nullable(schema))
    lines = DataFrame.default_str_repr([nulls], nulls.schema, False, "").split("\n")[1:]
    return "\n".join([*lines[:-2], lines[-1]])  # the header, without the row that it took to get it


async def _pieces(
    stream: BatchStream, rows_max: int, bytes_max: int, with_empty: bool = False
) -> AsyncIterator[list[pa.RecordBatch]]:
    """Batches gathered to at least one limit, or cut to `rows_max`; a batch without rows counts if `with_empty`."""
    held: list[pa.RecordBatch] = []
    rows, size, sent = 0, 0, False
    async for batch in stream:
        for at in range(0, max(1, batch.num_rows), rows_max):
            piece = batch.slice(at, rows_max)
            if piece.num_rows or with_empty:
                held.append(piece)
                rows, size = rows + piece.num_rows, size + piece.nbytes
            if rows >= rows_max or size >= bytes_max:
                yield held
                held, rows, size, sent = [], 0, 0, True
    if held and (rows or not sent):
        yield held


async def _write(kind: str, batches: Sequence[pa.RecordBatch], folder: Path | None, header: bool = False) -> bytes:
    return await asyncio.to_thread(_writer(folder).write, kind, batches, header)


class _Writer:
    """Writes batches by DataFusion's writers through files in a folder of its own. Thread safe."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="runnel-result-", dir=folder))
        atexit.register(shutil.rmtree, self._folder, ignore_errors=True)
        # One partition, or rows would change their order.
        self._context: SessionContext = new_context(WRITER_MEMORY_BYTES, None, 1, PIECE_ROWS, 0)
        self._numbers = itertools.count()

    def write(self, kind: str, batches: Sequence[pa.RecordBatch], header: bool) -> bytes:
        if not sum(batch.num_rows for batch in batches):
            return _csv_header(self, batches[0].schema) if header else b""
        path = self._folder / f"{next(self._numbers)}.{kind}"
        try:
            frame = self._context.read_batches(batches)
            if kind == "json":
                frame.write_json(str(path))
            else:
                frame.write_csv(str(path), with_header=header)
            return path.read_bytes()
        except Exception as error:
            raise _writing_error(error) from error
        finally:
            path.unlink(missing_ok=True)


_writers: dict[Path | None, _Writer] = {}
_writers_lock = threading.Lock()


def _writer(folder: Path | None) -> _Writer:
    with _writers_lock:
        if folder not in _writers:
            _writers[folder] = _Writer(folder)
        return _writers[folder]


def _csv_header(writer: _Writer, schema: pa.Schema) -> bytes:
    """The header line alone: that of a table of one NULL string for each column."""
    names = pa.schema([(field.name, pa.string()) for field in schema])
    batch = pa.RecordBatch.from_arrays([pa.nulls(1, pa.string()) for _ in names], schema=names)
    line = writer.write("csv", [batch], True)
    row = b'""\n' if len(names) == 1 else b"," * (len(names) - 1) + b"\n"
    return line.removesuffix(row)


def _writing_error(error: Exception) -> NotSupported | QueryFailed:
    text = str(error)
    if "not supported" in text or "not implemented" in text:
        return NotSupported(f"this result has no text in this format: {text}")
    return QueryFailed(f"the result could not be written: {text}")


def _parquet_writer(sink: _Sink, schema: pa.Schema) -> Any:
    import pyarrow.parquet as pq

    # Without Arrow's own schema in it, so that readers that do not know string views see plain strings.
    return pq.ParquetWriter(pa.PythonFile(sink, mode="w"), schema, compression="zstd", store_schema=False)


def _write_group(writer: Any, batches: Sequence[pa.RecordBatch]) -> None:
    writer.write_table(pa.Table.from_batches(batches), row_group_size=ROW_GROUP_ROWS)


def _nullable(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field.with_nullable(True) for field in schema])


class _Sink:
    """A file that is only written to, and emptied as it grows."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._position = 0
        self.closed = False

    def write(self, data: Any) -> int:
        """Take bytes."""
        part = bytes(data)
        self._parts.append(part)
        self._position += len(part)
        return len(part)

    def take(self) -> bytes:
        """What was written since the last call."""
        taken = b"".join(self._parts)
        self._parts.clear()
        return taken

    def tell(self) -> int:
        return self._position

    def flush(self) -> None:
        return None

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        self.closed = True
