"""Rows of an INSERT as Batches, cut into pieces that are sent again under one key while that may help."""

from __future__ import annotations

import dataclasses
import struct
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import pytest

from engine.changes import ChangeKind, RowChange
from engine.errors import InvalidStatement, QueryFailed
from nodes import insert as inserting
from nodes.backend import Batch, Principal
from nodes.insert import PIECE_BYTES, PIECE_ROWS, _pieces, insert, to_batch
from storage.errors import LogDamaged, NoSuchTable, StorageError, StoreUnavailable
from tests.harness.gateway import on_loop
from tests.harness.tables import make_table

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from nodes.backend import Backend
    from storage.schema import Table

TABLE = make_table()
WHO = Principal()


def rows(count: int = 1, **columns: Sequence[Any]) -> pa.RecordBatch:
    """Rows as the engine hands them out: strings as views, every column of the table in its order."""
    fields = {c.name: pa.string_view() if c.plain_type == pa.string() else c.plain_type for c in TABLE.columns}
    given = {name: pa.array(columns.get(name, [None] * count), kind) for name, kind in fields.items()}
    return pa.RecordBatch.from_pydict(given)


class Rows:
    """A statement's rows; fails at its end with ``error``."""

    def __init__(self, *batches: pa.RecordBatch, error: Exception | None = None) -> None:
        self.batches, self.error = batches, error
        self.is_closed = False
        self.schema = rows().schema

    async def __aiter__(self) -> AsyncIterator[pa.RecordBatch]:
        for batch in self.batches:
            yield batch
        if self.error is not None:
            raise self.error

    async def aclose(self) -> None:
        self.is_closed = True


class Written:
    """A Backend that keeps what is written, after it has raised ``errors``."""

    def __init__(self, *errors: StorageError) -> None:
        self.errors = list(errors)
        self.keys: list[str] = []
        self.batches: list[Batch] = []
        self.catalog = self

    def table(self, database: str, name: str) -> Any:
        return TABLE if name == TABLE.name else None

    async def refresh(self) -> Written:
        return self

    async def write(self, batches: Sequence[Batch], principal: Principal, *, idempotency_key: str = "") -> None:
        self.keys.append(idempotency_key)
        if self.errors:
            raise self.errors.pop(0)
        self.batches += batches


async def inserted(backend: Written, statement: Rows, target: str = TABLE.name) -> int:
    change = RowChange(ChangeKind.INSERT, target, TABLE.id)
    result = await insert(cast("Backend", backend), "db", change, statement, WHO)
    (batch,) = [batch async for batch in result]
    count: int = batch.column(0)[0].as_py()
    return count


def test_values_under_storage_names_and_absent_ones_left_out() -> None:
    given = rows(3, time=[5, None, 7], host=["a", "", None], région=[None] * 3, i=[1, 2, None], f=[None, None, 0.5])
    batch = to_batch(TABLE, given, 99).rows
    assert batch.schema.names == ["time", "host", "f", "i"]
    assert batch.column("time").cast(pa.int64()).to_pylist() == [5, 99, 7]
    assert batch.column("host").to_pylist() == ["a", None, None]
    assert batch.column("i").to_pylist() == [1, 2, None]
    assert [field.type for field in batch.schema][:2] == [pa.timestamp("ns"), pa.dictionary(pa.int32(), pa.string())]


@pytest.mark.parametrize("columns", [{}, {"i": [1, None]}])
def test_a_row_without_a_field_is_refused(columns: dict[str, list[int]]) -> None:
    with pytest.raises(InvalidStatement, match="one field at least"):
        to_batch(TABLE, rows(2, time=[1, 2], host=["a", "b"], **columns), 99)


class Recreated(Written):
    """The first of ``tables`` is dropped, and made again as the last, when ``writes`` pieces have been written.

    This node ``follows`` the Catalog, or hears of that when it asks. A dropped table refuses its rows.
    """

    def __init__(self, *tables: Table, writes: int = 0, follows: bool = False) -> None:
        super().__init__()
        self.tables, self.known, self.writes, self.follows = tables, tables[0], writes, follows

    def table(self, database: str, name: str) -> Table:
        return self.tables[-1] if self.follows and len(self.keys) >= self.writes else self.known

    async def refresh(self) -> Recreated:
        self.known = self.tables[0] if len(self.keys) < self.writes else self.tables[-1]
        return self

    async def write(self, batches: Sequence[Batch], principal: Principal, *, idempotency_key: str = "") -> None:
        if len(self.keys) >= self.writes and batches[0].table.id != self.tables[-1].id:
            raise NoSuchTable("dropped")
        await super().write(batches, principal, idempotency_key=idempotency_key)


PIECES = [rows(PIECE_ROWS, time=range(PIECE_ROWS), i=range(PIECE_ROWS))] * 2


