"""The Catalog: changes to effects to snapshots, and the Log they come back from (LOG L28, L31, FORMAT F19-F23)."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.catalogplan import STORAGE_NAME_CHARS_MAX, drop_blocks, drop_targets, plan
from storage.catalogstate import (
    HASH_END,
    CatalogLimits,
    CatalogSnapshot,
    CatalogState,
    Effect,
    apply_effects,
    table_effect,
)
from storage.changes import (
    Change,
    ColumnSpec,
    CreateDatabase,
    CreateView,
    DropDatabase,
    DropTable,
    EnsureTable,
    FinishDrop,
    SetRetention,
    SetRetentionBytes,
)
from storage.checkpoint import Section, section_entry
from storage.entries import record_entry
from storage.errors import (
    AlreadyExists,
    CorruptObject,
    InvalidName,
    LimitExceeded,
    NoSuchDatabase,
    NoSuchTable,
    SchemaConflict,
    StorageError,
    TableDropping,
    TableInUse,
    UnsupportedFormat,
    ViewNotWritable,
)
from storage.frames import Entry, EntryKind, Header, LogObject, ObjectKind, decode_object, encode_object
from storage.schema import RESERVED_PREFIX, Op, Role, TypeKind, ViewDefinition

STAMP = "20260102T030405"
NO_LIMITS = CatalogLimits()
TAG, FIELD = Role.TAG, Role.FIELD
BASE = apply_effects(CatalogSnapshot(), [{"do": "logs", "ids": [1, 2, 3]}], 1)


def header(sequence: int, kind: ObjectKind = ObjectKind.DATA) -> Header:
    return Header(kind, b"s" * 16, 0, sequence, 1, b"n" * 16, b"o" * 16, 0, 1, 5)


def tag(name: str) -> ColumnSpec:
    return ColumnSpec(name, TAG, TypeKind.STRING)


def field(name: str, kind: TypeKind = TypeKind.FLOAT64) -> ColumnSpec:
    return ColumnSpec(name, FIELD, kind)


def after(base: CatalogSnapshot, *changes: Change | FinishDrop, limits: CatalogLimits = NO_LIMITS) -> CatalogSnapshot:
    return apply_effects(base, plan(base, changes, limits, STAMP), base.revision + 1)


def dropped(base: CatalogSnapshot, *changes: Change) -> CatalogSnapshot:
    """After ``changes`` and the end of every drop: each shard has its record."""
    base = after(base, *changes)
    return after(base, *(FinishDrop(t.id) for t in base.tables_by_id.values() if t.dropping))


def columns_of(base: CatalogSnapshot, database: str, table: str) -> dict[str, tuple[int, str]]:
    found = base.table(database, table)
    assert found is not None
    return {c.name: (c.id, c.storage_name) for c in found.columns}


class Log:
    """The Catalog's Log without a store: each change is one object of one record."""

    def __init__(self) -> None:
        self.state = CatalogState()
        self.objects: list[LogObject] = []
        self.commit([{"do": "format", "version": 1}, {"do": "logs", "ids": [1, 2, 3]}])

    def commit(self, effects: list[Effect]) -> None:
        record = {"revision": self.state.snapshot.revision + 1, "effects": effects}
        obj = reread(len(self.objects) + 2, [record_entry(EntryKind.RECORD, record)])
        self.state.apply(obj)
        self.objects.append(obj)


def reread(sequence: int, entries: list[Entry], kind: ObjectKind = ObjectKind.DATA) -> LogObject:
    return decode_object(b"".join(encode_object(header(sequence, kind), entries)), "here")


