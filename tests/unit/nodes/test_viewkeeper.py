"""The keeper of materialized views: one that fails stops no other, and one that always fails costs little."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from engine.viewstatements import RefreshStatement, view_statement
from nodes.viewkeeper import PAUSE_ROUNDS_MAX, ViewKeeper
from storage.errors import NoSuchTable, RequestTooLarge
from storage.schema import Database, ViewDefinition
from tests.harness.tables import make_table

if TYPE_CHECKING:
    from nodes.backend import Backend, Principal, QueryRequest

VIEW = ViewDefinition(1, 9, "SELECT 1", 10)


class Views:
    """A Backend with a table and views ``a``, ``b`` and ``c``, of which some raise; and its Catalog."""

    def __init__(self, **errors: Exception) -> None:
        self.errors = errors
        self.asked: list[str] = []
        self.catalog = self
        made = [make_table(1), *(dataclasses.replace(make_table(2 + n), name=name, view=VIEW)
                                 for n, name in enumerate("abc"))]  # fmt: skip
        self.tables_by_id = {table.id: table for table in made}

    def databases(self) -> list[Database]:
        return [Database(1, "db")]

    def tables(self, database: str) -> list[Any]:
        return list(self.tables_by_id.values())

    async def query(self, request: QueryRequest, principal: Principal) -> Any:
        asked = view_statement(request.text)
        assert isinstance(asked, RefreshStatement)
        self.asked.append(asked.name)
        if asked.name in self.errors:
            raise self.errors[asked.name]

        async def aclose() -> None: ...

        return SimpleNamespace(aclose=aclose)

    def rounds(self, keeper: ViewKeeper, count: int) -> list[str]:
        """What is asked in each of so many rounds."""

        async def work() -> list[str]:
            found = []
            for _ in range(count):
                self.asked.clear()
                await keeper.refresh_all()
                found.append("".join(self.asked))
            return found

        return asyncio.run(work())


def test_one_that_fails_stops_no_other() -> None:
    backend = Views(a=NoSuchTable("gone"), b=ZeroDivisionError("a defect"))
    keeper = ViewKeeper(cast("Backend", backend), 1.0)
    assert backend.rounds(keeper, 2) == ["abc", "abc"]
    assert (keeper.counters.refreshes, keeper.counters.failed) == (2, 4)


def test_one_that_is_too_large_is_tried_ever_less_often() -> None:
    backend = Views(b=RequestTooLarge("a bucket"))
    keeper = ViewKeeper(cast("Backend", backend), 1.0)
    rounds = backend.rounds(keeper, 4 * PAUSE_ROUNDS_MAX)
    tried = [number for number, asked in enumerate(rounds) if "b" in asked]
    pauses = [after - before for before, after in itertools.pairwise(tried)]
    assert pauses[:7] == [2, 4, 8, 16, 32, PAUSE_ROUNDS_MAX, PAUSE_ROUNDS_MAX]
    assert all(asked.replace("b", "") == "ac" for asked in rounds)
    backend.errors.clear()
    assert sum("b" in asked for asked in backend.rounds(keeper, PAUSE_ROUNDS_MAX + 5)) > 2
