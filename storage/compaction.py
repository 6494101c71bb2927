"""Which files of a partition to merge next: pure arithmetic over what a Checkpoint says of them (LOG L25).

`plan` is driven by `nodes.compaction`; `storage.merge` does what it says. The files of a partition are layers: each
stands for a range of order and a range of time. Two that share a moment never share an order: that is what lets rows
with the same key be folded layer by layer, and what every run that is planned here keeps true.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    import numpy.typing as npt

    from storage.schema import DataFile

    Ints = npt.NDArray[np.int64]
    Hull = tuple[int, int, int, int]
    """Inclusive ranges: least and greatest order, least and greatest time."""

TARGET_BYTES: Final = 128 * 2**20
"""What a file should have: enough for long scans, little enough to be encoded and put at once."""
FULL_BYTES: Final = TARGET_BYTES // 2
"""A file of at least so much is merged again only where it overlaps others."""
TINY_BYTES: Final = 2**20
"""Files below this count as so large: to open one costs as much as to read this."""
RUN_LAYERS_MIN: Final = 4
"""Fewer are not worth a merge: each row is rewritten about once for each fourfold of what it lies in."""
RUN_FILES_MAX: Final = 64
"""Files that are read at once."""
RUN_BYTES_MAX: Final = 8 * TARGET_BYTES
"""Of one merge: at most so much is written under names that no Checkpoint has yet."""
DELETE_BYTES_MAX: Final = 32 * 2**20
"""So much is rewritten for the sake of its deletes alone, however few they are."""
ROOM_PARTS: Final = 8
"""Into so many files at least a limit by bytes is divided, so that an eighth of what it allows goes at once (L36)."""
MOMENTS_MAX: Final = 64
"""Of those where files overlap, so many are looked at in one plan."""


@dataclass(frozen=True, slots=True)
class Layers:
    """The files of one partition in ascending order, and their inclusive ranges as columns."""

    files: tuple[DataFile, ...]
    orders: tuple[Ints, Ints]
    times: tuple[Ints, Ints]
    is_full: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, files: Iterable[DataFile]) -> Layers:
        """Sorted by order; those of one merge, which share an order, by time."""
        ordered = tuple(sorted(files, key=lambda f: (f.order_low, f.order_high, f.time_low, f.path)))

        def column(values: Iterable[int]) -> Ints:
            return np.fromiter(values, dtype=np.int64, count=len(ordered))

        orders = column(f.order_low for f in ordered), column(f.order_high for f in ordered)
        times = column(f.time_low for f in ordered), column(f.time_high for f in ordered)
        return cls(ordered, orders, times, column(f.bytes for f in ordered) >= FULL_BYTES)

    def is_run(self, indexes: Sequence[int]) -> bool:
        """Whether these may be merged: no other file shares both a moment and an order with all of them together.

        L25: with a layer left out that lies between them, what it has written would be hidden by older values, which
        take the highest order of their run.
        """
        between = self.touched(indexes)
        between[indexes] = False
        return not bool(np.any(between))

    def closed(self, indexes: Sequence[int], count_max: int) -> list[int]:
        """``indexes`` with every file that keeps them from being a run; not all if they are very many."""
        chosen = list(indexes)
        while len(chosen) <= count_max:
            touched = [int(i) for i in np.flatnonzero(self.touched(chosen))]
            if len(touched) == len(chosen):
                break
            chosen = touched
        return chosen

    def with_older(self, indexes: Sequence[int], count_max: int) -> list[int]:
        """``indexes`` with every file below that shares a moment with any of them; not all if they are very many."""
        chosen = list(indexes)
        while len(chosen) <= count_max:
            older = self.orders[0] <= np.max(self.orders[1][chosen])
            older &= (self.times[0] <= np.max(self.times[1][chosen])) & (self.times[1] >= np.min(self.times[0][chosen]))
            found = [int(i) for i in np.flatnonzero(older)]
            if len(found) == len(chosen):
                break
            chosen = found
        return chosen

    def touched(self, indexes: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Which files, these among them, share a moment and an order with all of these together."""
        touched = np.ones(len(self.files), dtype=np.bool_)
        for low, high in (self.orders, self.times):
            touched &= (low <= np.max(high[indexes])) & (high >= np.min(low[indexes]))
        return touched


