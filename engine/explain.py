"""What EXPLAIN and EXPLAIN ANALYZE say about rungs, stages and tasks, beside what DataFusion says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from engine import dfplan_pb2 as pb
from engine.stages import inputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.batches import Source
    from engine.staged import StagedSource
    from engine.stages import Node, Stages
    from engine.tasks import TaskFigures

Line = tuple[str, str]
"""One row of an answer: the columns ``plan_type`` and ``plan``."""


class ExplainedSource:
    """DataFusion's own answer, and then ``lines``."""

    def __init__(self, source: Source, schema: pa.Schema, lines: Sequence[Line]) -> None:
        self._source = source
        self._lines: pa.RecordBatch | None = _batch(schema, lines)

    async def next(self) -> pa.RecordBatch | None:
        batch = await self._source.next()
        if batch is None:
            batch, self._lines = self._lines, None
        return batch

    def drop(self) -> None:
        self._lines = None
        self._source.drop()


class AnalyzedSource:
    """Runs a statement to its end, hands out none of its rows, and then says what each task did."""

    def __init__(self, source: StagedSource, schema: pa.Schema, lines: Sequence[Line]) -> None:
        self._source = source
        self._schema = schema
        self._lines: Sequence[Line] | None = lines

    async def next(self) -> pa.RecordBatch | None:
        if self._lines is None:
            return None
        rows = 0
        while (batch := await self._source.next()) is not None:
            if self._source.fell_back:  # DataFusion's own answer, of the statement run in this process
                return with_lines(batch, self._lines, self._source.fell_back)
            rows += batch.num_rows
        lines, self._lines = [*self._lines, *_figures(self._source.figures), ("rows", str(rows))], None
        return _batch(self._schema, lines)

    def drop(self) -> None:
        self._lines = None
        self._source.drop()


def stages_text(stages: Stages) -> str:
    """A cut plan, a line for each node; stages in the order in which they run."""
    lines: list[str] = []
    for place, stage in enumerate(stages.stages):
        is_last = place == len(stages.stages) - 1
        where = "here" if is_last else f"{stage.tasks} tasks, {stage.outputs} outputs of each"
        lines.append(f"stage {place}: {where}")
        _add_lines(stage.plan, 1, lines)
    return "\n".join(lines)


def _add_lines(node: Node, depth: int, lines: list[str]) -> None:
    lines.append("  " * depth + _said(node))
    for part in inputs(node):
        _add_lines(part, depth + 1, lines)


def _said(node: Node) -> str:
    kind = str(node.WhichOneof("kind"))
    body: Any = getattr(node, kind)
    if kind == "exchange":
        return f"stage {body.stage}" + (", one output for each task" if body.outputs > 1 else ", all of it")
    if kind == "parquet_scan":
        groups = body.base_conf.file_groups
        return f"parquet_scan: {len({file.path for group in groups for file in group.files})} files"
    if kind == "aggregate":
        return f"aggregate: {pb.AggregateMode.Name(body.mode).lower()}"
    if kind == "hash_join":
        names = (pb.JoinType.Name(body.join_type), pb.PartitionMode.Name(body.partition_mode))
        return f"hash_join: {', '.join(names).lower()}"
    return kind


def _figures(figures: Sequence[TaskFigures]) -> list[Line]:
    return [(f"stage {one.stage} task {one.number}", _figures_of(one)) for one in figures]


def _figures_of(one: TaskFigures) -> str:
    read, made = f"{one.input_bytes} bytes of other stages in", f"{one.rows} rows and {one.bytes} bytes out"
    return f"{one.worker}: {one.seconds:.3f} s, {read}, {made}"


def with_lines(batch: pa.RecordBatch, lines: Sequence[Line], reason: str) -> pa.RecordBatch:
    """A batch of DataFusion's answer with ``lines`` and why the stages did not run after it."""
    ours = _batch(batch.schema, [*lines, ("ran here", reason)])
    return pa.concat_batches([batch, ours])


def _batch(schema: pa.Schema, lines: Sequence[Line]) -> pa.RecordBatch:
    columns = [pa.array(values, field.type) for field, values in zip(schema, zip(*lines, strict=True), strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
