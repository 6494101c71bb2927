"""Folded tails, kept between queries: a tail that only grew is not folded again from its start.

`engine.engine` asks before it plans. For each partition two folded batches are kept, a large older and a small
newer one; new rows go into the newer one until it is worth merging both. Offsets are given once and never
renumbered (LOG L24), so a tail that begins at the same offset begins with the same rows.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from storage.deletes import without_deleted
from storage.fold import fold, fold_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from storage.schema import PartitionSnapshot, Table, TailBatch

NEWER_ROWS_MIN: Final = 8_192
"""Newer rows are not merged into the older ones before they are this many."""
NEWER_SHARE_MAX: Final = 0.25
"""Nor before they are this share of the older ones: so each row is merged a few times only."""


@dataclass(frozen=True)
class FoldedTail:
    """The rows of one partition's tail with offsets in [first, end), as at most two layers, older first."""

    version: int
    first: int
    end: int
    layers: tuple[pa.RecordBatch, ...]

    @property
    def bytes(self) -> int:
        return sum(layer.get_total_buffer_size() for layer in self.layers)


class TailCache:
    """Folded tails by (table, partition), the least recently used let go over `bytes_max`. Thread safe."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._kept: OrderedDict[tuple[int, int], FoldedTail] = OrderedDict()
        self._lock = threading.Lock()

    def layers(self, table: Table, part: PartitionSnapshot) -> tuple[pa.RecordBatch, ...]:
        """The partition's tail as folded layers without empty ones, older first. Blocking: folds what is new."""
        key = (table.id, part.partition)
        if not part.tail:
            return ()
        with self._lock:
            kept = self._kept.get(key)
        folded = extend(table, kept, part.tail)
        if folded is not kept:
            self._keep(key, folded)
        return tuple(layer for layer in folded.layers if layer.num_rows)

    def _keep(self, key: tuple[int, int], folded: FoldedTail) -> None:
        with self._lock:
            self._kept[key] = folded
            self._kept.move_to_end(key)
            total = sum(entry.bytes for entry in self._kept.values())
            while total > self._bytes_max and self._kept:
                total -= self._kept.popitem(last=False)[1].bytes


def extend(table: Table, kept: FoldedTail | None, tail: Sequence[TailBatch]) -> FoldedTail:
    """Fold `tail`, using what is `kept` of it if it begins at the same offset and goes at least as far."""
    first = tail[0].first_offset
    end = tail[-1].end
    if kept is None or kept.version != table.version or kept.first != first or kept.end > end:
        return FoldedTail(table.version, first, end, (fold(table, tail),))
    if kept.end == end:
        return kept
    fresh = _after(tail, kept.end)
    older = without(table, kept.layers[0], fresh)
    newer = fold(table, fresh, kept.layers[1] if len(kept.layers) > 1 else None)
    if newer.num_rows < max(NEWER_ROWS_MIN, int(older.num_rows * NEWER_SHARE_MAX)):
        return FoldedTail(table.version, first, end, (older, newer))
    both = [pa.Table.from_batches([layer]) for layer in (older, newer)]
    merged = fold_rows(table, pa.concat_tables(both, promote_options="default"))
    return FoldedTail(table.version, first, end, (merged,))


def without(table: Table, layer: pa.RecordBatch, newer: Sequence[TailBatch]) -> pa.RecordBatch:
    """A folded layer without the rows that range deletes among ``newer`` take."""
    deletes = [(batch.first_offset, batch.delete) for batch in newer if batch.delete is not None]
    if not deletes or not layer.num_rows:
        return layer
    rows = without_deleted(table, pa.Table.from_batches([layer]), deletes)
    return rows.combine_chunks().to_batches()[0] if rows.num_rows else layer.slice(0, 0)


def _after(tail: Sequence[TailBatch], offset: int) -> list[TailBatch]:
    """The batches from `offset` on, newest last."""
    fresh: list[TailBatch] = []
    for batch in reversed(tail):
        if batch.first_offset < offset:
            break
        fresh.append(batch)
    return fresh[::-1]
