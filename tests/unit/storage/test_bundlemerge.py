"""Merging bundles: whatever was written, deleted and dropped, what is read afterwards is what was read before (LOG L21,
L25, FORMAT F11, F18), held against a dictionary."""

from __future__ import annotations

import dataclasses
import itertools
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from storage.bundle import SLICE_ROWS_MAX, sorted_out, write_tails
from storage.bundlemerge import bundle_job, changes_of, merge_bundles
from storage.bundleplan import Known, bundles_of, made_by, plan_bundles
from storage.bundlereader import slice_as_file
from storage.datafile import write_datafile
from storage.deletes import PendingDelete, RangeDelete, TagValues, waiting_files
from storage.filechange import FileChange, FileLists, changed_lists, standing
from storage.merge import MergeJob
from storage.pendingdeletes import pending_after_changes
from storage.schema import NO_ROWS, OP_COLUMN, OP_TYPE, Column, Op, Role, Table, TailBatch, TypeKind
from storage.shardstate import PartitionState
from storage.store import bundle_path, data_path
from tests.harness.stores import MemoryStore
from tests.harness.tables import make_rows, make_table
from tests.unit.storage.test_bundle import rows_of, table_of

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from storage.schema import DataFile

NO_SHRINK = (Phase.explicit, Phase.reuse, Phase.generate)
"""A failure of thousands of draws is not made any shorter in minutes."""
Key = tuple[int, int]
Row = dict[str, Any]


def small_table(table_id: int) -> Table:
    """With two fields; tables of even numbers have another tag, and of those the second field is of another type."""
    kind = TypeKind.INT64 if table_id % 4 else TypeKind.FLOAT64
    tag = "host" if table_id % 2 else "room"
    columns = (
        Column(1, "time", "time", Role.TIME, TypeKind.TIMESTAMP),
        Column(2, tag, tag, Role.TAG, TypeKind.STRING),
        Column(3, "v", "v", Role.FIELD, TypeKind.INT64),
        Column(4, "w", "w", Role.FIELD, kind),
    )
    return dataclasses.replace(make_table(table_id), columns=columns)


