"""Which files are merged: only runs that bring no old value back, and few files in the end (LOG L24, L25).

The model keeps rows as plain dictionaries and reads them as a query does: layer over layer, in the layers' order.
Every history of writes and planned merges must read as the writes alone. With a run that skips a layer it does not.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.compaction import (
    FULL_BYTES,
    RUN_BYTES_MAX,
    RUN_FILES_MAX,
    TARGET_BYTES,
    TINY_BYTES,
    Layers,
    Policy,
    _apart,
    bytes_of_runs,
    plan,
)
from storage.schema import DataFile

if TYPE_CHECKING:
    from collections.abc import Sequence

MIB = 2**20
POLICY = Policy()
EAGER = Policy(eager_bytes=RUN_BYTES_MAX)
ROW_BYTES = 16 * MIB
"""In the model: so that a few rows fill a file."""


def file(order: tuple[int, int], times: tuple[int, int], size: int = MIB, name: str = "") -> DataFile:
    path = name or f"data/1/1/1/1-{order[0]}-{order[1]}-{times[0]}"
    return DataFile(path, 1, 1, *order, *order, *times, 1, size, 1)


# -- the model (prototypes/log/merge_model.py, with times and files) -------------------------------------------

Row = dict[str, int]
"""Fields; a value is the order at which it was written, so that an old one is seen."""
Rows = dict[int, tuple[int, Row]]
"""By key, which is the time alone: the order of the row and its fields."""


@dataclass(frozen=True)
class Layer:
    file: DataFile
    rows: Rows


def layer_of(order: tuple[int, int], rows: Rows) -> Layer:
    size = ROW_BYTES * len(rows)
    return Layer(file(order, (min(rows), max(rows)), size, f"{order}-{min(rows)}-{len(rows)}"), rows)


def read(layers: Sequence[Layer]) -> dict[int, Row]:
    """As `engine.views` merges layers: the newest by (order_high, order_low) outermost; and by each row's offset."""
    by_layer: dict[int, Row] = {}
    for layer in sorted(layers, key=lambda a: (a.file.order_high, a.file.order_low)):
        for key, (_, fields) in layer.rows.items():
            by_layer.setdefault(key, {}).update(fields)
    by_offset: dict[int, Row] = {}
    for key, (_, fields) in sorted(((k, r) for a in layers for k, r in a.rows.items()), key=lambda item: item[1][0]):
        by_offset.setdefault(key, {}).update(fields)
    assert by_layer == by_offset, "both ways of reading agree"
    return by_layer


