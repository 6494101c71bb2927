"""Which files nobody can see any more (LOG L31, L36)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from storage.catalogstate import CatalogSnapshot
from storage.cutoffs import Cutoff
from storage.expiry import gone_files
from storage.schema import Database, DataFile
from tests.harness.tables import make_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from storage.shardstate import ShardState

HOUR = 3600 * 10**9
NOW = 100 * HOUR


def file(path: str, high: int, table_id: int = 1, low: int | None = None) -> DataFile:
    return DataFile(path, table_id, 1, 1, 1, 1, 1, high - HOUR if low is None else low, high, 10, 100, 1)


FILES = (file("old", NOW - 5 * HOUR), file("edge", NOW - 2 * HOUR), file("new", NOW))


def gone(
    retention_ns: int | None,
    cutoffs: Mapping[int, Cutoff],
    drops: Mapping[int, int] | None = None,
    known: bool = True,
    files: tuple[DataFile, ...] = FILES,
    before: tuple[DataFile, ...] | None = None,
    table_cutoffs: Mapping[tuple[int, int], Cutoff] | None = None,
    limit: int | None = None,
) -> list[str]:
    state = SimpleNamespace(
        partitions={(1, 1): SimpleNamespace(files=files), (2, 1): SimpleNamespace(files=())},
        cutoffs=cutoffs,
        table_cutoffs=table_cutoffs or {},
        drops=drops or {},
    )
    tables: dict[int, Any] = {1: make_table(1), 2: make_table(2)} if known else {}
    catalog = CatalogSnapshot(
        databases_by_id={1: Database(1, "db", retention_ns, retention_bytes=limit)}, tables_by_id=tables
    )
    changes = gone_files(cast("ShardState", state), catalog, {f.path for f in (files if before is None else before)})
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


def test_l36_a_partition_has_a_cutoff_by_bytes_of_its_own_that_holds_under_its_limit() -> None:
    own = {(1, 1): Cutoff(NOW - 2 * HOUR + 1, 0, 1000, 1)}
    assert gone(None, {}, table_cutoffs=own, limit=1000) == ["old", "edge"]
    assert gone(None, {}, table_cutoffs=own, limit=999) == ["old", "edge"]
    assert gone(None, {}, table_cutoffs=own, limit=1001) == [], "made greater since"
    assert gone(None, {}, table_cutoffs=own) == [], "taken away since"
    assert gone(None, {}, table_cutoffs={(1, 2): own[1, 1], (1, 0): own[1, 1]}, limit=1000) == [], "others'"
    assert gone(2 * HOUR, {1: RECORDED}, table_cutoffs=own, limit=1000) == ["old", "edge"], "the higher of both"


def test_l31_all_files_of_a_table_that_this_log_has_dropped() -> None:
    assert gone(None, {}, drops={1: 7}) == ["old", "edge", "new"]
    assert gone(None, {}, drops={2: 7}) == []


def test_l30_a_table_that_is_not_known_here_yet_keeps_its_files() -> None:
    assert gone(HOUR, {1: RECORDED}, known=False) == []


def test_l25_a_file_that_has_written_over_rows_of_an_older_one_stays_as_long_as_that() -> None:
    """A period that is made longer shows them again: then with the values that they had last."""
    wide = file("wide", NOW, low=NOW - 5 * HOUR)
    over, beside = file("over", NOW - 4 * HOUR), file("beside", NOW - 6 * HOUR)
    assert gone(HOUR, {1: RECORDED}, files=(wide, over, beside)) == ["beside"]
    assert gone(HOUR, {1: RECORDED}, files=(over, beside, wide)) == ["over", "beside"], "the older ones, not the newer"
    between = file("between", NOW - 4 * HOUR, low=NOW - 7 * HOUR)
    assert gone(HOUR, {1: RECORDED}, files=(wide, between, beside)) == [], "nor what is above one that stays for that"


def test_l36_a_file_that_has_come_since_the_catalog_was_proved_stays() -> None:
    """Its rows may have been written when the period was cleared already: then they were acknowledged to be kept."""
    assert gone(HOUR, {1: RECORDED}, before=FILES[1:]) == []
    assert gone(HOUR, {1: RECORDED}, before=FILES[:1]) == ["old"]
