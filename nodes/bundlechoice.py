"""Which bundles of a shard that this process owns to merge next, and what is remembered for that (FORMAT F18).

`storage.bundleplan` chooses; this hands it what it must know. Driven by `nodes.compaction`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from storage.bundleplan import Known, bundles_of, made_by, plan_bundles
from storage.deletes import waiting_files
from storage.store import bundles_folder

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from storage.bundleplan import BundleSlices
    from storage.objects import ObjectStore
    from storage.schema import DataFile
    from storage.shard import Shard

BundleSizes: TypeAlias = Callable[[int], Mapping[str, int]]
"""The sizes of a Log's bundles, by path. Blocking."""


def bundle_sizes(store: ObjectStore) -> BundleSizes:
    """By listing them."""

    def listed(log_id: int) -> Mapping[str, int]:
        folder = bundles_folder(log_id)
        return {f"{folder}/{item.name}": item.size for item in store.list_all(folder)}

    return listed


def no_sizes(log_id: int) -> Mapping[str, int]:
    """Where it does not matter what room rows take that nothing names any more."""
    return {}


@dataclass(slots=True)
class _Look:
    """What was seen of a shard's bundles: by which Checkpoint, since when, and how eagerly nothing was found."""

    checkpoint_seq: int = -1
    since: float = 0.0
    nothing_found: set[bool] = field(default_factory=set)
    sizes: Mapping[str, int] = field(default_factory=dict)
    made_by: dict[str, int] = field(default_factory=dict)


class BundleChoice:
    """`chosen`, then `made` when they have been merged."""

    def __init__(self, sizes: BundleSizes, quiet_seconds: float) -> None:
        """After ``quiet_seconds`` without change what is there is tidied up, as if it had been asked for."""
        self._sizes = sizes
        self._quiet_seconds = quiet_seconds
        self._looks: dict[int, _Look] = {}
        self._merges = 0

    def forget(self, here: Collection[int]) -> None:
        """Look at everything anew, of the Logs that are ``here``."""
        self._looks = {log_id: look for log_id, look in self._looks.items() if log_id in here}
        for look in self._looks.values():
            look.nothing_found.clear()

    def made(self, shard: Shard, merged: Iterable[DataFile], files: Iterable[DataFile]) -> None:
        """By one merge."""
        self._merges += 1
        old, new = ({file.path for file in some if file.is_slice} for some in (merged, files))
        self._looks[shard.log_id].made_by.update(made_by(self._merges, old, new))

    async def chosen(
        self, shard: Shard, upto: Mapping[tuple[int, int, int], int] | None, failed: Collection[str]
    ) -> list[BundleSlices]:
        """Those of the next merge, none if nothing is worth it.

        An operator wants all merged of which the order is below ``upto``, by (log id, table id, partition id). Not
        those that have ``failed``, nor rows of tables that are dropped: their files are let go as they are (L31).
        """
        state, look = shard.state, self._looks.setdefault(shard.log_id, _Look())
        if look.checkpoint_seq != state.checkpoint_seq:
            look.checkpoint_seq, look.since = state.checkpoint_seq, time.monotonic()
            look.nothing_found.clear()
        is_asked_for = upto is not None or time.monotonic() - look.since >= self._quiet_seconds
        if is_asked_for in look.nothing_found:
            return []
        files = [file for file in state.all_files() if file.is_slice and file.table_id not in state.drops]
        tables = {table_id: shard.tables(table_id) for table_id in {file.table_id for file in files}}
        bundles = bundles_of(files, {table_id: table for table_id, table in tables.items() if table is not None})
        bundles = [one for one in bundles if one.path not in failed and _is_below(one, shard.log_id, upto)]
        if any(one.path not in look.sizes for one in bundles):
            look.sizes = await asyncio.to_thread(self._sizes, shard.log_id)
        look.made_by = {one.path: look.made_by[one.path] for one in bundles if one.path in look.made_by}
        known = Known(
            look.sizes,
            {key: waiting_files(pending) for key, pending in state.pending().items()},
            {key: part.files for key, part in state.partitions.items() if part.files},
            look.made_by,
            is_asked_for,
        )
        found = plan_bundles(bundles, known)
        if not found and upto is None:
            look.nothing_found.add(is_asked_for)
        return found


def _is_below(bundle: BundleSlices, log_id: int, upto: Mapping[tuple[int, int, int], int] | None) -> bool:
    return upto is None or all(
        one.order_high < upto.get((log_id, one.table_id, one.partition), 0) for one in bundle.slices
    )