@dataclass
class World:
    """A shard's files without a shard, and what must be read from them."""

    store: MemoryStore = field(default_factory=MemoryStore)
    parts: dict[Key, PartitionState] = field(default_factory=dict)
    wanted: dict[Key, dict[tuple[int, str], Row]] = field(default_factory=dict)
    tables: dict[int, Table] = field(default_factory=dict)
    made_by: dict[str, int] = field(default_factory=dict)
    merges: int = 0

    def part(self, key: Key) -> PartitionState:
        self.tables.setdefault(key[0], small_table(key[0]))
        self.wanted.setdefault(key, {})
        return self.parts.setdefault(key, PartitionState())

    def checkpoint(self, tails: dict[Key, list[TailBatch]]) -> None:
        small, large = sorted_out(
            self.tables.__getitem__, {key: tuple(batches) for key, batches in tails.items() if batches}
        )
        made = write_tails(self.store, 3, 7, small)
        for table, partition, tail in large:
            file = write_datafile(self.store, table, 3, 7, partition, tail)
            made += [] if file is None else [file]
        for key, batches in tails.items():
            part = self.part(key)
            paths = frozenset(file.path for file in part.files)
            pending = [
                PendingDelete(b.first_offset, b.delete, paths) for b in batches if b.delete is not None and paths
            ]
            part.pending = (*part.pending, *pending)
        self.add(made)

    def add(self, files: Sequence[DataFile]) -> None:
        for file in files:
            part = self.part((file.table_id, file.partition))
            part.files = tuple(sorted((*part.files, file), key=lambda f: (f.order_low, f.order_high, f.path)))

    def known(self, *, is_asked_for: bool = True, sizes: dict[str, int] | None = None) -> Known:
        waiting = {key: waiting_files(part.pending) for key, part in self.parts.items()}
        return Known(sizes or {}, waiting, {key: p.files for key, p in self.parts.items()}, self.made_by, is_asked_for)

    def files(self) -> list[DataFile]:
        return [file for part in self.parts.values() for file in part.files]

    def merge(self, known: Known) -> int:
        """One merge of bundles, committed; how many bundles went."""
        chosen = plan_bundles(bundles_of(self.files(), self.tables), known)
        if not chosen:
            return 0
        job = bundle_job(
            chosen, self.tables.get, self.parts,
            lambda table, count: tuple(
                bundle_path(3, 7) if table is None else data_path(3, 1, table.id, 7) for _ in range(count)
            ),
        )  # fmt: skip
        made = merge_bundles(self.store, job)
        self.merges += 1
        self.made_by |= made_by(
            self.merges, {one.path for one in chosen}, {file.path for _, file in made if file.is_slice}
        )
        self.commit(changes_of(job, made))
        return len(chosen)

    def commit(self, changes: Sequence[FileChange]) -> None:
        pending = {key: part.pending for key, part in self.parts.items()}
        assert all(standing(changes, self.files(), pending))
        lists = changed_lists(FileLists(tuple(self.files()), ()), changes)
        left, _ = pending_after_changes(pending, changes)
        for key, part in self.parts.items():
            part.files, part.pending = (), left.get(key, ())
        self.add(lists.loose)

    def read(self, key: Key) -> dict[tuple[int, str], Row]:
        """Fold the files of a partition, older ones first, one row after the other (F11)."""
        part, found = self.part(key), dict[tuple[int, str], Row]()
        tag = self.tables[key[0]].tags[0].storage_name
        for file in part.files:
            data = slice_as_file(self.store, file) if file.is_slice else self.store.get(file.path)
            for row in pq.read_table(pa.BufferReader(data)).to_pylist():
                place = (row["time"].value, row.get(tag) or "")
                if any(file.path in one.files and one.delete.meets(place[0], place[0]) for one in part.pending):
                    continue
                op = row.get(OP_COLUMN) or 0
                fields = {name: row.get(name) for name in ("v", "w") if row.get(name) is not None}
                if op == Op.DELETE.code:
                    found[place] = {}
                    continue
                before = {} if op == Op.PUT.code else found.get(place, {})
                found[place] = {**before, **fields}
        return {place: row for place, row in found.items() if row}

    def check(self) -> None:
        for key, wanted in self.wanted.items():
            assert self.read(key) == wanted, key


def write(
    world: World, dice: random.Random, keys: Sequence[Key], offsets: dict[Key, int]
) -> dict[Key, list[TailBatch]]:
    """Random rows, ops and range deletes for some partitions, also for the dictionary."""
    tails: dict[Key, list[TailBatch]] = {}
    for key in keys:
        world.part(key)
        wanted, table = world.wanted[key], world.tables[key[0]]
        for _ in range(dice.randint(1, 3)):
            at = offsets.get(key, 0)
            if dice.random() < 0.15:
                low = dice.randint(0, 6)
                batch = TailBatch(at, NO_ROWS, RangeDelete(low, low + 2))
                for place in [place for place in wanted if low <= place[0] <= low + 2]:
                    del wanted[place]
            else:
                batch = TailBatch(at, random_rows(table, dice, wanted))
            tails.setdefault(key, []).append(batch)
            offsets[key] = batch.end
    return tails


def random_rows(table: Table, dice: random.Random, wanted: dict[tuple[int, str], Row]) -> pa.RecordBatch:
    rows: list[tuple[int, str, int | None, int | None, int | None]] = []
    for _ in range(dice.randint(1, 4)):
        place = (dice.randint(0, 8), dice.choice("abc"))
        op = dice.choice([None, None, None, Op.PUT.code, Op.DELETE.code])
        values = {name: dice.randint(0, 99) for name in ("v", "w") if dice.random() < 0.7} or {"v": 1}
        if op == Op.DELETE.code:
            values = {}
            wanted.pop(place, None)
        else:
            wanted[place] = {**({} if op else wanted.get(place, {})), **values}
        rows.append((*place, values.get("v"), values.get("w"), op))
    times, tags, v, w, ops = zip(*rows, strict=True)
    return pa.RecordBatch.from_pydict(
        {
            "time": pa.array(times, pa.timestamp("ns")),
            table.tags[0].storage_name: pa.array(tags).dictionary_encode(),
            "v": pa.array(v, pa.int64()),
            "w": pa.array(w, table.columns[3].arrow_type),
            OP_COLUMN: pa.array(ops, OP_TYPE),
        }
    )


