"""A table whose rows are puts: a row replaces the whole older row of its key, wherever both are (FORMAT F11)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from nodes.backend import ColumnSpec, EnsureTable, Principal, QueryRequest
from nodes.embedded import EmbeddedBackend
from nodes.settings_model import DataSettings, LogSettings, Settings
from storage.schema import Op, Role, TypeKind

if TYPE_CHECKING:
    from pathlib import Path

ANYONE = Principal()
TABLE = EnsureTable(
    "db",
    "t",
    [
        ColumnSpec("host", Role.TAG, TypeKind.STRING),
        ColumnSpec("rack", Role.TAG, TypeKind.STRING),
        ColumnSpec("a", Role.FIELD, TypeKind.INT64),
        ColumnSpec("b", Role.FIELD, TypeKind.STRING),
    ],
    default_op=Op.PUT,
)
ROWS = "SELECT a, b, host FROM t ORDER BY host, time"


async def ask(backend: EmbeddedBackend, statement: str) -> list[Any]:
    """The rows of a statement, or the count of one that writes."""
    result = await backend.query(QueryRequest("db", statement, may_write=True), ANYONE)
    return [tuple(row.values()) async for batch in result for row in batch.to_pylist()]


@pytest.mark.parametrize("compacts", [False, True])
def test_f11_a_row_replaces_the_whole_older_row_in_memory_in_files_and_after_a_start(
    tmp_path: Path, compacts: bool
) -> None:
    settings = Settings(data=DataSettings(dir=str(tmp_path)), log=LogSettings(shards=1))
    failures: list[BaseException] = []

    async def first() -> None:
        async with EmbeddedBackend(settings, settings.budgets(), failures.append) as backend:
            await backend.alter([TABLE], ANYONE)
            values = "('x', 1, 10, 'old'), ('y', 1, 20, 'old'), ('z', 1, 30, 'old')"
            await ask(backend, f"INSERT INTO t (host, time, a, b) VALUES {values}")
            await backend.checkpoint()
            await ask(backend, "INSERT INTO t (host, time, a) VALUES ('x', 1, 11)")
            assert await ask(backend, ROWS) == [(11, None, "x"), (20, "old", "y"), (30, "old", "z")]
            await backend.checkpoint()
            assert await ask(backend, "UPDATE t SET a = a + 1 WHERE b = 'old'") == [(2,)]
            assert await ask(backend, "DELETE FROM t WHERE a = 31") == [(1,)]
            await ask(backend, "INSERT INTO t (host, time, b) VALUES ('y', 1, 'new')")
            assert await ask(backend, ROWS) == [(11, None, "x"), (None, "new", "y")]
            await backend.checkpoint()
            if compacts:
                await backend.compact()
            assert await ask(backend, ROWS) == [(11, None, "x"), (None, "new", "y")]

    async def second() -> None:
        async with EmbeddedBackend(settings, settings.budgets(), failures.append) as backend:
            await ask(backend, "INSERT INTO t (host, time, a) VALUES ('z', 1, 7)")
            assert await ask(backend, ROWS) == [(11, None, "x"), (None, "new", "y"), (7, None, "z")]

    asyncio.run(first())
    asyncio.run(second())
    assert not failures