# -- histories ---------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "A", "b", "a b", "b/..", "é"])
COLUMNS = st.sampled_from(
    ["x", "X", "x!", "x?", "x_", "_x", "?runnel_offset", "_RUNNEL_OFFSET", "x_3", "x_4", "Time", "é"]
)
KINDS = st.sampled_from([TypeKind.STRING, TypeKind.INT64])
SPECS = st.builds(ColumnSpec, COLUMNS, st.sampled_from([TAG, FIELD]), KINDS)
CHANGES = st.one_of(
    st.builds(CreateDatabase, NAMES, st.none() | st.integers(1, 9), st.booleans()),
    st.builds(SetRetention, NAMES, st.none() | st.integers(1, 9), st.just("") | NAMES),
    st.builds(SetRetentionBytes, NAMES, st.none() | st.integers(1, 9), st.just("") | NAMES),
    st.builds(DropDatabase, NAMES),
    st.builds(EnsureTable, NAMES, NAMES, st.lists(SPECS, max_size=4), st.booleans(), st.booleans()),
    st.builds(
        CreateView,
        NAMES,
        NAMES,
        st.integers(1, 6),
        st.just("SELECT"),
        st.just(60),
        st.just(0),
        st.lists(SPECS, max_size=4),
        st.booleans(),
    ),
    st.builds(DropTable, NAMES, NAMES),
    st.builds(FinishDrop, st.integers(1, 6)),
)


def check_additive(before: CatalogSnapshot, now: CatalogSnapshot) -> None:
    """F19: whatever had an id keeps it, its type and its storage name; nothing is ever used again."""
    for identity, old in before.tables_by_id.items():
        new = now.tables_by_id[identity]
        assert new.uuid == old.uuid
        assert new.database_id == old.database_id
        assert new.partitions == old.partitions
        assert {c.id: c for c in old.columns}.items() <= {c.id: c for c in new.columns}.items()
        kept = dataclasses.replace(old, retention_ns=new.retention_ns, retention_bytes=new.retention_bytes)
        assert (new.version > old.version) == (new != kept), "it counts schemas, and is not of retention"
        assert old.deleted <= new.deleted
    assert before.databases_by_id.keys() <= now.databases_by_id.keys()
    assert all(t >= before.next_table for t in now.tables_by_id.keys() - before.tables_by_id.keys())
    assert all(d >= before.next_database for d in now.databases_by_id.keys() - before.databases_by_id.keys())


def check_whole(now: CatalogSnapshot) -> None:
    for table in now.tables_by_id.values():
        stored = [c.storage_name for c in table.columns]
        assert len({name.lower() for name in stored}) == len(stored)
        assert not any(name.lower().startswith(RESERVED_PREFIX) for name in stored)
        assert all(c.isascii() and (c.isalnum() or c in "_.-") for name in stored for c in name)
        assert len({c.id for c in table.columns}) == len({c.name for c in table.columns}) == len(table.columns)
        roles = [c.role for c in table.columns]
        assert roles == sorted(roles, key=[Role.TIME, TAG, FIELD].index)
        bounds = [(p.hash_low, p.hash_high) for p in table.partitions]
        assert (bounds[0][0], bounds[-1][1]) == (0, HASH_END)
        assert all(a[1] == b[0] for a, b in itertools.pairwise(bounds))
    partitions = [p.id for t in now.tables_by_id.values() for p in t.partitions]
    assert len(set(partitions)) == len(partitions)
    uuids = [t.uuid for t in now.tables_by_id.values()]
    assert len(set(uuids)) == len(uuids)


@given(st.lists(st.lists(CHANGES, min_size=1, max_size=3), max_size=15), st.integers(1, 3), st.integers(0, 15))
@settings(deadline=None, max_examples=150)
def test_any_history_is_additive_and_comes_back(
    history: list[list[Change | FinishDrop]], partitions: int, checkpoint_at: int
) -> None:
    log = Log()
    limits = CatalogLimits(partitions_default=partitions)
    sections: tuple[Entry, ...] = ()
    covered = 0
    for number, changes in enumerate(history):
        before = log.state.snapshot
        if number == checkpoint_at:
            sections, covered = log.state.sections(), len(log.objects)
        try:
            effects = plan(before, changes, limits, STAMP)
        except StorageError:
            assert log.state.snapshot == before
            continue
        if effects:
            log.commit(effects)
        assert log.state.snapshot.revision == before.revision + bool(effects)
        check_additive(before, log.state.snapshot)
        check_whole(log.state.snapshot)
    again = CatalogState()
    again.load(reread(99, list(sections), ObjectKind.CHECKPOINT) if sections else None)
    for obj in log.objects[covered:]:
        again.apply(obj)
    assert again.snapshot == log.state.snapshot
    assert (again.position, again.k) == (log.state.position, covered + 1 if sections else 0)
    assert again.objects_above_k == len(log.objects) - covered


