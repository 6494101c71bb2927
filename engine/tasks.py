"""One task of a stage: its inputs are put into its plan, the plan runs, its outputs are Arrow IPC streams.

Used by `engine.worker` in other processes and by `engine.staged` for the last stage, in the query's own process.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import pyarrow as pa

from engine import dfplan_pb2 as pb
from engine.batches import BatchSource
from engine.stages import TWO_INPUTS, CannotBeCut, Node, walk

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datafusion import SessionContext
    from datafusion.plan import ExecutionPlan

    from engine.stages import Read, Task

Blob: TypeAlias = tuple[int, pa.Buffer]
"""Rows, and those rows as one Arrow IPC stream: it has a schema also without rows."""

INPUT_BYTES_MAX: Final = 1 << 30
"""Of one task: a plan with its inputs in it is one protobuf message, which cannot have 2 GiB."""
SCHEMAS_KEPT: Final = 1_024
STREAM_OPTIONS: Final = pa.ipc.IpcWriteOptions(compression=None)


@dataclass(frozen=True, slots=True)
class TaskInputs:
    """What a task reads: for each of `Task.reads` the outputs, and for each of `Task.held` the rows."""

    reads: Mapping[Read, Sequence[Blob]]
    held: Mapping[int, pa.Buffer]

    @property
    def bytes(self) -> int:
        buffers = [data for blobs in self.reads.values() for _, data in blobs] + list(self.held.values())
        return sum(int(data.size) for data in buffers)


@dataclass(frozen=True, slots=True)
class TaskFigures:
    """What one task did: where, for how long, what went in and what came out."""

    stage: int
    number: int
    worker: str
    seconds: float
    input_bytes: int
    rows: int
    bytes: int


class TaskContext:
    """A DataFusion context in which tasks run. May be used by several threads."""

    def __init__(self, context: SessionContext, output_bytes_max: int = INPUT_BYTES_MAX) -> None:
        """``output_bytes_max``: what all outputs of one task may have together; they are kept until it is done."""
        self.context = context
        self._output_bytes_max = output_bytes_max
        self._schemas: dict[pa.Schema, pb.Schema] = {}

    def start(self, plan: bytes, inputs: TaskInputs) -> BatchSource:
        """Start a task with one output. Raises what DataFusion raises, and CannotBeCut. Blocking."""
        return BatchSource(self.context.execute(self._executable(self._filled(plan, inputs)), 0))

    async def run(self, task: Task, inputs: TaskInputs, worker: str) -> tuple[TaskFigures, list[Blob]]:
        """Run a task to its end. Raises EngineError, StorageError, CannotBeCut, and what DataFusion raises."""
        began = time.monotonic()
        node, outputs = await self._outputs(task, inputs)
        schema = next((output.schema for output in outputs if output.schema is not None), None)
        if schema is None:
            schema = await self._schema_of(node)
        blobs = [output.close(schema) for output in outputs]
        rows, size = sum(rows for rows, _ in blobs), sum(data.size for _, data in blobs)
        seconds = time.monotonic() - began
        return TaskFigures(task.stage, task.number, worker, seconds, inputs.bytes, rows, size), blobs

    async def _outputs(self, task: Task, inputs: TaskInputs) -> tuple[Node, list[_Output]]:
        node, plan = await asyncio.to_thread(self._ready, task.plan, inputs)
        room = _Room(self._output_bytes_max)
        try:
            return node, [await self._output(plan, number, room) for number in range(task.outputs)]
        finally:
            del plan  # a traceback would keep it, and with it what feeds its repartition

    async def _output(self, plan: ExecutionPlan, number: int, room: _Room) -> _Output:
        output = _Output(room)
        source = BatchSource(self.context.execute(plan, number))
        del plan
        try:
            while (batch := await source.next()) is not None:
                if batch.num_rows:
                    output.add(batch)
        finally:
            source.drop()
        return output

    def _ready(self, plan: bytes, inputs: TaskInputs) -> tuple[Node, ExecutionPlan]:
        node = self._filled(plan, inputs)
        return node, self._executable(node)

    def _executable(self, node: Node) -> ExecutionPlan:
        from datafusion.plan import ExecutionPlan

        return ExecutionPlan.from_bytes(self.context, node.SerializeToString())

    def _filled(self, plan: bytes, inputs: TaskInputs) -> Node:
        if inputs.bytes > INPUT_BYTES_MAX:
            raise CannotBeCut(f"the inputs of a task have {inputs.bytes} bytes, and may have {INPUT_BYTES_MAX}")
        node = Node.FromString(plan)
        _make_joins_stoppable(node)
        for part in walk(node):
            kind = part.WhichOneof("kind")
            if kind == "exchange":
                blobs = inputs.reads[part.exchange.stage, part.exchange.output]
                part.memory_scan.CopyFrom(self._scan_of(blobs))
            elif kind == "memory_scan" and part.memory_scan.held:
                part.memory_scan.partitions[:] = [inputs.held[at].to_pybytes() for at in part.memory_scan.held]
                del part.memory_scan.held[:]
        return node

    def _scan_of(self, blobs: Sequence[Blob]) -> pb.MemoryScanNode:
        schemas = [pa.ipc.open_stream(data).schema for _, data in blobs]
        if any(schema.types != schemas[0].types for schema in schemas):
            raise CannotBeCut("the tasks of a stage made columns of different types")
        full = [data for rows, data in blobs if rows] or [blobs[0][1]]
        scan = pb.MemoryScanNode(partitions=[data.to_pybytes() for data in full])
        scan.schema.CopyFrom(self._schema_message(schemas[0]))
        return scan

    def _schema_message(self, schema: pa.Schema) -> pb.Schema:
        """A schema as DataFusion encodes it. States of aggregates may share a name, which a table's columns may not."""
        message = self._schemas.get(schema)
        if message is not None:
            return message
        message = pb.Schema()
        if len(schema):
            unique = pa.schema([field.with_name(f"c{at}") for at, field in enumerate(schema)], schema.metadata)
            message.CopyFrom(self._memory_scan(pa.RecordBatch.from_pylist([], unique)).memory_scan.schema)
        for column, field in zip(message.columns, schema, strict=True):
            column.name = field.name
        if len(self._schemas) >= SCHEMAS_KEPT:
            self._schemas.clear()
        self._schemas[schema] = message
        return message

    def _memory_scan(self, batch: pa.RecordBatch) -> Node:
        return Node.FromString(self.context.read_batch(batch).execution_plan().to_bytes(self.context))

    async def _schema_of(self, node: Node) -> pa.Schema:
        """The schema of a plan that made no batch, which DataFusion's Python API does not say: what one row is given
        by a left join with none of the plan's rows."""
        probe = Node()
        join = probe.nested_loop_join
        join.join_type = pb.LEFT
        join.left.CopyFrom(self._memory_scan(pa.record_batch({"one": pa.array([1])})))
        limit = join.right.global_limit
        limit.fetch = 0
        limit.input.CopyFrom(node.repartition.input if node.WhichOneof("kind") == "repartition" else node)
        source = BatchSource(self.context.execute(self._executable(probe), 0))
        batch = await source.next()
        assert batch is not None, "a left join keeps its left rows"
        return _nullable(pa.schema(list(batch.schema)[1:], batch.schema.metadata))