@given(st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=25, phases=NO_SHRINK)
def test_l25_what_is_read_is_what_a_dictionary_has(dice: random.Random) -> None:
    """Writes of all ops, range deletes, files of their own between slices, drops, expiry and merges, in any order."""
    world, offsets = World(), dict[Key, int]()
    for _ in range(dice.randint(2, 9)):
        keys = [(table, partition) for table in range(1, 7) for partition in (1, 2) if dice.random() < 0.6]
        # one alone is written as a file of its own: a layer that merges of bundles must not reach over
        for group in (keys[:-1], keys[-1:]) if dice.random() < 0.4 else (keys,):
            world.checkpoint(write(world, dice, group, offsets))
        if dice.random() < 0.4:
            world.merge(world.known(is_asked_for=dice.random() < 0.7))
        if dice.random() < 0.1 and world.parts:
            gone = dice.choice(sorted(world.parts))
            world.commit([FileChange(world.parts[gone].files, ())] if world.parts[gone].files else [])
            del world.parts[gone], world.wanted[gone]
        world.check()
    before = world.merges
    while world.merge(world.known()):
        assert world.merges < before + 9, "no end"
        world.check()


def filled(checkpoints: int, tables: int, rows: int = 1) -> World:
    world = World()
    for number in range(checkpoints):
        tails = {}
        for table in range(1, tables + 1):
            world.tables.setdefault(table, make_table(table))
            first = number * rows
            times = range(first, first + rows)
            tails[table, 1] = [TailBatch(first, make_rows(times, ["h"] * rows, first))]
        world.checkpoint(tails)
    return world


def paths(world: World) -> set[str]:
    return {file.path for file in world.files()}


def test_a_partition_has_one_slice_afterwards() -> None:
    world = filled(6, 5)
    assert len(paths(world)) == 6
    assert world.merge(world.known()) == 6
    assert len(paths(world)) == 1
    assert [(f.rows, f.order_low, f.order_high, f.time_low, f.time_high) for f in world.files()] == [
        (6, 0, 5, 0, 5)
    ] * 5
    assert world.merge(world.known()) == 0


