"""A store's worth of snapshots for engine tests: real DataFiles, tails, and the answer that they must give."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from engine.engine import Engine, EngineLimits
from storage.bundle import sorted_out, write_tails
from storage.datafile import encode_parquet, file_rows
from storage.deletes import PendingDelete
from storage.fold import fold
from storage.merge import without_deletes
from storage.objects import open_store
from storage.schema import (
    NO_ROWS,
    OP_COLUMN,
    OP_TYPE,
    Column,
    DataFile,
    Op,
    PartitionSnapshot,
    Role,
    Table,
    TableSnapshot,
    TailBatch,
    TypeKind,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from pathlib import Path

    from engine.stream import QueryStream
    from storage.deletes import RangeDelete

Row = dict[str, Any]
POOL_BYTES = 64 * 2**20


def make_table(
    name: str = "cpu", tags: Sequence[str] = ("host",), fields: dict[str, TypeKind] | None = None, id: int = 1
) -> Table:
    """A table whose storage names differ from the names that users see."""
    kinds = fields if fields is not None else {"usage": TypeKind.INT64}
    columns = [Column(0, "time", "time", Role.TIME, TypeKind.TIMESTAMP)]
    columns += [Column(1 + i, tag, f"c{1 + i}", Role.TAG, TypeKind.STRING) for i, tag in enumerate(tags)]
    columns += [Column(100 + i, f, f"c{100 + i}", Role.FIELD, kind) for i, (f, kind) in enumerate(kinds.items())]
    return Table(id, "u", 1, name, 1, tuple(columns), ())


def to_batch(table: Table, rows: Sequence[Row]) -> pa.RecordBatch:
    """Rows (time in ns, perhaps an `OP_COLUMN`) as a memtable's batch; columns that no row names are left out."""
    arrays = {}
    for column in table.columns:
        if any(column.name in row for row in rows):
            values = pa.array([row.get(column.name) for row in rows], column.plain_type)
            arrays[column.storage_name] = values.dictionary_encode() if column.role is Role.TAG else values
    if any(OP_COLUMN in row for row in rows):
        arrays[OP_COLUMN] = pa.array([row.get(OP_COLUMN) for row in rows], OP_TYPE)
    return pa.RecordBatch.from_pydict(arrays)


@dataclass
class Part:
    """One partition that is being filled."""

    id: int
    offset: int = 0
    files: list[DataFile] = field(default_factory=list)
    tail: list[TailBatch] = field(default_factory=list)
    history: list[TailBatch] = field(default_factory=list)
    pending: list[PendingDelete] = field(default_factory=list)
    changes_from: int = 0