def test_what_is_so_already_changes_nothing() -> None:
    base = after(BASE, CreateDatabase("d", 5), EnsureTable("d", "t", [tag("a"), field("f")]))
    again: list[Change] = [
        CreateDatabase("d", exist_ok=True), SetRetention("d", 5), EnsureTable("d", "t", [field("f"), tag("a")]),
        EnsureTable("d", "t"), SetRetention("d", None, "t"), SetRetentionBytes("d", None),
        SetRetentionBytes("d", None, "t"),
    ]  # fmt: skip
    assert plan(base, again, NO_LIMITS, STAMP) == []


def test_what_is_kept_stands_in_effects_only_where_it_says_something() -> None:
    """So that stores without it stay as they are, and an older version refuses what it does not know."""
    base = after(BASE, CreateDatabase("d", 5), EnsureTable("d", "t", [tag("a")]))

    def effect(*changes: Change) -> dict[str, Any]:
        (only,) = plan(base, changes, NO_LIMITS, STAMP)
        keys = ("retention", "retention_bytes")
        assert apply_effects(base, [only], 9).revision == 9
        return {key: only[key] for key in keys if key in only}

    assert effect(SetRetention("d", 7)) == {"retention": 7}
    assert effect(SetRetentionBytes("d", 8)) == {"retention": 5, "retention_bytes": 8}
    assert effect(EnsureTable("d", "u")) == {}
    assert effect(SetRetention("d", 0, "t")) == {"retention": 0}
    assert effect(SetRetentionBytes("d", 0, "t")) == {"retention_bytes": 0}
    both = after(base, SetRetention("d", 7, "t"), SetRetentionBytes("d", 8, "t"), EnsureTable("d", "t", [tag("b")]))
    table = both.table("d", "t")
    assert table is not None
    assert (table.retention_ns, table.retention_bytes, len(table.columns)) == (7, 8, 3), (
        "new columns change nothing of it"
    )
    assert list(both.shares) == [table.partitions[0].log_id]
    assert after(both, SetRetentionBytes("d", None, "t")).shares == {}
    assert len(after(both, SetRetentionBytes("d", 1), EnsureTable("d", "u")).shares) == 2


def test_l31_retention_of_what_is_not_there_or_goes_is_refused() -> None:
    base = after(BASE, CreateDatabase("d"), EnsureTable("d", "t"), EnsureTable("d", "u"))
    going = after(base, DropTable("d", "t"))
    for change in (SetRetention("d", 1, "t"), SetRetentionBytes("d", 1, "t")):
        with pytest.raises(TableDropping):
            plan(going, [change], NO_LIMITS, STAMP)
        assert drop_blocks(going, [change]) == {table.id for table in going.tables("d") if table.dropping}
        assert drop_blocks(going, [dataclasses.replace(change, table="")]) == set()
        with pytest.raises(NoSuchTable):
            plan(base, [dataclasses.replace(change, table="x")], NO_LIMITS, STAMP)
        with pytest.raises(NoSuchDatabase):
            plan(base, [dataclasses.replace(change, database="x")], NO_LIMITS, STAMP)


def test_the_same_change_twice_in_one_list_is_made_once() -> None:
    one = EnsureTable("d", "t", [tag("a")])
    more = EnsureTable("d", "t", [field("f")])
    base = after(BASE, one, more, more, one, more)
    assert [c.name for c in base.tables("d")[0].columns] == ["time", "a", "f"]
    assert len(base.tables_by_id) == 1
    check_whole(base)


def test_f11_a_table_keeps_the_default_op_that_it_was_made_with() -> None:
    base = after(BASE, EnsureTable("d", "t", [field("f")], default_op=Op.PUT), EnsureTable("d", "u"))
    base = after(base, EnsureTable("d", "t", [field("g")]), EnsureTable("d", "u", default_op=Op.PATCH))
    assert {table.name: table.default_op for table in base.tables("d")} == {"t": Op.PUT, "u": Op.PATCH}
    with pytest.raises(SchemaConflict, match="a put, not a patch"):
        plan(base, [EnsureTable("d", "t", default_op=Op.PATCH)], NO_LIMITS, STAMP)