def merge(layers: Sequence[Layer], run: Sequence[DataFile]) -> list[Layer]:
    """What `storage.merge` does: fold the run, cut it by time, give every piece the order of the whole run."""
    paths = {f.path for f in run}
    chosen = sorted((a for a in layers if a.file.path in paths), key=lambda a: a.file.order_low)
    assert len(chosen) == len(paths)
    rows: Rows = {}
    for layer in chosen:
        for key, (offset, fields) in layer.rows.items():
            older = rows.get(key, (0, {}))
            rows[key] = (max(offset, older[0]), {**older[1], **fields})  # its highest order
    order = (min(f.order_low for f in run), max(f.order_high for f in run))
    count = max(1, round(ROW_BYTES * len(rows) / TARGET_BYTES))
    keys = sorted(rows)
    cuts = [keys[len(keys) * i // count : len(keys) * (i + 1) // count] for i in range(count)]
    pieces = [layer_of(order, {key: rows[key] for key in part}) for part in cuts if part]
    return [*(a for a in layers if a.file.path not in paths), *pieces]


Written = list[tuple[int, frozenset[str]]]
"""One checkpoint's rows: keys and the fields that each names."""
WRITTEN = st.lists(
    st.tuples(st.integers(0, 40), st.sets(st.sampled_from("ab"), min_size=1).map(frozenset)), min_size=1, max_size=6
)
CLUSTERED = st.tuples(st.integers(0, 34), WRITTEN).map(lambda t: [(t[0] + key % 6, names) for key, names in t[1]])


def checkpointed(written: Written, following: int) -> Layer:
    rows: Rows = {}
    for offset, (key, names) in enumerate(written, following):
        rows[key] = (offset, {**rows.get(key, (0, {}))[1], **dict.fromkeys(names, offset)})
    return layer_of((following, following + len(written) - 1), rows)


def check_invariant(layers: Sequence[Layer]) -> None:
    """Two layers that share a moment never share an order."""
    for a, b in itertools.combinations([layer.file for layer in layers], 2):
        in_time = a.time_low <= b.time_high and b.time_low <= a.time_high
        in_order = a.order_low <= b.order_high and b.order_low <= a.order_high
        assert not (in_time and in_order), (a, b)


@given(
    history=st.lists(st.tuples(st.one_of(WRITTEN, CLUSTERED), st.integers(0, 2)), min_size=1, max_size=40),
    policy=st.sampled_from([POLICY, EAGER, Policy(eager_bytes=TARGET_BYTES), Policy(files_max=4)]),
)
@settings(deadline=None, max_examples=300)
def test_l25_planned_merges_never_bring_an_old_value_back(history: list[tuple[Written, int]], policy: Policy) -> None:
    """Also when each is planned while others are under way, as long as none takes another's files (L21)."""
    layers: list[Layer] = []
    truth: dict[int, Row] = {}
    following = 0
    for written, merges in history:
        for offset, (key, names) in enumerate(written, following):
            truth.setdefault(key, {}).update(dict.fromkeys(names, offset))
        layers.append(checkpointed(written, following))
        following += len(written)
        planned = plan([layer.file for layer in layers], policy)
        taken = [f.path for run in planned for f in run]
        assert len(set(taken)) == len(taken)
        for run in planned[:merges]:
            layers = merge(layers, run)
            check_invariant(layers)
            assert read(layers) == truth


@given(
    history=st.lists(st.tuples(WRITTEN, st.sets(st.integers(0, 9), min_size=2, max_size=4)), min_size=3, max_size=12)
)
@settings(deadline=None, max_examples=300)
def test_l25_any_run_that_is_a_run_may_be_merged(history: list[tuple[Written, set[int]]]) -> None:
    """Worth it or not: `is_run` alone keeps the answers."""
    layers: list[Layer] = []
    following = 0
    for written, chosen in history:
        layers.append(checkpointed(written, following))
        following += len(written)
        known = Layers.of(layer.file for layer in layers)
        indexes = sorted(i for i in chosen if i < len(layers))
        if len(indexes) > 1 and known.is_run(indexes):
            before = read(layers)
            layers = merge(layers, [known.files[i] for i in indexes])
            check_invariant(layers)
            assert read(layers) == before


@pytest.mark.parametrize("skipped", [1, 2])
def test_l25_skipping_a_middle_layer_brings_an_old_value_back(skipped: int) -> None:
    """The rule broken on purpose: a run without the layer between is refused, and merged anyway it reads wrong."""
    layers = [checkpointed([(5, frozenset("a"))], at) for at in range(3)]
    layers.insert(3, checkpointed([(9, frozenset("b"))], 3))
    known = Layers.of(layer.file for layer in layers)
    truth = read(layers)
    run = [i for i in range(4) if i != skipped]
    assert not known.is_run(run)
    if skipped == 2:
        wrong = merge(layers, [known.files[i] for i in run])
        with pytest.raises(AssertionError):
            assert read(wrong) == truth
    assert known.is_run([0, 1])
    assert read(merge(layers, known.files[:2])) == truth


def test_l25_a_layer_between_that_is_elsewhere_in_time_may_be_skipped() -> None:
    files = [file((0, 9), (0, 10)), file((10, 19), (50, 60)), file((20, 29), (5, 12)), file((30, 39), (11, 49))]
    layers = Layers.of(files)
    assert layers.is_run([0, 2])
    assert not layers.is_run([0, 3]), "what is between shares moments with both together"
    assert layers.is_run([0, 1, 2, 3])


def test_l25_of_two_runs_that_cross_one_waits() -> None:
    """Neither has a file of the other between its own; merged both, they would share a moment and an order."""
    tall = [file((10 * n, 10 * n + 1), (50, 51)) for n in (0, 1, 8, 9)]
    wide = [file((40 + n, 40 + n), (t, t), 2 * MIB) for n, t in enumerate((0, 10, 90, 100))]
    layers = Layers.of([*tall, *wide])
    runs = [[layers.files.index(f) for f in group] for group in (tall, wide)]
    assert all(layers.is_run(run) for run in runs)
    assert _apart(layers, runs) == runs[:1]
    assert _apart(layers, reversed(runs)) == runs[1:]


# -- how many, how large ---------------------------------------------------------------------------------------


def settle(files: list[DataFile], policy: Policy = POLICY) -> list[DataFile]:
    """Plan and merge by size alone, until nothing is planned."""
    while planned := plan(files, policy):
        for run in planned:
            assert 2 <= len(run) <= RUN_FILES_MAX
            assert sum(f.bytes for f in run) <= RUN_BYTES_MAX
            gone = {f.path for f in run}
            low, high = min(f.time_low for f in run), max(f.time_high for f in run)
            order = min(f.order_low for f in run), max(f.order_high for f in run)
            size = sum(f.bytes for f in run)
            count = max(1, round(size / TARGET_BYTES))
            edges = [low + (high - low) * i // count for i in range(count + 1)]
            pieces = [
                file(order, (edges[i] + (i > 0), edges[i + 1]), size // count, f"{order}-{i}-{low}-{size}")
                for i in range(count)
            ]
            files = [*(f for f in files if f.path not in gone), *pieces]
    return files


@pytest.mark.parametrize("size", [2_000, 300_000, 3 * MIB, 20 * MIB])
def test_tiny_scattered_writes_end_as_few_files(size: int) -> None:
    """A month of checkpoints, each all over the month; the bytes rewritten are a few times those written."""
    files: list[DataFile] = []
    for number in range(1_000 if size < 10 * MIB else 200):
        files.append(file((number, number), (0, 30 * 86_400), size))
        files = settle(files)
        small = [f for f in files if f.bytes < FULL_BYTES]
        assert len(small) <= 24
        if size * 1_000 <= RUN_BYTES_MAX:
            assert len(files) <= 64


def test_files_of_a_running_series_are_merged_once_for_each_fourfold() -> None:
    """Each after the other in time: full files stay as they are, and are about as large as wanted."""
    files: list[DataFile] = []
    rewritten = 0
    for number in range(2_000):
        files.append(file((number, number), (100 * number, 100 * number + 99), 4 * MIB))
        before = {f.path: f.bytes for f in files}
        files = settle(files)
        rewritten += sum(f.bytes for f in files if f.path not in before)
    full = [f for f in files if f.bytes >= FULL_BYTES]
    assert sum(f.bytes for f in full) > 0.9 * 2_000 * 4 * MIB
    assert all(f.bytes <= 3 * TARGET_BYTES for f in full)
    assert rewritten <= 4 * 2_000 * 4 * MIB


def test_full_files_that_overlap_are_set_side_by_side() -> None:
    files = [file((n, n), (0, 1_000), TARGET_BYTES) for n in range(4)]
    (run,) = plan(files)
    assert set(run) == set(files)
    assert plan(files[:3]) == [], "too few to be worth it"
    apart = [file((n, n), (10 * n, 10 * n + 9), TARGET_BYTES) for n in range(50)]
    assert plan(apart) == []


def test_an_eager_plan_leaves_nothing_that_overlaps() -> None:
    """As far as one merge can hold it: in the end each moment is in one file, and small files are together."""
    files = [file((n, n), (7 * n % 50, 7 * n % 50 + 5 * (n % 4)), MIB * (1 + 13 * (n % 5))) for n in range(30)]
    assert sum(f.bytes for f in files) <= RUN_BYTES_MAX
    for left in (settle(files, EAGER), settle(settle(files), EAGER)):
        ordered = sorted(left, key=lambda f: f.time_low)
        assert all(a.time_high < b.time_low for a, b in itertools.pairwise(ordered))
        assert plan(left, EAGER) == []
    quiet = Policy(eager_bytes=TARGET_BYTES)
    small = [file((0, 0), (0, 9), 60 * MIB), file((1, 1), (0, 9), 1_000)]
    assert plan(small) == []
    assert plan(small, quiet) == [tuple(small)]
    assert plan([file((0, 0), (0, 9), TARGET_BYTES), file((1, 1), (0, 9), 1_000)], quiet) == []


def test_a_wide_table_is_merged_a_few_files_at_a_time() -> None:
    files = [file((n, n), (0, 9), 1_000) for n in range(40)]
    assert {len(run) for run in plan(files, Policy(files_max=5))} == {5}


def test_l36_under_a_limit_by_bytes_no_merge_makes_most_of_what_it_allows_one_file() -> None:
    """The oldest file goes whole: it would take all but the newest rows with it."""
    room = 16 * MIB
    policy = dataclasses.replace(POLICY, bytes_max=bytes_of_runs(room))
    left = settle([file((n, n), (n, n), MIB // 4) for n in range(60)], policy)
    assert max(f.bytes for f in left) <= room // 8
    assert len(left) < 60
    assert bytes_of_runs(None) == bytes_of_runs(2**40) == RUN_BYTES_MAX, "else files grow as large as they should"


def test_what_is_worth_a_merge() -> None:
    def sized(*sizes: int) -> list[DataFile]:
        return [file((n, n), (0, 1), size) for n, size in enumerate(sizes)]

    assert not Policy().pays(sized(1, 1, 1))
    assert Policy().pays(sized(1, 1, 1, 1)), "tiny files count as more than they have"
    assert not Policy().pays(sized(40 * MIB, 1, 1, 1)), "much would be rewritten for little"
    assert Policy().pays(sized(3 * TINY_BYTES, 1, 1, 1))
    assert not Policy().pays(sized(*[1] * (RUN_FILES_MAX + 1)))
    assert not Policy().pays(sized(*[RUN_BYTES_MAX // 3] * 4))


def test_a_long_list_is_planned_with_few_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: each look at the whole list costs a tenth of a millisecond for 20,000 files."""
    looks = [0]
    touched = Layers.touched

    def counted(layers: Layers, indexes: Sequence[int]) -> Any:
        looks[0] += 1
        return touched(layers, indexes)

    monkeypatch.setattr(Layers, "touched", counted)
    apart = [file((n, n), (10 * n, 10 * n + 9), TARGET_BYTES) for n in range(20_000)]
    tiny = [file((n + 20_000, n + 20_000), (n, n + 5), 1_000) for n in range(6_400)]
    assert sum(len(run) for run in plan([*apart, *tiny])) == 6_400
    assert looks[0] <= 20 * 6_400 / RUN_FILES_MAX
    looks[0] = 0
    mixed = [file((n, n), (n, n + 2), TARGET_BYTES if n % 2 else MIB) for n in range(4_000)]
    small = [f for run in plan(mixed) for f in run if f.bytes < FULL_BYTES]
    assert len(small) < 64
    assert looks[0] <= 10 * 4_000, "full files between small ones are found at once"


def test_l25_no_run_has_a_file_in_its_middle_that_is_left_out() -> None:
    """An operator wants merged what was there before; meanwhile some of it was merged with what came later.

    The deletes in that file would be thought to have nothing below them, and be dropped while the rows stay.
    """
    older, newer = file((0, 4), (0, 100)), file((8, 9), (200, 300))
    merged = file((5, 20), (0, 100))
    assert plan([older, newer], Policy(RUN_BYTES_MAX)) == [(older, newer)]
    assert plan([older, newer], Policy(RUN_BYTES_MAX), others=[merged]) == []
    assert plan([older, newer], Policy(RUN_BYTES_MAX), others=[file((10, 20), (0, 100))]) == [(older, newer)]
    assert plan([older, newer], Policy(RUN_BYTES_MAX), others=[file((5, 20), (400, 500))]) == [(older, newer)]