class _Room:
    """What the outputs of one task may still take."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = self._left = bytes_max

    def take(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise CannotBeCut(f"a task hands on more than {self._bytes_max} bytes (ray.shuffle_bytes_max)")


class _Output:
    """One output that is being made."""

    def __init__(self, room: _Room) -> None:
        self._room = room
        self.schema: pa.Schema | None = None
        self._sink = pa.BufferOutputStream()
        self._writer: Any = None
        self._rows = 0

    def add(self, batch: pa.RecordBatch) -> None:
        if self._writer is None:
            self._open(_nullable(batch.schema))
        before = self._sink.tell()
        self._writer.write_batch(with_schema(_compacted(batch), self.schema))
        self._room.take(self._sink.tell() - before)
        self._rows += batch.num_rows

    def close(self, schema: pa.Schema) -> Blob:
        """The output; ``schema`` is its schema if it has no row."""
        if self._writer is None:
            self._open(schema)
        self._writer.close()
        return self._rows, self._sink.getvalue()

    def _open(self, schema: pa.Schema) -> None:
        self.schema = schema
        self._writer = pa.ipc.new_stream(self._sink, schema, options=STREAM_OPTIONS)


def with_schema(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The batch with the names and the nullability of ``schema``, which has as many columns. Raises ArrowInvalid."""
    if batch.schema.equals(schema, check_metadata=True) or not len(schema):
        return batch
    columns = [
        column if column.type == field.type else column.cast(field.type)
        for column, field in zip(batch.columns, schema, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def with_names(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The batch with the names of ``schema`` and types of its own. Raises ValueError unless it has as many columns."""
    fields = [field.with_name(name) for field, name in zip(batch.schema, schema.names, strict=True)]
    named = pa.schema(fields, schema.metadata)
    if not fields or batch.schema.equals(named, check_metadata=True):
        return batch
    return pa.RecordBatch.from_arrays(batch.columns, schema=named)


def _nullable(schema: pa.Schema) -> pa.Schema:
    """Of the inputs of a UNION some may have NULLs where others promise to have none, and each task sees one."""
    return pa.schema([field.with_nullable(True) for field in schema], schema.metadata)


def _compacted(batch: pa.RecordBatch) -> pa.RecordBatch:
    """String views that refer to their own rows only: a batch of some rows of another, as a hash repartition makes
    it, refers to all text of that other one, and all of it would be written."""
    columns = [_compact(column) for column in batch.columns]
    if all(new is old for new, old in zip(columns, batch.columns, strict=True)):
        return batch
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


def _compact(column: pa.Array) -> pa.Array:
    if pa.types.is_string_view(column.type):
        return column.cast(pa.large_string()).cast(column.type)
    if pa.types.is_binary_view(column.type):
        return column.cast(pa.large_binary()).cast(column.type)
    return column


def _make_joins_stoppable(node: Node) -> None:
    """See `engine.stoppable`: a join under a CooperativeExec can be cancelled."""
    for part in reversed(list(walk(node))):
        if part.WhichOneof("kind") in TWO_INPUTS:
            wrapped = Node()
            wrapped.cooperative.input.CopyFrom(part)
            part.CopyFrom(wrapped)