# -- all or nothing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (EnsureTable("d", "t", [field("new"), tag("f")]), SchemaConflict),
        (EnsureTable("d", "t", [field("new"), field("f", TypeKind.INT64)]), SchemaConflict),
        (EnsureTable("d", "t", [field("new"), field("a")]), SchemaConflict),
        (EnsureTable("d", "t", [field("time", TypeKind.TIMESTAMP)]), SchemaConflict),
        (EnsureTable("d", "t", [field("n"), tag("n")]), SchemaConflict),
        (EnsureTable("d", "t", [field("_runnel_offset")]), InvalidName),
        (EnsureTable("d", "t", [field("")]), InvalidName),
        (EnsureTable("d", "t", [field("x" * 65_537)]), InvalidName),
        (EnsureTable("d", "t", [field("\ud800")]), InvalidName),
        (EnsureTable("d", "t", [field("a\x00b")]), InvalidName),
        (EnsureTable("d", "a\x00b"), InvalidName),
        (EnsureTable("d", ""), InvalidName),
        (EnsureTable("d", "_runnel_x"), InvalidName),
        (EnsureTable("d", "t", exist_ok=False), AlreadyExists),
        (EnsureTable("d", "t", [field("new")], default_op=Op.PUT), SchemaConflict),
        (EnsureTable("e", "t", create_database=False), NoSuchDatabase),
        (CreateDatabase("d"), AlreadyExists),
        (CreateDatabase(""), InvalidName),
        (CreateDatabase("_runnel_d"), InvalidName),
        (SetRetention("e", 1), NoSuchDatabase),
        (DropDatabase("e"), NoSuchDatabase),
        (DropTable("e", "t"), NoSuchDatabase),
        (DropTable("d", "u"), NoSuchTable),
    ],
)
def test_a_refused_change_and_those_beside_it_change_nothing(bad: Change, error: type[Exception]) -> None:
    base = after(BASE, EnsureTable("d", "t", [tag("a"), field("f")]))
    kept = dataclasses.replace(base)
    with pytest.raises(error):
        plan(base, [CreateDatabase("fresh"), bad, DropDatabase("d")], NO_LIMITS, STAMP)
    assert base == kept


def test_limits() -> None:
    limits = CatalogLimits(databases_max=1, tables_max=1, columns_max=2)
    base = after(BASE, EnsureTable("d", "t", [tag("a"), field("f")]), limits=limits)
    for change, words in (
        (CreateDatabase("e"), "limit of 1 databases"),
        (EnsureTable("e", "t"), "limit of 1 databases"),
        (EnsureTable("d", "u"), "limit of 1 tables"),
        (EnsureTable("d", "t", [field("g")]), "columns per table limit of 2"),
    ):
        with pytest.raises(LimitExceeded, match=words):
            plan(base, [change], limits, STAMP)
    with pytest.raises(LimitExceeded):  # L31: what is being dropped still counts
        after(base, DropTable("d", "t"), EnsureTable("d", "u"), limits=limits)
    freed = after(dropped(base, DropTable("d", "t")), EnsureTable("d", "u"), limits=limits)
    assert [t.name for t in freed.tables("d")] == ["u"]
    freed = after(dropped(base, DropDatabase("d")), EnsureTable("e", "u"), limits=limits)
    assert freed.table("e", "u") is not None


# -- names -------------------------------------------------------------------------------------------------


def test_f19_a_dropped_name_is_free_and_what_had_it_keeps_its_id() -> None:
    base = after(BASE, EnsureTable("d", "t", [tag("a")]))
    again = after(dropped(base, DropTable("d", "t")), EnsureTable("d", "t", [field("a")]))
    old, new = again.tables("d", deleted=True)
    assert (old.name, old.deleted, old.id) == (f"t-{STAMP}", True, 1)
    assert (new.name, new.deleted, new.id) == ("t", False, 2)
    assert again.table("d", f"t-{STAMP}") is None
    assert {p.id for p in old.partitions}.isdisjoint(p.id for p in new.partitions)
    third = dropped(again, DropTable("d", "t"))
    assert sorted(t.name for t in third.tables("d", deleted=True)) == [f"t-{STAMP}", f"t-{STAMP}-2"]


