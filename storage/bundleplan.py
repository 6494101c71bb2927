"""Which bundles of a shard to merge next: pure arithmetic over what a Checkpoint says of their slices (LOG L25).

`nodes.compaction` drives it; `storage.bundlemerge` does what it says. A bundle is always rewritten whole: of each
partition the slices of all chosen bundles become one, where they are a run; where another layer stands between them
they stay as many, in as many bundles.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from storage.bundle import SLICE_BYTES_MAX, SLICE_ROWS_MAX
from storage.compaction import RUN_LAYERS_MIN, Layers, are_apart, is_oldest, is_run_beside

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from storage.schema import DataFile, Table

    Partition = tuple[int, int]

CELL_BYTES: Final = 8
"""What a value takes in memory, there or not."""
FULL_WEIGHT: Final = 8 * 2**20
"""A bundle of at least so much is merged again only where a partition has several slices in such bundles."""
JOB_WEIGHT_MAX: Final = 8 * FULL_WEIGHT
"""Of the bundles of one merge, which are in memory all at once."""
JOB_BUNDLES_MAX: Final = 64
TIER_WEIGHT: Final = 64 * 2**10
"""Smaller ones are as large as this: the lowest tier. Each tier is `RUN_LAYERS_MIN` times the one below it."""


STUCK: Final = 0
"""The merge of all bundles that could not be put together with others: with each other they cannot be either."""


@dataclass(frozen=True, slots=True)
class BundleSlices:
    """One bundle: the slices of it that are named, and what they take in memory."""

    path: str
    slices: tuple[DataFile, ...]
    weight: int

    @property
    def bytes(self) -> int:
        """Of what is named."""
        return sum(one.bytes for one in self.slices)

    @property
    def tier(self) -> int:
        """Bundles of one tier are merged together."""
        return (max(self.weight, TIER_WEIGHT) // TIER_WEIGHT).bit_length() // 2


@dataclass(frozen=True, slots=True)
class Known:
    """What else is to be known: objects' sizes, files with deletes to be carried out, partitions' files, and by which
    merge bundles were made: those of one are not worth another among themselves."""

    sizes: Mapping[str, int]
    waiting: Mapping[Partition, Collection[str]]
    files: Mapping[Partition, tuple[DataFile, ...]]
    made_by: Mapping[str, int]
    is_asked_for: bool = False


def made_by(number: int, merged: Collection[str], made: Collection[str]) -> dict[str, int]:
    """What is to be known of the bundles ``made`` of those ``merged`` (paths), by a merge with a number above 0."""
    is_stuck = 1 < len(merged) <= len(made)
    return dict.fromkeys(made, STUCK if is_stuck else number)


def bundles_of(files: Iterable[DataFile], tables: Mapping[int, Table]) -> list[BundleSlices]:
    """The bundles that ``files`` name, without those with rows of tables that are not known here as they are (L30)."""
    found: defaultdict[str, list[DataFile]] = defaultdict(list)
    for file in files:
        if file.is_slice:
            found[file.path].append(file)
    bundles = []
    for path, slices in found.items():
        if all(one.table_id in tables and one.schema_version <= tables[one.table_id].version for one in slices):
            columns = {column.storage_name for one in slices for column in tables[one.table_id].columns}
            weight = max(CELL_BYTES * sum(one.rows for one in slices) * len(columns), sum(one.bytes for one in slices))
            bundles.append(BundleSlices(path, tuple(slices), weight))
    return sorted(bundles, key=lambda one: one.path)


def plan_bundles(bundles: Sequence[BundleSlices], known: Known) -> list[BundleSlices]:
    """The bundles of the next merge; none if nothing is worth one."""
    needy = [one for one in bundles if _is_needy(one, known)]
    if needy:
        return _fitting(needy)
    with_deletes = _with_deletes(bundles, known)
    if _is_new(with_deletes, known):
        return with_deletes
    least = 2 if known.is_asked_for else RUN_LAYERS_MIN
    small = [one for one in bundles if one.weight < FULL_WEIGHT]
    tiers = [[one for one in small if one.tier == tier] for tier in sorted({one.tier for one in small})]
    together = [small] if known.is_asked_for else tiers
    together.append(_deepest([one for one in bundles if one.weight >= FULL_WEIGHT]))
    worth_it = (_fitting(chosen) for chosen in together if len(chosen) >= least)
    return next((chosen for chosen in worth_it if len(chosen) > 1 and _is_new(chosen, known)), [])


def runs_of(
    bundles: Iterable[BundleSlices], files: Mapping[Partition, tuple[DataFile, ...]]
) -> list[tuple[DataFile, ...]]:
    """What becomes of the slices of ``bundles``: each run becomes one slice; in the order of their partitions (L25)."""
    found: defaultdict[Partition, list[DataFile]] = defaultdict(list)
    for bundle in bundles:
        for one in bundle.slices:
            found[one.table_id, one.partition].append(one)
    return [run for key in sorted(found) for run in _runs(found[key], files[key])]


def is_grown(run: Sequence[DataFile]) -> bool:
    """Whether so many rows are better off in a file of their own."""
    return sum(one.rows for one in run) > SLICE_ROWS_MAX or sum(one.bytes for one in run) > SLICE_BYTES_MAX


def _runs(slices: Sequence[DataFile], files: Sequence[DataFile]) -> Iterator[tuple[DataFile, ...]]:
    """All in one, else the longest that follow each other, else each by itself: a slice alone is always a run."""
    if len(slices) == 1:
        yield tuple(slices)
        return
    ordered = sorted(slices, key=lambda f: (f.order_low, f.order_high, f.time_low, f.path))
    if is_run_beside(ordered, files):
        yield tuple(ordered)
        return
    runs: list[list[DataFile]] = []
    for one in ordered:
        if runs and is_run_beside([*runs[-1], one], files):
            runs[-1].append(one)
        else:
            runs.append([one])
    yield from map(tuple, runs if are_apart(runs) else [[one] for one in ordered])


def _is_needy(bundle: BundleSlices, known: Known) -> bool:
    """A delete is to be carried out in it, or most of the object is of rows that nothing names any more."""
    if 2 * bundle.bytes < known.sizes.get(bundle.path, 0):
        return True
    return any(bundle.path in known.waiting.get((one.table_id, one.partition), ()) for one in bundle.slices)


def _with_deletes(bundles: Sequence[BundleSlices], known: Known) -> list[BundleSlices]:
    """Bundles with deletes as rows that a merge is rid of: with everything below them, if that is all in bundles."""
    by_path = {one.path: one for one in bundles}
    for bundle in bundles:
        for one in bundle.slices:
            if not one.has_ops:
                continue
            layers = Layers.of(known.files[one.table_id, one.partition])
            run = [layers.files[i] for i in layers.with_older([layers.files.index(one)], JOB_BUNDLES_MAX)]
            chosen = [by_path[path] for path in sorted({f.path for f in run}) if path in by_path]
            if {f.path for f in run} <= by_path.keys() and is_oldest(run, layers.files) and _fitting(chosen) == chosen:
                return chosen
    return []


def _fitting(bundles: Sequence[BundleSlices]) -> list[BundleSlices]:
    """The first of them, as many as one merge takes; at least one."""
    chosen: list[BundleSlices] = []
    weight = 0
    for one in bundles:
        weight += one.weight
        if chosen and (weight > JOB_WEIGHT_MAX or len(chosen) >= JOB_BUNDLES_MAX):
            break
        chosen.append(one)
    return chosen


def _is_new(chosen: Sequence[BundleSlices], known: Known) -> bool:
    """Whether they are not all of one merge: that has done what can be done."""
    made_by = {known.made_by.get(one.path, -1) for one in chosen}
    return bool(chosen) and (len(made_by) > 1 or made_by == {-1})


def _deepest(bundles: Sequence[BundleSlices]) -> list[BundleSlices]:
    """Those in which the partition has slices that has the most."""
    found: defaultdict[Partition, list[BundleSlices]] = defaultdict(list)
    for bundle in bundles:
        for one in bundle.slices:
            found[one.table_id, one.partition].append(bundle)
    return max(found.values(), key=len, default=[])
