"""Several outcomes as one: what may stand is never called failed."""

from __future__ import annotations

import asyncio

import pytest

from nodes.outcomes import all_or_worst
from storage.errors import NoSuchTable, OutcomeUnknown, StorageError, StoreUnavailable


async def _fail(error: Exception) -> None:
    raise error


async def _succeed() -> None:
    return


def gone(*tables: int) -> NoSuchTable:
    error = NoSuchTable("gone")
    error.tables = frozenset(tables)
    return error


def outcome(*errors: Exception | None) -> BaseException:
    async def main() -> None:
        await all_or_worst([_succeed() if error is None else _fail(error) for error in errors])

    with pytest.raises(StorageError) as caught:
        asyncio.run(main())
    return caught.value


def test_nothing_is_raised_when_all_succeed() -> None:
    asyncio.run(all_or_worst([_succeed(), _succeed()]))


def test_unknown_says_most() -> None:
    assert type(outcome(StoreUnavailable("down"), OutcomeUnknown("?"), gone(1))) is OutcomeUnknown


def test_a_failure_of_all_rows_is_not_hidden_by_one_of_some_tables() -> None:
    error = outcome(gone(1), StoreUnavailable("down"))
    assert type(error) is StoreUnavailable
    assert not error.tables


def test_failures_of_tables_are_joined() -> None:
    error = outcome(gone(1), None, gone(2, 3))
    assert isinstance(error, NoSuchTable)
    assert error.tables == {1, 2, 3}


def test_all_run_to_their_end() -> None:
    ended: list[int] = []

    async def slow(number: int) -> None:
        await asyncio.sleep(0)
        ended.append(number)

    async def main() -> None:
        await all_or_worst([_fail(StoreUnavailable("down")), slow(1), slow(2)])

    with pytest.raises(StoreUnavailable):
        asyncio.run(main())
    assert ended == [1, 2]
