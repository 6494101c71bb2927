"""Which files nobody can see any more (LOG L31, L36)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from storage.catalogstate import CatalogSnapshot
from storage.expiry import gone_files
from storage.schema import Database, DataFile
from storage.shardstate import Cutoff, ShardState
from tests.harness.tables import make_table

if TYPE_CHECKING:
    from collections.abc import Mapping

HOUR = 3600 * 10**9
NOW = 100 * HOUR


def file(path: str, high: int, table_id: int = 1) -> DataFile:
    return DataFile(path, table_id, 1, 1, 1, 1, 1, high - HOUR, high, 10, 100, 1)


FILES = (file("old", NOW - 5 * HOUR), file("edge", NOW - 2 * HOUR), file("new", NOW))


def gone(
    retention_ns: int | None, cutoffs: Mapping[int, Cutoff], drops: Mapping[int, int] | None = None, known: bool = True
) -> list[str]:
    state = SimpleNamespace(
        partitions={(1, 1): SimpleNamespace(files=FILES), (2, 1): SimpleNamespace(files=())},
        cutoffs=cutoffs,
        drops=drops or {},
    )
    tables: dict[int, Any] = {1: make_table(1), 2: make_table(2)} if known else {}
    catalog = CatalogSnapshot(databases_by_id={1: Database(1, "db", retention_ns)}, tables_by_id=tables)
    changes = gone_files(cast("ShardState", state), catalog)
    assert all(change.added == () for change in changes)
    return [f.path for change in changes for f in change.removed]


RECORDED = Cutoff(NOW - 2 * HOUR, NOW // 10**6)


@pytest.mark.parametrize(
    ("retention_ns", "cutoffs", "expected"),
    [
        (2 * HOUR, {1: RECORDED}, ["old"]),
        (HOUR, {1: RECORDED}, ["old"]),
        (6 * HOUR, {1: RECORDED}, []),
        (None, {1: RECORDED}, []),
        (2 * HOUR, {}, []),
        (2 * HOUR, {2: RECORDED}, []),
    ],
    ids=["below", "shorter since: only what was recorded", "longer since", "cleared", "not recorded", "another's"],
)
def test_l36_only_whole_files_below_the_recorded_cutoff(
    retention_ns: int | None, cutoffs: dict[int, Cutoff], expected: list[str]
) -> None:
    assert gone(retention_ns, cutoffs) == expected


def test_l31_all_files_of_a_table_that_this_log_has_dropped() -> None:
    assert gone(None, {}, drops={1: 7}) == ["old", "edge", "new"]
    assert gone(None, {}, drops={2: 7}) == []


def test_l30_a_table_that_is_not_known_here_yet_keeps_its_files() -> None:
    assert gone(HOUR, {1: RECORDED}, known=False) == []