def test_f19_a_dropped_database_takes_its_tables_with_it() -> None:
    base = after(BASE, EnsureTable("d", "t"))
    gone = dropped(base, DropDatabase("d"))
    assert (gone.database("d"), gone.table("d", "t"), gone.tables("d")) == (None, None, [])
    assert all(table.deleted for table in gone.tables_by_id.values())
    again = after(gone, EnsureTable("d", "t"))
    assert [d.id for d in again.databases(deleted=True)] == [1, 2]
    assert [d.name for d in again.databases()] == ["d"]
    table = again.table("d", "t")
    assert table is not None
    assert (table.id, table.database_id) == (2, 2)
    twice = dropped(again, DropDatabase("d"))
    assert sorted(d.name for d in twice.databases(deleted=True)) == [f"d-{STAMP}", f"d-{STAMP}-2"]


def test_l31_while_a_table_is_dropped_its_name_is_bound_and_create_waits() -> None:
    base = after(BASE, EnsureTable("d", "t", [tag("a")]), EnsureTable("d", "u"))
    begun = after(base, DropTable("d", "t"))
    table = begun.table("d", "t")
    assert table is not None
    assert (table.id, table.dropping, table.deleted) == (1, begun.revision, False)
    for change in (EnsureTable("d", "t"), EnsureTable("d", "t", [field("b")]), EnsureTable("d", "t", exist_ok=False)):
        with pytest.raises(TableDropping) as caught:
            plan(begun, [change], NO_LIMITS, STAMP)
        assert caught.value.retriable
    assert plan(begun, [DropTable("d", "t")], NO_LIMITS, STAMP) == [], "it has begun"
    after(begun, EnsureTable("d", "u", [field("x")]))
    ended = after(begun, FinishDrop(1))
    assert (ended.table("d", "t"), ended.tables_by_id[1].dropping) == (None, 0)
    for again in (FinishDrop(1), FinishDrop(2), FinishDrop(77)):
        assert plan(ended, [again], NO_LIMITS, STAMP) == [], "L31: idempotent by the table's id"
    with pytest.raises(NoSuchTable):
        plan(ended, [DropTable("d", "t")], NO_LIMITS, STAMP)


def test_l31_a_database_is_dropped_with_the_last_of_its_tables() -> None:
    base = after(BASE, EnsureTable("d", "t"), EnsureTable("d", "u"), EnsureTable("e", "t"))
    begun = after(base, DropDatabase("d"))
    assert [(t.name, t.dropping) for t in begun.tables("d")] == [("t", begun.revision), ("u", begun.revision)]
    for change in (EnsureTable("d", "new"), CreateDatabase("d", exist_ok=True), CreateDatabase("d"),
                   SetRetention("d", 5)):  # fmt: skip
        with pytest.raises(TableDropping):
            plan(begun, [change], NO_LIMITS, STAMP)
    assert plan(begun, [DropDatabase("d")], NO_LIMITS, STAMP) == []
    half = after(begun, FinishDrop(1))
    database = half.database("d")
    assert database is not None
    assert database.dropping == begun.revision
    ended = after(half, FinishDrop(2))
    assert ended.database("d") is None
    assert [(d.name, d.dropping) for d in ended.databases(deleted=True)] == [(f"d-{STAMP}", 0), ("e", 0)]
    assert ended.table("e", "t") is not None
    at_once = after(begun, FinishDrop(1), FinishDrop(2))
    assert at_once.database("d") is None
    empty = after(BASE, CreateDatabase("x"), DropDatabase("x"))
    assert empty.database("x") is None, "one without tables is gone at once"
    partly = after(after(base, DropTable("d", "t")), DropDatabase("d"))
    assert [t.dropping for t in partly.tables("d")] == [partly.revision - 1, partly.revision]