def test_what_has_grown_is_a_file_of_its_own() -> None:
    world = filled(2, 3, SLICE_ROWS_MAX // 2 + 1)
    assert all(file.is_slice for file in world.files())
    assert world.merge(world.known()) == 2
    assert [(f.kind, f.rows) for f in world.files()] == [("parquet", SLICE_ROWS_MAX + 2)] * 3
    rows = pq.read_table(pa.BufferReader(world.store.get(world.files()[1].path)))
    assert rows.column("time").cast(pa.int64()).to_pylist() == list(range(SLICE_ROWS_MAX + 2))


def test_what_is_not_asked_for_waits_until_there_are_several() -> None:
    world = filled(3, 5)
    assert world.merge(world.known(is_asked_for=False)) == 0
    world = filled(4, 5)
    assert world.merge(world.known(is_asked_for=False)) == 4


def test_an_object_of_which_most_is_not_named_any_more_is_rewritten() -> None:
    """Rows of dropped tables and expired ones: the room is given back, whatever else is worth a merge."""
    world = filled(1, 10)
    (path,) = paths(world)
    sizes = {path: len(world.store.objects[path])}
    world.commit([FileChange(world.parts[table, 1].files, ()) for table in range(1, 6)])
    assert world.merge(world.known(is_asked_for=False, sizes=sizes)) == 0, "half of it is still named"
    world.commit([FileChange(world.parts[6, 1].files, ())])
    assert paths(world) == {path}, "L19: others name the object still"
    assert world.merge(world.known(is_asked_for=False, sizes=sizes)) == 1
    assert path not in paths(world)
    assert [file.table_id for file in world.files()] == [7, 8, 9, 10]


def test_l21_a_change_of_one_slice_leaves_the_others_of_its_object() -> None:
    world = filled(1, 4)
    first, second = world.parts[1, 1].files[0], world.parts[2, 1].files[0]
    assert first.path == second.path
    assert standing([FileChange((first,), ())], [second], {}) == [False], "the same object, and not the same slice"
    lists = changed_lists(FileLists(tuple(world.files()), ()), [FileChange((first,), ())])
    assert [file.table_id for file in lists.loose] == [2, 3, 4]


def test_l25_a_layer_between_two_slices_keeps_them_apart() -> None:
    """Else the newer value of the middle layer would be hidden by the oldest one's, which takes the highest order."""
    world, table = World(), small_table(1)
    others = {(n, 1): [TailBatch(0, make_rows([50], ["h"]))] for n in (5, 7)}
    world.tables |= {1: table, 5: make_table(5), 7: make_table(7)}

    def layer(offset: int, values: Row) -> TailBatch:
        columns = {"time": pa.array([1], pa.timestamp("ns")), "host": pa.array(["a"]).dictionary_encode()}
        return TailBatch(offset, pa.RecordBatch.from_pydict(columns | {n: pa.array([v]) for n, v in values.items()}))

    world.checkpoint({(1, 1): [layer(0, {"v": 1, "w": 1})], **others})
    world.checkpoint({(1, 1): [layer(1, {"v": 2})]})
    others = {key: [TailBatch(1, make_rows([60], ["h"]))] for key in others}
    world.checkpoint({(1, 1): [layer(2, {"w": 3})], **others})
    assert [file.is_slice for file in world.parts[1, 1].files] == [True, False, True]
    world.wanted[1, 1] = {(1, "a"): {"v": 2, "w": 3}}
    assert world.merge(world.known()) == 2
    assert [(f.is_slice, f.order_low, f.order_high) for f in world.parts[1, 1].files] == [
        (True, 0, 0), (False, 1, 1), (True, 2, 2),
    ]  # fmt: skip
    assert len({f.path for f in world.parts[1, 1].files}) == 3, "F18: two slices of a partition are in two bundles"
    assert [len(world.parts[n, 1].files) for n in (5, 7)] == [1, 1]
    assert world.read((1, 1)) == world.wanted[1, 1]
    assert world.merge(world.known()) == 0, "what one merge has made is not worth another by itself"


def test_a_delete_by_a_tag_that_came_later_finds_no_other_tables_field_of_that_name() -> None:
    """Of another type, in a bundle that is older: merging it failed for ever, and the delete was never carried out."""
    world = World()
    other, before = table_of(1, ["host"], {"x": TypeKind.FLOAT64}), table_of(2, ["host"], {"v": TypeKind.INT64})
    world.tables |= {1: other, 2: before}
    rows = [{"time": time, "host": "a", "v": time} for time in (1, 2)]
    world.checkpoint({
        (1, 1): [TailBatch(0, rows_of(other, [{"time": 1, "host": "a", "x": 1.5}]))],
        (2, 1): [TailBatch(0, rows_of(before, rows))],
    })  # fmt: skip
    world.tables[2] = grown = dataclasses.replace(
        before, columns=(*before.columns, Column(90, "x", "x", Role.TAG, TypeKind.STRING)), version=2
    )
    deletes = [RangeDelete(1, 2, (TagValues(90, ("foo",)),)), RangeDelete(1, 1, (TagValues(90, (None,)),))]
    world.checkpoint({
        (1, 1): [TailBatch(1, rows_of(other, [{"time": 2, "host": "a", "x": 2.5}]))],
        (2, 1): [
            *(TailBatch(2 + at, NO_ROWS, delete) for at, delete in enumerate(deletes)),
            TailBatch(4, rows_of(grown, [{"time": 3, "host": "a", "x": "foo", "v": 3}])),
        ],
    })  # fmt: skip
    assert world.merge(world.known()) == 1
    assert not world.parts[2, 1].pending
    assert world.read((2, 1)) == {(2, "a"): {"v": 2}, (3, "a"): {"v": 3}}
    assert sum(file.rows for file in world.parts[1, 1].files) == 2, "the other's rows are all there"


def test_bundles_that_cannot_be_put_together_are_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than one merge takes: some were made by another merge than the others."""
    numbers = itertools.count()
    monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(int=next(numbers)))  # names in the order of their making
    world = World()
    for pair in range(90):
        kinds = [TypeKind.INT64 if pair >> bit & 1 else TypeKind.FLOAT64 for bit in range(7)]
        fields = tuple(Column(4 + i, f"f{i}", f"f{i}", Role.FIELD, kind) for i, kind in enumerate(kinds))
        rows = pa.record_batch({"time": pa.array([1], pa.timestamp("ns")), "f0": pa.array([1], fields[0].arrow_type)})
        for table_id in (2 * pair + 1, 2 * pair + 2):
            table = make_table(table_id)
            world.tables[table_id] = dataclasses.replace(table, columns=(small_table(1).columns[0], *fields))
        world.checkpoint({(2 * pair + 1, 1): [TailBatch(0, rows)], (2 * pair + 2, 1): [TailBatch(0, rows)]})
    assert len({file.path for file in world.files() if file.is_slice}) == 90
    merges = 0
    while world.merge(world.known()):
        merges += 1
        assert merges <= 2, "the same bundles are written again and again"
    assert len({file.path for file in world.files()}) == 90


def test_l20_there_are_names_for_all_objects_that_a_merge_makes() -> None:
    """Tables of which no two agree need one each: with too few names the merge failed, and so did each after it."""
    kinds = (TypeKind.FLOAT64, TypeKind.INT64, TypeKind.STRING)
    chosen = [dict(zip("abc", found, strict=True)) for found in itertools.product(kinds, repeat=3)][:20]
    values: Row = {"float64": 1.5, "int64": 1, "string": "s"}
    world = World()
    for number, fields in enumerate(chosen):
        tails = {}
        for table_id in range(1 + number, 101, 20):
            world.tables[table_id] = table = table_of(table_id, ["host"], fields)
            row = {"time": 1, "host": "h"} | {name: values[kind.value] for name, kind in fields.items()}
            tails[table_id, 1] = [TailBatch(0, rows_of(table, [row]))]
        world.checkpoint(tails)
    assert len(paths(world)) == 20
    assert world.merge(world.known()) == 20
    assert {(file.table_id, file.rows) for file in world.files()} == {(n, 1) for n in range(1, 101)}


@pytest.mark.parametrize("checkpoints", [200])
def test_tiny_checkpoints_leave_few_objects(checkpoints: int) -> None:
    """Merged in the background as they come: some in each tier, however many there were."""
    world = World()
    most = 0
    for number in range(checkpoints):
        tails = {}
        for table in range(1, 9):
            world.tables.setdefault(table, make_table(table))
            tails[table, 1] = [TailBatch(number, make_rows([number], ["h"], number))]
        world.checkpoint(tails)
        while world.merge(world.known(is_asked_for=False)):
            pass
        most = max(most, len(paths(world)))
    assert most <= 16
    assert all(sum(f.rows for f in part.files) == checkpoints for part in world.parts.values())


def test_bundles_with_rows_of_tables_that_are_not_known_as_they_are_wait() -> None:
    """L30."""
    world = filled(1, 3)
    older = {n: dataclasses.replace(table, version=0) for n, table in world.tables.items()}
    assert len(bundles_of(world.files(), world.tables)) == 1
    assert bundles_of(world.files(), older) == []
    assert bundles_of(world.files(), {1: world.tables[1]}) == []


def test_a_merge_of_a_partition_reads_a_slice_as_a_file() -> None:
    """Where a file of its own overlaps with slices they are merged together (`storage.merge`)."""
    from pathlib import Path
    from tempfile import gettempdir

    from storage.merge import merge_files

    world = filled(3, 4)
    job = MergeJob(make_table(2), world.parts[2, 1].files, (data_path(3, 1, 2, 7),) * 6)
    (made,) = merge_files(world.store, job, Path(gettempdir()))
    assert (made.kind, made.rows, made.order_low, made.order_high) == ("parquet", 3, 0, 2)
    rows = pq.read_table(pa.BufferReader(world.store.get(made.path)))
    assert rows.column("f").to_pylist() == [0.0, 0.25, 0.5]
    assert "_runnel_table" not in rows.column_names