@dataclass(frozen=True, slots=True)
class Policy:
    """How much a merge may cost for what it gives.

    A run of at most ``eager_bytes`` pays from two layers on, also if most of it is rewritten for little. ``files_max``
    bounds what is read at once: a file of a wide table takes more memory. Nor has a run more than ``bytes_max``.
    """

    eager_bytes: int = 0
    files_max: int = RUN_FILES_MAX
    bytes_max: int = RUN_BYTES_MAX

    def pays(self, files: Sequence[DataFile]) -> bool:
        """Whether a merge pays: several layers, of which none has most of the bytes, or it is rewritten for little.

        Files of one earlier merge, which share an order, are one layer. Slices of bundles are merged more cheaply with
        each other, until they have grown: they come along, but for them alone nothing is merged here.
        """
        layers: defaultdict[tuple[int, int], int] = defaultdict(int)
        for file in files:
            layers[file.order_low, file.order_high] += max(file.bytes, TINY_BYTES)
        total, own = sum(layers.values()), {(f.order_low, f.order_high) for f in files if not f.is_slice}
        if len(layers) < 2 or not own or len(files) > self.files_max or total > RUN_BYTES_MAX:
            return False
        if sum(file.bytes for file in files) > self.bytes_max:
            return False
        return total <= self.eager_bytes or (len(own) >= RUN_LAYERS_MIN and 2 * max(layers.values()) <= total)


def bytes_of_runs(room: int | None) -> int:
    """What a run may have of a partition that may have ``room`` bytes together with others (None: as many as come).

    Its oldest files go whole, when it has more: one that has most of them would take all but the newest rows with it.
    """
    part = RUN_BYTES_MAX if room is None else room // ROOM_PARTS
    return RUN_BYTES_MAX if part >= TARGET_BYTES else part


def plan(
    files: Iterable[DataFile],
    policy: Policy = Policy(),
    waiting: Collection[str] = (),
    others: Collection[DataFile] = (),
) -> list[tuple[DataFile, ...]]:
    """Runs of one partition's files, each worth a merge by itself; no file is in two of them.

    In the files ``waiting`` (paths) a range delete is still to be carried out. The ``others`` of the partition are not
    to be merged now; no run has one of them in its middle (L25).
    """
    layers = Layers.of(files)
    found = (
        _apart(layers, _small_runs(layers, policy))
        or _apart(layers, _deep_runs(layers, policy))
        or _apart(layers, _delete_runs(layers, policy, waiting))
    )
    runs = [tuple(layers.files[i] for i in run) for run in found]
    runs = [run for run in runs if not all(file.is_slice for file in run)]  # `storage.bundleplan` says what of these
    return [run for run in runs if not any(_cross(_hull(run), _hull([other])) for other in others)]


def is_oldest(run: Sequence[DataFile], files: Iterable[DataFile]) -> bool:
    """Whether none of the partition's ``files`` below the run shares a moment with it: then its deletes are done (L25).

    That stays so: files that come later are newer, and merges of older ones have rows only where these had.
    """
    order, _, low, high = _hull(run)
    return not any(f.order_high < order and f.time_low <= high and f.time_high >= low for f in files)


def is_run_beside(run: Sequence[DataFile], files: Iterable[DataFile]) -> bool:
    """Whether ``run`` may be merged: no other of the ``files`` shares both a moment and an order with it (L25)."""
    hull, inside = _hull(run), {file.path for file in run}
    return not any(file.path not in inside and _cross(hull, _hull([file])) for file in files)


def are_apart(runs: Iterable[Sequence[DataFile]]) -> bool:
    """Whether of runs of one partition no two share a moment and an order when they are merged (L25)."""
    return not any(_cross(a, b) for a, b in itertools.combinations(map(_hull, runs), 2))