def test_l31_what_is_asked_to_be_dropped_and_what_has_to_wait_for_it() -> None:
    base = after(BASE, EnsureTable("d", "t"), EnsureTable("d", "u"), EnsureTable("e", "t"), EnsureTable("f", "t"))
    begun = after(base, DropTable("d", "t"), DropDatabase("e"))
    assert drop_targets(begun, [DropTable("d", "t"), DropTable("d", "u"), DropTable("f", "t")]) == {1}
    assert drop_targets(begun, [DropDatabase("d")]) == {1}
    assert drop_targets(begun, [DropDatabase("e"), DropDatabase("none"), DropTable("none", "t")]) == {3}
    assert drop_targets(begun, [EnsureTable("d", "t"), CreateDatabase("e")]) == frozenset()
    assert drop_blocks(begun, [EnsureTable("d", "t"), EnsureTable("d", "u"), EnsureTable("f", "new")]) == {1}
    assert drop_blocks(begun, [EnsureTable("e", "new")]) == {3}
    assert drop_blocks(begun, [CreateDatabase("e"), SetRetention("e", 1), SetRetention("d", 1)]) == {3}
    assert drop_blocks(begun, [DropTable("d", "t"), CreateDatabase("none")]) == frozenset()


@pytest.mark.parametrize(
    ("names", "stored"),
    [
        (["a", "A", "a_3"], ["a", "A_3", "a_3_4"]),
        (["a", "a_3", "A"], ["a", "a_3", "A_4"]),
        (["a_3", "a!"], ["a_3", "a__3"]),
        (["a__3", "a!"], ["a__3", "a__3_"]),
        (["?runnel_offset", "_RUNNEL_order"], ["column_runnel_offset_2", "column_RUNNEL_order_3"]),
        (["Time", "TIME"], ["Time_2", "TIME_3"]),
        (["é", "ü", "1a", "a.b-c"], ["__2", "__3", "1a_4", "a.b-c"]),
        (["x" * 128, "x" * 129], ["x" * 128, "x" * 128 + "_3"]),
        (["a\x01b", "../x", "a b"], ["a_b_2", ".._x_3", "a_b_4"]),
    ],
)
def test_f19_storage_names_are_safe_and_unique_without_regard_to_case(names: list[str], stored: list[str]) -> None:
    base = after(BASE, EnsureTable("d", "t", [field(name) for name in names]))
    assert [columns_of(base, "d", "t")[name][1] for name in names] == stored


@given(st.lists(st.text(min_size=1, max_size=6) | COLUMNS, max_size=12, unique=True))
@settings(deadline=None)
def test_f19_storage_names_of_any_names(names: list[str]) -> None:
    wanted = [n for n in names if not n.startswith(RESERVED_PREFIX) and n != "time"]
    one_by_one = after(BASE, EnsureTable("d", "t"))
    for name in wanted:
        one_by_one = after(one_by_one, EnsureTable("d", "t", [field(name)]))
    check_whole(one_by_one)
    assert columns_of(one_by_one, "d", "t").keys() == {"time", *wanted}
    at_once = after(BASE, EnsureTable("d", "t", [field(name) for name in wanted]))
    assert columns_of(at_once, "d", "t") == columns_of(one_by_one, "d", "t")
    assert all(len(s) <= STORAGE_NAME_CHARS_MAX + 20 for _, s in columns_of(at_once, "d", "t").values())


def test_f21_a_new_partition_goes_to_the_log_with_the_fewest() -> None:
    limits = CatalogLimits(partitions_default=2)
    base = after(BASE, *(EnsureTable("d", f"t{n}") for n in range(6)), limits=limits)
    assert base.partitions_of_log == {1: 4, 2: 4, 3: 4}


# -- what may stand in the Log -----------------------------------------------------------------------------


def record(revision: int, *effects: Effect) -> Entry:
    return record_entry(EntryKind.RECORD, {"revision": revision, "effects": list(effects)})


LOGS: Effect = {"do": "logs", "ids": [1]}


@pytest.mark.parametrize("revision", [0, 1, 3, 9])
def test_l28_revisions_are_contiguous(revision: int) -> None:
    state = CatalogState()
    state.apply(reread(2, [record(1, LOGS)]))
    with pytest.raises(CorruptObject, match=f"Revision {revision} after 1"):
        state.apply(reread(3, [record(revision, LOGS)]))
    assert state.snapshot.revision == 1