@on_loop
async def test_l28_no_row_goes_to_the_next_table_of_that_name() -> None:
    for follows in (True, False):
        backend = Recreated(TABLE, make_table(2), writes=1, follows=follows)
        with pytest.raises(NoSuchTable, match="were written before"):
            await inserted(backend, Rows(*PIECES, *PIECES))
        assert {batch.table.id for batch in backend.batches} == {TABLE.id}


@on_loop
async def test_l29_a_node_that_knows_an_older_catalog_than_the_one_that_planned() -> None:
    older = dataclasses.replace(TABLE, columns=tuple(c for c in TABLE.columns if c.name != "u"))
    for known in (older, make_table(9)):
        backend = Recreated(known, TABLE)
        assert await inserted(backend, Rows(rows(1, time=[1], i=[1], u=[2]))) == 1
        assert [batch.table for batch in backend.batches] == [TABLE]
    with pytest.raises(NoSuchTable):
        await inserted(Recreated(older), Rows(rows(1, time=[1], i=[1])))


@on_loop
async def test_small_batches_are_gathered_and_large_ones_cut() -> None:
    backend, small = Written(), rows(100, time=range(100), i=range(100))
    assert await inserted(backend, Rows(*[small] * 20, rows(0))) == 2000
    assert [batch.rows.num_rows for batch in backend.batches] == [2000]
    backend = Written()
    many = rows(PIECE_ROWS + 5, time=range(PIECE_ROWS + 5), i=range(PIECE_ROWS + 5))
    assert await inserted(backend, Rows(many, small)) == PIECE_ROWS + 105
    assert max(batch.rows.num_rows for batch in backend.batches) <= PIECE_ROWS
    assert len(set(backend.keys)) == len(backend.keys), "each piece under a key of its own"
    backend = Written()
    wide = rows(64, time=range(64), s=["x" * (PIECE_BYTES // 16)] * 64)
    assert await inserted(backend, Rows(wide)) == 64
    assert max(batch.rows.nbytes for batch in backend.batches) <= 1.2 * PIECE_BYTES
    times = [t for batch in backend.batches for t in batch.rows.column("time").cast(pa.int64()).to_pylist()]
    assert times == list(range(64)), "every row once, in order"


@on_loop
async def test_pieces_are_cut_where_the_long_rows_are_and_before_a_shared_text_is_copied() -> None:
    backend, long = Written(), "x" * (PIECE_BYTES // 4)
    await inserted(backend, Rows(rows(4_000, time=range(4_000), s=[long] * 20 + ["y"] * 3_980)))
    assert [batch.rows.num_rows for batch in backend.batches] == [3] * 6 + [3_982]
    view = struct.pack("<i4sii", len(long), long[:4].encode(), 0, 0)  # as Arrow's format has it
    buffers = [None, pa.py_buffer(view * 3_000), pa.py_buffer(long.encode())]
    shared = pa.Array.from_buffers(pa.string_view(), 3_000, buffers)
    given = rows(3_000, time=range(3_000), i=range(3_000))
    given = given.set_column(given.schema.names.index("s"), "s", shared)
    before = pa.total_allocated_bytes()
    largest = max([(part.num_rows, pa.total_allocated_bytes() - before) async for part in _pieces(Rows(given))])
    assert largest[0] <= 4
    assert largest[1] < 6 * PIECE_BYTES, "6 GB by themselves"


@on_loop
async def test_no_rows_are_no_write() -> None:
    backend, statement = Written(), Rows()
    assert await inserted(backend, statement) == 0
    assert backend.keys == []
    assert statement.is_closed


def test_what_may_help_is_sent_again_under_the_same_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inserting, "RETRY_FIRST_SECONDS", 0.0)

    @on_loop
    async def run() -> None:
        backend = Written(StoreUnavailable("later"), StoreUnavailable("later"))
        assert await inserted(backend, Rows(rows(1, time=[1], i=[1]))) == 1
        assert len(backend.keys) == 3
        assert len(set(backend.keys)) == 1

    run()


def test_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inserting, "RETRY_SECONDS_MAX", 0.0)

    @on_loop
    async def run() -> None:
        with pytest.raises(StoreUnavailable):
            await inserted(Written(StoreUnavailable("later")), Rows(rows(1, time=[1], i=[1])))

    run()


@on_loop
async def test_an_error_says_how_much_was_written_before() -> None:
    many = rows(PIECE_ROWS, time=range(PIECE_ROWS), i=range(PIECE_ROWS))
    statement = Rows(many, many, error=QueryFailed("it broke"))
    with pytest.raises(QueryFailed, match=rf"it broke \({PIECE_ROWS} rows of the INSERT were written before\)"):
        await inserted(Written(), statement)
    assert statement.is_closed
    backend = Written(LogDamaged("torn"))
    with pytest.raises(LogDamaged, match=r"^torn$"):
        await inserted(backend, Rows(many))
    assert len(backend.keys) == 1, "what cannot help is not tried again"


@on_loop
async def test_a_table_that_was_dropped_meanwhile() -> None:
    with pytest.raises(NoSuchTable, match="'other' was dropped"):
        await inserted(Written(), Rows(rows(1, time=[1], i=[1])), "other")