def _apart(layers: Layers, runs: Iterable[list[int]]) -> list[list[int]]:
    """Those that are runs also when the others have been merged: of two whose hulls cross, one waits."""
    found: list[list[int]] = []
    hulls: list[Hull] = []
    for run in runs:
        hull = _hull([layers.files[i] for i in run])
        if not any(_cross(hull, other) for other in hulls):
            found.append(run)
            hulls.append(hull)
    return found


def _hull(files: Sequence[DataFile]) -> Hull:
    """What all of a run together reach over."""
    orders = min(f.order_low for f in files), max(f.order_high for f in files)
    return (*orders, min(f.time_low for f in files), max(f.time_high for f in files))


def _cross(a: Hull, b: Hull) -> bool:
    return a[0] <= b[1] and b[0] <= a[1] and a[2] <= b[3] and b[2] <= a[3]


def _small_runs(layers: Layers, policy: Policy) -> Iterator[list[int]]:
    """Files that are not full, in order: from the oldest on the longest runs that pay."""
    small = [i for i, file in enumerate(layers.files) if file.bytes < FULL_BYTES]
    at = 0
    while at < len(small):
        run = _longest(layers, small[at : at + policy.files_max], policy)
        if run:
            yield run
        at += len(run) or 1


def _longest(layers: Layers, indexes: Sequence[int], policy: Policy) -> list[int]:
    """The longest beginning of ``indexes``, which are not full, that may be merged and pays; empty if none does."""
    low, high = 1, len(indexes)
    while low < high:  # a full file that is between some of them is between more of them too
        middle = (low + high + 1) // 2
        is_open = not np.any(layers.touched(indexes[:middle]) & layers.is_full)
        low, high = (middle, high) if is_open else (low, middle - 1)
    for length in range(low, 1, -1):
        run = indexes[:length]
        if policy.pays([layers.files[i] for i in run]) and layers.is_run(run):
            return list(run)
    return []


def _deep_runs(layers: Layers, policy: Policy) -> Iterator[list[int]]:
    """Where files overlap in time, the most first: afterwards they stand one beside the other."""
    taken: set[int] = set()
    for deep in _deepest(layers):
        sizes = np.cumsum([layers.files[i].bytes for i in reversed(deep)])
        fitting = int(np.searchsorted(sizes, RUN_BYTES_MAX, side="right"))
        for length in range(min(fitting, policy.files_max), 1, -1):
            run = layers.closed(deep[-length:], policy.files_max)  # the newest: what is older has been merged before
            if taken.isdisjoint(run) and policy.pays([layers.files[i] for i in run]) and layers.is_run(run):
                taken.update(run)
                yield run
                break


def _delete_runs(layers: Layers, policy: Policy, waiting: Collection[str]) -> Iterator[list[int]]:
    """Files ``waiting`` by themselves; and those with deletes as rows, each with everything below them.

    Afterwards what was deleted is gone, and so are the deletes.
    """
    taken = {index for index, file in enumerate(layers.files) if file.path in waiting}
    yield from ([index] for index in sorted(taken))
    for index in np.flatnonzero([file.has_ops for file in layers.files])[::-1]:
        run = layers.with_older([int(index)], policy.files_max)
        size = sum(layers.files[i].bytes for i in run)
        fits = len(run) <= policy.files_max and size <= max(policy.eager_bytes, DELETE_BYTES_MAX)
        if fits and taken.isdisjoint(run) and layers.is_run(run):
            taken.update(run)
            yield run


def _deepest(layers: Layers) -> list[list[int]]:
    """The files, in order, of each moment that more of them share than those before and after it; most first."""
    low, high = layers.times
    edges = sorted([(t, 0, i) for i, t in enumerate(low.tolist())] + [(t, 1, i) for i, t in enumerate(high.tolist())])
    active: set[int] = set()
    moments: list[list[int]] = []
    grown = False
    for _, is_end, index in edges:
        if not is_end:
            active.add(index)
            grown = True
            continue
        if grown and len(active) > 1:
            moments.append(sorted(active))
        active.discard(index)
        grown = False
    return sorted(moments, key=len, reverse=True)[:MOMENTS_MAX]