class World:
    """Tables with files under a folder and tails; a SnapshotSource."""

    def __init__(self, folder: Path, *tables: Table) -> None:
        self.folder = folder
        self.tables = tables or (make_table(),)
        self.cutoff_ns: int | None = None
        self.hidden: dict[int, int] = {}
        """Cut-offs of single tables, by their ids."""
        self.cutoffs_ns: dict[int, int] = {}
        """Of partitions, by bytes."""
        self.asked: list[list[str]] = []
        self.sequence = 0
        self._parts: dict[tuple[int, int], Part] = {}
        self._names = 0

    @property
    def table(self) -> Table:
        return self.tables[0]

    def part(self, table: Table | None = None, partition: int = 0) -> Part:
        return self._parts.setdefault(((table or self.table).id, partition), Part(partition))

    def add_tail(self, rows: Sequence[Row], table: Table | None = None, partition: int = 0) -> None:
        """Append rows to the tail."""
        self.add_batch(to_batch(table or self.table, rows), table, partition)

    def add_batch(self, rows: pa.RecordBatch, table: Table | None = None, partition: int = 0) -> None:
        """Append rows that are columns already."""
        self._add(TailBatch(self.part(table, partition).offset, rows), self.part(table, partition))

    def add_delete(self, delete: RangeDelete, table: Table | None = None, partition: int = 0) -> None:
        """Append a range delete."""
        self._add(TailBatch(self.part(table, partition).offset, NO_ROWS, delete), self.part(table, partition))

    def _add(self, batch: TailBatch, part: Part) -> None:
        part.offset = batch.end
        part.tail.append(batch)
        part.history.append(batch)
        self.sequence += 1

    def checkpoint(self, table: Table | None = None, partition: int = 0) -> DataFile | None:
        """Move the tail into one DataFile, if a row is left of it; its deletes wait for the files before it."""
        table = table or self.table
        part = self.part(table, partition)
        rows = fold(table, part.tail)
        paths = frozenset(file.path for file in part.files)
        part.pending += [PendingDelete(b.first_offset, b.delete, paths) for b in part.tail if b.delete is not None]
        self.sequence += 1
        if not rows.num_rows:
            part.tail = []
            return None
        file = self._file(table, part, rows, part.tail[0].first_offset, part.offset - 1)
        part.tail = []
        return file

    def _file(self, table: Table, part: Part, rows: pa.RecordBatch, low: int, high: int) -> DataFile:
        self._names += 1
        path = f"data/{table.id}-{self._names}.parquet"
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        kept, kind = file_rows(table, rows)
        target.write_bytes(encode_parquet(table, kept))
        times = rows.column("time").view(pa.int64()).to_numpy()
        file = DataFile(
            path, table.id, part.id, low, high, low, high,
            int(times.min()), int(times.max()), rows.num_rows, target.stat().st_size, table.version,
            kind,
        )  # fmt: skip
        part.files.append(file)
        return file

    def compact(self, table: Table | None = None, partition: int = 0) -> None:
        """One DataFile of everything that is in files: deletes are carried out, and cannot be seen any more."""
        table = table or self.table
        part = self.part(table, partition)
        tail, part.tail = part.tail, []
        filed = [batch for batch in part.history if batch.end <= (tail[0].first_offset if tail else part.offset)]
        rows = without_deletes(fold(table, filed)) if filed else NO_ROWS
        part.files, part.pending = [], []
        part.changes_from = filed[-1].end if filed else 0
        if rows.num_rows:
            self._file(table, part, rows, filed[0].first_offset, filed[-1].end - 1)
        part.tail = tail
        self.sequence += 1

    def add_file(self, rows: Sequence[Row], table: Table | None = None, partition: int = 0) -> DataFile:
        """Rows that are in a DataFile already."""
        self.add_tail(rows, table, partition)
        file = self.checkpoint(table, partition)
        assert file is not None
        return file

    def bundle(self) -> list[DataFile]:
        """Move all tails into bundles, if they are small; their deletes wait for the files before them."""
        store = open_store(str(self.folder))
        tables = {table.id: table for table in self.tables}
        tails = {key: tuple(part.tail) for key, part in self._parts.items() if part.tail}
        small, large = sorted_out(tables.__getitem__, tails)
        assert not large, "one alone, or too many rows"
        made = write_tails(store, 1, 1, small)
        store.close()
        for part in self._parts.values():
            paths = frozenset(file.path for file in part.files)
            part.pending += [PendingDelete(b.first_offset, b.delete, paths) for b in part.tail if b.delete is not None]
            part.tail = []
        for file in made:
            self._parts[file.table_id, file.partition].files.append(file)
        self.sequence += 1
        return made

    async def snapshot(self, tables: Sequence[Table]) -> Sequence[TableSnapshot]:
        self.asked.append([table.name for table in tables])
        return [self.of(table) for table in tables]

    def of(self, table: Table) -> TableSnapshot:
        """The snapshot of one table now."""
        parts = tuple(
            PartitionSnapshot(
                p.id,
                (1, 1, self.sequence),
                tuple(p.files),
                tuple(p.tail),
                tuple(p.pending),
                p.changes_from,
                self.cutoffs_ns.get(p.id),
            )
            for (table_id, _), p in sorted(self._parts.items())
            if table_id == table.id
        )
        return TableSnapshot(table, parts, self.hidden.get(table.id, self.cutoff_ns))

    def expected(self, table: Table | None = None) -> list[Row]:
        """All rows, folded from the first write on, with the cut-off, by the users' names."""
        table = table or self.table
        found: list[Row] = []
        for (table_id, number), part in self._parts.items():
            if table_id == table.id and part.history:
                cutoffs = (self.cutoff_ns, self.cutoffs_ns.get(number))
                lowest = max((cutoff for cutoff in cutoffs if cutoff is not None), default=None)
                found += visible_rows(table, fold(table, part.history), lowest)
        return found

    def engine(self, **limits: Any) -> Engine:
        """An engine over this world."""
        chosen: dict[str, Any] = {"memory_bytes": POOL_BYTES, "query_seconds": 30.0} | limits
        return Engine(str(self.folder), EngineLimits(**chosen))

    async def start(self, engine: Engine, statement: str, **options: Any) -> QueryStream:
        """Start a statement over all tables."""
        return await engine.query(statement, database="db", revision=1, tables=self.tables, source=self, **options)

    async def rows(self, engine: Engine, statement: str, **options: Any) -> list[Row]:
        """A statement's rows, times in ns."""
        return [row async for batch in await self.start(engine, statement, **options) for row in to_rows(batch)]

    def ask(self, statement: str, limits: dict[str, Any] | None = None, **options: Any) -> list[Row]:
        """A statement's rows from an engine of its own."""
        found: list[Row] = self.run(lambda engine: self.rows(engine, statement, **options), **(limits or {}))
        return found

    def run(self, work: Callable[[Engine], Coroutine[Any, Any, Any]], **limits: Any) -> Any:
        """Run a coroutine with an engine that is closed afterwards."""

        async def main() -> Any:
            engine = self.engine(**limits)
            try:
                return await work(engine)
            finally:
                await engine.close()

        return asyncio.run(main())


def visible_rows(table: Table, folded: pa.RecordBatch, cutoff_ns: int | None) -> list[Row]:
    """Folded rows by the users' names, without NULLs, deleted ones, and what is below the cut-off."""
    names = {c.storage_name: c.name for c in table.columns}
    kept = [row for row in to_rows(folded) if row.get(OP_COLUMN) != Op.DELETE.code]
    rows = [{names[k]: v for k, v in row.items() if k in names} for row in kept]
    return [row for row in rows if cutoff_ns is None or row["time"] >= cutoff_ns]


def to_rows(batch: pa.RecordBatch) -> list[Row]:
    """A batch's rows without NULLs; timestamps as ns."""
    columns = {}
    for name, array in zip(batch.schema.names, batch.columns, strict=True):
        columns[name] = (array.view(pa.int64()) if pa.types.is_timestamp(array.type) else array).to_pylist()
    rows = zip(*columns.values(), strict=True)
    return [{k: v for k, v in zip(columns, row, strict=True) if v is not None} for row in rows]


def sorted_rows(rows: Sequence[Row]) -> list[Row]:
    """Rows in an order that does not depend on how they were read."""
    return sorted(rows, key=lambda row: sorted((k, str(v)) for k, v in row.items()))
