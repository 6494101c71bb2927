"""What rows are kept by, which recorded cut-offs hold, and where partitions are cut by bytes (LOG L36)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.catalogstate import CatalogSnapshot
from storage.cutoffs import KEEP, Cutoff, Cutoffs, Limit, cut, limit_of, period_of, shares, table_snapshot
from storage.schema import Database, DataFile, PartitionSnapshot
from tests.harness.tables import make_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from storage.schema import Table

MS = 10**6
KEPT = Database(1, "db", 60 * MS, retention_bytes=1000)
FREE = Database(1, "db")


def table(number: int = 1, age: int | None = None, size: int | None = None, logs: Sequence[int] = (1,)) -> Table:
    made = replace(make_table(number, partitions=len(logs)), retention_ns=age, retention_bytes=size)
    placed = tuple(replace(part, log_id=log) for part, log in zip(made.partitions, logs, strict=True))
    return replace(made, partitions=tuple(replace(p, id=10 * number + i) for i, p in enumerate(placed, 1)))


def test_what_a_table_says_replaces_what_its_database_says_each_by_itself() -> None:
    assert (period_of(table(), KEPT), limit_of(table(), KEPT)) == (60 * MS, Limit(1, 1000))
    assert (period_of(table(), FREE), limit_of(table(), FREE)) == (None, None)
    own = table(age=5, size=7)
    for database in (KEPT, FREE):
        assert (period_of(own, database), limit_of(own, database)) == (5, Limit(0, 7))
    kept = table(age=KEEP, size=KEEP)
    assert (period_of(kept, KEPT), limit_of(kept, KEPT)) == (None, None)
    assert (period_of(table(age=KEEP), KEPT), limit_of(table(age=KEEP), KEPT)) == (None, Limit(1, 1000))


def test_by_age_a_table_has_its_own_cutoff_or_its_databases() -> None:
    recorded = Cutoffs({1: Cutoff(5 * MS, 100)}, {(1, 0): Cutoff(8 * MS, 100)})
    assert recorded.by_age(table(), KEPT) == 5 * MS
    assert recorded.by_age(table(), replace(KEPT, retention_ns=97 * MS)) == 3 * MS, "longer since"
    assert recorded.by_age(table(), FREE) is None, "cleared since"
    assert recorded.by_age(table(age=60 * MS), FREE) == 8 * MS
    assert recorded.by_age(table(age=98 * MS), KEPT) == 2 * MS
    assert recorded.by_age(table(age=KEEP), KEPT) is None
    assert recorded.by_age(table(2, age=60 * MS), KEPT) is None, "nothing of it is recorded yet"


def test_by_bytes_a_cutoff_holds_under_its_own_limit_or_a_smaller_one_only() -> None:
    recorded = Cutoffs({}, {(1, 11): Cutoff(5, 100, 1000), (2, 21): Cutoff(6, 100, 1000, 1)})
    assert [recorded.by_bytes(table(size=size), FREE, 11) for size in (1000, 10, 1001, KEEP, None)] == [
        5, 5, None, None, None,
    ]  # fmt: skip
    assert recorded.by_bytes(table(size=1000), FREE, 12) is None, "another partition"
    assert recorded.by_bytes(table(), KEPT, 11) is None, "told under the table's own limit, not the database's"
    assert recorded.by_bytes(table(2), KEPT, 21) == 6
    assert recorded.by_bytes(table(2), replace(KEPT, id=2), 21) is None
    assert recorded.by_bytes(table(2, size=10), KEPT, 21) is None


def test_each_partition_of_a_snapshot_has_its_own_and_the_table_the_highest_by_age() -> None:
    catalog = CatalogSnapshot(databases_by_id={1: KEPT})
    of = [PartitionSnapshot(number, (log, 1, 1), (), ()) for log, number in ((1, 11), (1, 12), (2, 13))]
    first = Cutoffs({1: Cutoff(5 * MS, 100)}, {(1, 12): Cutoff(9 * MS, 1, 1000, 1)})
    second = Cutoffs({1: Cutoff(7 * MS, 100)}, {(1, 12): Cutoff(1, 1, 1000, 1)})
    found = table_snapshot(table(logs=(1, 1, 2)), catalog, [(of[:2], first), (of[2:], second)])
    assert found.cutoff_ns == 7 * MS
    assert [part.cutoff_ns for part in found.partitions] == [None, 9 * MS, None]


def catalog_of(database: Database, *tables: Table) -> CatalogSnapshot:
    return CatalogSnapshot(
        databases_by_id={1: database}, names={database.name: database}, tables_by_id={t.id: t for t in tables},
        table_names={1: {t.name: t for t in tables}},
    )  # fmt: skip


def test_a_tables_limit_is_shared_by_its_partitions_a_databases_by_its_logs() -> None:
    own, one, two = table(1, size=90, logs=(1, 1, 2)), table(2, logs=(1, 2, 3)), table(3, logs=(1,))
    catalog = catalog_of(KEPT, own, one, two, table(4, size=KEEP, logs=(4,)))
    assert shares(catalog)[1] == [
        (Limit(0, 90), 30, ((1, 11),)), (Limit(0, 90), 30, ((1, 12),)), (Limit(1, 1000), 333, ((2, 21), (3, 31))),
    ]  # fmt: skip
    assert shares(catalog)[2] == [(Limit(0, 90), 30, ((1, 13),)), (Limit(1, 1000), 333, ((2, 22),))]
    assert 4 not in shares(catalog)
    assert shares(catalog_of(FREE, one, two)) == {}


def file(low: int, high: int, size: int = 10) -> DataFile:
    return DataFile(f"{low}-{high}", 1, 1, 1, 1, 1, 1, low, high, 1, size, 1)


@pytest.mark.parametrize(
    ("files", "room", "expected"),
    [
        ([file(0, 9), file(10, 19), file(20, 29)], 30, None),
        ([file(0, 9), file(10, 19), file(20, 29)], 29, 10),
        ([file(0, 9), file(10, 19), file(20, 29)], 10, 20),
        ([file(0, 9), file(10, 19), file(20, 29)], 1, 20),
        ([file(0, 9, 50)], 10, None),
        ([file(0, 29), file(10, 19), file(0, 9)], 20, 10),
        ([file(0, 9), file(20, 29, 50), file(10, 19)], 50, 20),
        ([file(0, 9), file(5, 9)], 5, None),
        ([], 0, None),
    ],
    ids=["all fit", "the oldest", "two", "never the newest", "never the only one", "one that reaches far down stays",
         "no gap is left", "of two that end at once both", "none"],
)  # fmt: skip
def test_the_oldest_files_go_until_the_rest_fits(files: list[DataFile], room: int, expected: int | None) -> None:
    assert cut({(1, 1): files}, room) == ({} if expected is None else {(1, 1): expected})


def test_of_several_partitions_the_oldest_files_go_and_none_loses_its_newest() -> None:
    files = {
        (1, 1): [file(0, 9), file(10, 19), file(30, 39)],
        (2, 1): [file(0, 5)],
        (3, 1): [file(12, 15), file(40, 49)],
    }
    assert cut(files, 50) == {(1, 1): 10}
    assert cut(files, 40) == {(1, 1): 10, (3, 1): 16}
    assert cut(files, 30) == {(1, 1): 20, (3, 1): 16}
    assert cut(files, 0) == {(1, 1): 20, (3, 1): 16}


FILES = st.lists(
    st.builds(lambda low, length, size: file(low, low + length, size), st.integers(0, 50), st.integers(0, 30),
              st.integers(1, 20)),
    max_size=8,
)  # fmt: skip


def left(files: Mapping[tuple[int, int], Sequence[DataFile]], cuts: Mapping[tuple[int, int], int]) -> list[DataFile]:
    return [f for key, found in files.items() for f in found if f.time_high >= cuts.get(key, 0)]


@given(st.dictionaries(st.tuples(st.integers(1, 3), st.just(1)), FILES, max_size=3), st.integers(0, 120))
def test_what_stays_fits_and_is_the_newest_and_to_cut_again_changes_nothing(
    files: dict[tuple[int, int], list[DataFile]], room: int
) -> None:
    cuts = cut(files, room)
    kept = left(files, cuts)
    newest = [f for found in files.values() for f in found if f.time_high == max(g.time_high for g in found)]
    assert sum(f.bytes for f in kept) <= max(room, sum(f.bytes for f in newest))
    assert all(f in kept for f in newest), "nothing is emptied"
    rest = [f.time_high for f in kept if f not in newest]
    gone = [f.time_high for key, found in files.items() for f in found if f.time_high < cuts.get(key, 0)]
    assert not rest or not gone or min(rest) > max(gone), "the oldest go first"
    for key, time_ns in cuts.items():
        assert time_ns - 1 in [f.time_high for f in files[key]], "no higher than the files that go"
    again = {key: [f for f in found if f in kept] for key, found in files.items()}
    for key, time_ns in cut(again, room).items():
        assert time_ns <= cuts.get(key, 0)
    assert cut(files, room + 5).keys() <= cuts.keys()