def test_l3_a_revision_may_be_missing_only_where_an_object_was_given_up() -> None:
    state = CatalogState()
    state.apply(reread(2, [record(1, LOGS)]))
    with pytest.raises(CorruptObject):
        state.apply(reread(4, [record(4, LOGS)]))
    state.apply(reread(4, [record(3, LOGS)]))
    assert state.snapshot.revision == 3


def test_l3_an_object_is_applied_whole_or_not_at_all() -> None:
    state = CatalogState()
    with pytest.raises(UnsupportedFormat):
        state.apply(reread(2, [record(1, LOGS), record(2, {"do": "grant"})]))
    assert (state.snapshot, state.position, state.objects_above_k) == (CatalogSnapshot(), 0, 0)


def good_table() -> Effect:
    table = after(BASE, EnsureTable("d", "t", [field("f")])).table("d", "t")
    assert table is not None
    return table_effect(table)


def altered(**changes: Any) -> Effect:
    return {**good_table(), **changes}


def column(**changes: Any) -> Effect:
    return altered(columns=[{**good_table()["columns"][0], **changes}])


@pytest.mark.parametrize(
    ("effect", "error"),
    [
        ({"do": "grant"}, UnsupportedFormat),
        ({}, UnsupportedFormat),
        ({"do": "logs", "ids": [1], "more": 1}, UnsupportedFormat),
        ({"do": "format", "version": 2}, UnsupportedFormat),
        (altered(router="client"), UnsupportedFormat),
        (altered(op="upsert"), CorruptObject),
        (altered(op="delete"), UnsupportedFormat),
        (column(type={"kind": "decimal", "precision": 9}), CorruptObject),
        (column(type={"kind": "timestamp", "unit": "us", "zone": ""}), UnsupportedFormat),
        (column(type={"kind": "int64", "unit": "ns"}), UnsupportedFormat),
        (column(role="header"), CorruptObject),
        (column(more=1), UnsupportedFormat),
        ({"do": "columns", "table": 77, "version": 2, "columns": []}, CorruptObject),
    ],
)
def test_f20_effects_of_a_later_version_are_refused(effect: Effect, error: type[Exception]) -> None:
    with pytest.raises(error):
        apply_effects(BASE, [effect], 2)
    assert apply_effects(BASE, [good_table()], 2).tables_by_id.keys() == {1}


def test_f19_ids_are_not_used_again_even_when_their_owner_is_forgotten() -> None:
    counters: Effect = {"do": "counters", "database": 7, "table": 8, "partition": 9}
    base = after(apply_effects(BASE, [counters], 1), EnsureTable("d", "t"))
    table = base.table("d", "t")
    assert table is not None
    assert (table.database_id, table.id, table.partitions[0].id) == (7, 8, 9)


def test_entries_of_a_shard_do_not_belong_into_the_catalog() -> None:
    with pytest.raises(UnsupportedFormat, match="kind 3"):
        CatalogState().apply(reread(2, [record_entry(EntryKind.DROP, {"revision": 1})]))
    state = CatalogState()
    skip = record_entry(EntryKind.SKIP, {"sequence": 1, "skipped_at_ms": 2}, base_offset=1)
    state.apply(reread(2, [skip, Entry(200)]))
    assert state.snapshot.revision == 0


def test_a_checkpoint_with_a_state_that_is_no_list_is_corrupt() -> None:
    sections = list(CatalogState().sections())
    sections[1] = section_entry(Section.CATALOG, [{"revision": 1, "database_id": 0, "state": b"\xc1"}])
    with pytest.raises(CorruptObject):
        CatalogState().load(reread(3, sections, ObjectKind.CHECKPOINT))


def test_objects_above_k_are_counted_across_a_checkpoint() -> None:
    log = Log()
    for number in range(4):
        log.commit(plan(log.state.snapshot, [CreateDatabase(f"d{number}")], NO_LIMITS, STAMP))
    log.state.checkpointed(9, 4, ())
    assert (log.state.covered(), log.state.objects_above_k) == (4, 2)


