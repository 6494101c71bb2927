"""A small client of Runnel's gRPC API, to copy and change: write, query, list tables.

    runnel start --grpc 127.0.0.1:50051
    python examples/runnel_client.py 127.0.0.1:50051

It needs grpcio, pyarrow and the code that is generated from protos/runnel.proto.
"""

from __future__ import annotations

import contextlib
import io
import random
import sys
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar

import grpc
import pyarrow as pa

from protos import runnel_pb2 as pb
from protos.runnel_pb2_grpc import RunnelStub

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    Value = bool | int | float | str | None

T = TypeVar("T")
MESSAGE_BYTES_MAX = 16 * 2**20


class RunnelError(Exception):
    """What the server said. ``code`` is one of docs/errors.md; ``retry_seconds`` is None where a wait does not help."""

    def __init__(self, text: str, code: str, request_id: str, retry_seconds: float | None, written: int) -> None:
        super().__init__(text)
        self.code = code
        self.request_id = request_id
        self.retry_seconds = retry_seconds
        self.messages_written = written


@dataclass(frozen=True)
class Written:
    """``rejected`` lines were not written; ``faults`` has (line, message) of the first of them."""

    rejected: int
    faults: tuple[tuple[int, str], ...]


class RunnelClient:
    """One connection; use it from any thread. A call ends after ``seconds``, its tries and waits included."""

    def __init__(
        self, address: str, *, seconds: float = 30.0, credentials: grpc.ChannelCredentials | None = None
    ) -> None:
        options = [("grpc.max_receive_message_length", MESSAGE_BYTES_MAX)]
        self._channel = (
            grpc.insecure_channel(address, options)
            if credentials is None
            else grpc.secure_channel(address, credentials, options)
        )
        self._stub: Any = RunnelStub(self._channel)
        self._seconds = seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._channel.close()

    def write(self, database: str, lines: str | bytes, *, key: str | None = None) -> Written:
        """Write line protocol with times in nanoseconds. Sent again under one key until it stands or time is up.

        The key makes that safe: whatever became of the first try, the lines are written once. Each needs its time.
        """
        data = lines.encode() if isinstance(lines, str) else lines
        request = pb.WriteRequest(
            database=database,
            lines=pb.LineProtocol(lines=data, precision=pb.PRECISION_NANOSECOND),
            idempotency_key=key or str(uuid.uuid4()),
        )
        reply = self._until_it_stands(lambda seconds: self._stub.Write(request, timeout=seconds))
        return Written(reply.rejected, tuple((fault.line, fault.message) for fault in reply.faults))

    def write_table(
        self, database: str, table: str, rows: pa.Table, *, tags: Sequence[str] = (), key: str | None = None
    ) -> None:
        """Write columns: ``time`` (a timestamp), tags (strings that ``tags`` names, or dictionaries), fields."""
        request = pb.WriteRequest(
            database=database,
            arrow=pb.ArrowRows(table=table, ipc=_ipc(rows), tags=tags),
            idempotency_key=key or str(uuid.uuid4()),
        )
        self._until_it_stands(lambda seconds: self._stub.Write(request, timeout=seconds))

    def write_many(self, database: str, bodies: Iterable[bytes]) -> int:
        """Write many bodies of line protocol over one stream; how many. RunnelError says how many were written."""
        requests = (pb.WriteRequest(database=database, lines=pb.LineProtocol(lines=body)) for body in bodies)
        with _our_errors():
            return int(self._stub.WriteStream(requests).messages)

    def query(self, database: str, sql: str, parameters: Mapping[str, Value] | None = None) -> pa.Table:
        """The whole result."""
        return pa.Table.from_batches(*self._result(database, sql, parameters or {}))

    def tables(self, database: str) -> dict[str, dict[str, str]]:
        """Of each table, each column's type."""
        with _our_errors():
            reply = self._stub.ListTables(pb.ListTablesRequest(database=database), timeout=self._seconds)
        return {table.name: {column.name: column.type for column in table.columns} for table in reply.tables}

    def status(self) -> pb.ClusterStatusReply:
        """The node that answers and its cluster."""
        with _our_errors():
            reply: pb.ClusterStatusReply = self._stub.ClusterStatus(pb.ClusterStatusRequest(), timeout=self._seconds)
        return reply

    def _result(
        self, database: str, sql: str, parameters: Mapping[str, Value]
    ) -> tuple[list[pa.RecordBatch], pa.Schema]:
        given = {name: _parameter(value) for name, value in parameters.items()}
        request = pb.QueryRequest(database=database, sql=sql, parameters=given)
        with _our_errors():
            pieces = (reply.ipc for reply in self._stub.Query(request, timeout=self._seconds))
            with pa.ipc.open_stream(io.BufferedReader(_Joined(pieces))) as reader:
                return list(reader), reader.schema

    def _until_it_stands(self, call: Callable[[float], T]) -> T:
        """Try again what may succeed later, within the client's time."""
        deadline = time.monotonic() + self._seconds
        while True:
            try:
                with _our_errors():
                    return call(max(0.001, deadline - time.monotonic()))
            except RunnelError as error:
                wait = (error.retry_seconds or 0.0) * random.uniform(0.5, 1.0)
                if error.retry_seconds is None or time.monotonic() + wait >= deadline:
                    raise
                time.sleep(wait)


class _Joined(io.RawIOBase):
    """Pieces of bytes as one file to read, without holding more than one."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def _ipc(rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return bytes(sink.getvalue())


def _parameter(value: Value) -> pb.Parameter:
    if value is None:
        return pb.Parameter()
    if isinstance(value, bool):
        return pb.Parameter(is_true=value)
    if isinstance(value, int):
        return pb.Parameter(integer=value)
    return pb.Parameter(number=value) if isinstance(value, float) else pb.Parameter(text=value)


@contextlib.contextmanager
def _our_errors() -> Iterator[None]:
    """gRPC's errors as RunnelError. One without Runnel's metadata never reached a server, or its answer was lost."""
    try:
        yield
    except grpc.RpcError as error:
        failed: Any = error
        said = dict(failed.trailing_metadata() or ())
        code = said.get("runnel-code", failed.code().name.lower())
        wait = float(said.get("runnel-retry-ms", 0)) / 1000 or None
        if "runnel-code" not in said and failed.code() is grpc.StatusCode.UNAVAILABLE:
            wait = 0.5
        written = int(said.get("runnel-messages-written", 0))
        raise RunnelError(failed.details(), code, said.get("runnel-request-id", ""), wait, written) from error


def main(address: str) -> None:
    """Write two lines and read them back."""
    now = time.time_ns()
    with RunnelClient(address) as client:
        client.write("home", f"room,name=kitchen celsius=21.5 {now}\nroom,name=hall celsius=19.0 {now}")
        rows = client.query("home", "SELECT name, celsius FROM room WHERE celsius > $low ORDER BY name", {"low": 20})
        sys.stdout.write(f"{rows.to_pylist()}\n{client.tables('home')}\n")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051")
