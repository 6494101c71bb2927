"""Merges of a shard's files where tests want them: on the node's own executor, without a process (LOG L21, L25)."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from storage.bundlemerge import bundle_job, changes_of, merge_bundles
from storage.bundleplan import bundles_of
from storage.merge import change_of, merge_files, merge_job, names_wanted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from storage.bundleplan import BundleSlices
    from storage.filechange import FileChange
    from storage.schema import DataFile
    from storage.shard import Shard
    from tests.harness.storagenode import StorageNode

SCRATCH = Path(tempfile.gettempdir())


async def merged(node: StorageNode, shard: Shard, files: Sequence[DataFile]) -> tuple[FileChange, tuple[str, ...]]:
    """A merge of a run that is done and not committed, and the names that are reserved for it."""
    table = shard.tables(files[0].table_id)
    assert table is not None
    names = shard.reserve_names(table, names_wanted(files))
    state = shard.state.partitions[table.id, files[0].partition]
    job = merge_job(table, state, tuple(files), names)
    loop = asyncio.get_running_loop()
    added = await loop.run_in_executor(node.executor, merge_files, node.store, job, SCRATCH)
    return change_of(job, added), names


def _bundles(shard: Shard) -> list[BundleSlices]:
    tables = {table_id: shard.tables(table_id) for table_id, _ in shard.state.partitions}
    return bundles_of(shard.state.all_files(), {n: table for n, table in tables.items() if table is not None})


async def merge_all(node: StorageNode, shard: Shard) -> list[bool]:
    """Each partition's files into one, all bundles into one, in one Checkpoint; which of these changes stand."""
    changes: list[FileChange] = []
    reserved: list[str] = []
    try:
        if len(bundles := _bundles(shard)) > 1:
            job = bundle_job(bundles, shard.tables, shard.state.partitions, shard.reserve_names)
            reserved += [*job.names, *(name for run in job.runs for name in run.names)]
            loop = asyncio.get_running_loop()
            changes += changes_of(job, await loop.run_in_executor(node.executor, merge_bundles, node.store, job))
        for state in list(shard.state.partitions.values()):
            if len(state.files) > 1 and not (len(bundles) > 1 and any(file.is_slice for file in state.files)):
                change, names = await merged(node, shard, state.files)
                changes.append(change)
                reserved += names
        return await shard.replace_files(changes) if changes else []
    finally:
        shard.release_names(reserved)