def test_new_partitions_avoid_logs_that_nobody_can_write() -> None:
    """L3: while a shard stays closed, new tables live in the others; when all are closed there is no choice."""
    base = apply_effects(CatalogSnapshot(), [{"do": "logs", "ids": [1, 2, 3]}], 1)
    for closed, expected in ((frozenset({1}), 2), (frozenset({1, 2}), 3), (frozenset({1, 2, 3}), 1)):
        effects = plan(base, [EnsureTable("db", "t")], CatalogLimits(closed_logs=closed), "20260101T000000")
        table = apply_effects(base, effects, 2).table("db", "t")
        assert table is not None
        assert [p.log_id for p in table.partitions] == [expected]


# -- materialized views --------------------------------------------------------------------------------------

WITH_TABLE = after(BASE, EnsureTable("d", "t", [tag("host"), field("f")]))
VIEW = CreateView("d", "v", 1, "SELECT 1", 60, 7, [tag("host"), field("mean")])


def test_a_view_and_its_state_have_one_partition_each_in_one_log() -> None:
    now = after(WITH_TABLE, VIEW, limits=CatalogLimits(partitions_default=4))
    view = now.table("d", "v")
    assert view is not None
    assert view.view == ViewDefinition(1, view.id + 1, "SELECT 1", 60, 7)
    state = now.tables_by_id[view.view.state_id]
    (own,), (its) = view.partitions, state.partitions
    assert [(p.hash_low, p.hash_high, p.log_id) for p in its] == [(0, HASH_END, own.log_id)]
    assert now.table("d", state.name) is None
    assert [table.name for table in now.tables("d")] == ["t", "v"]
    assert [table.name for table in now.tables("d", hidden=True)] == ["t", "v", state.name]
    assert now.views_of(now.tables_by_id[1]) == [view]


def test_a_view_takes_no_columns_and_a_table_that_it_reads_stays() -> None:
    now = after(WITH_TABLE, VIEW)
    with pytest.raises(ViewNotWritable, match="'v' is a materialized view"):
        after(now, EnsureTable("d", "v", [field("x")]))
    with pytest.raises(TableInUse, match="'v' reads table 't'"):
        after(now, DropTable("d", "t"))
    assert plan(now, [dataclasses.replace(VIEW, exist_ok=True)], NO_LIMITS, STAMP) == []
    with pytest.raises(AlreadyExists):
        after(now, VIEW)
    with pytest.raises(AlreadyExists):
        after(now, dataclasses.replace(VIEW, name="t", exist_ok=True))


@pytest.mark.parametrize("table_id", [2, 3, 99])
def test_a_view_reads_a_live_table_of_its_database(table_id: int) -> None:
    base = after(WITH_TABLE, EnsureTable("d", "gone"), EnsureTable("e", "elsewhere"))
    base = dropped(base, DropTable("d", "gone"))
    with pytest.raises(NoSuchTable, match="was dropped"):
        after(base, dataclasses.replace(VIEW, table_id=table_id))


def test_l31_a_view_and_its_state_are_dropped_together_and_then_its_table_can_be() -> None:
    now = after(WITH_TABLE, VIEW)
    drop = DropTable("d", "v")
    going = after(now, drop)
    assert drop_targets(going, [drop]) == {2, 3}
    assert drop_blocks(going, [VIEW]) == {2, 3}
    with pytest.raises(TableDropping):
        after(going, VIEW)
    gone = after(going, FinishDrop(2), FinishDrop(3))
    assert gone.tables("d", hidden=True) == [gone.tables_by_id[1]]
    assert dropped(gone, DropTable("d", "t")).tables("d") == []


def test_l31_a_database_goes_with_its_views() -> None:
    assert dropped(after(WITH_TABLE, VIEW), DropDatabase("d")).database("d") is None


@pytest.mark.parametrize("change", [{"width": None}, {"more": 1}])
def test_a_view_of_a_later_version_is_refused(change: dict[str, Any]) -> None:
    view = {"table": 1, "state": 3, "text": "SELECT 1", "width": 60, "origin": 7} | change
    record = {key: value for key, value in view.items() if value is not None}
    with pytest.raises(UnsupportedFormat, match="materialized view"):
        apply_effects(BASE, [{**good_table(), "view": record}], 2)
