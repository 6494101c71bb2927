"""`runnel store skip`: an operator gives up one object that cannot be read, so that its shard opens again (LOG L3).

Runs on a node's folder while the node is stopped. The decision is recorded in the Log itself, and a Checkpoint
follows at once, so that later replays do not meet the object again.
"""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from nodes import logs
from nodes.exitcodes import ExitCode, exit_code
from nodes.lockfile import LockFile
from nodes.settings import load
from nodes.storeoptions import s3_options
from storage.budget import MemoryBudget
from storage.catalog import Catalog
from storage.catalogstate import CatalogLimits
from storage.entries import record_entry
from storage.errors import StorageError
from storage.frames import EntryKind
from storage.log import Identity
from storage.objects import open_store
from storage.shard import Shard, ShardLimits
from storage.store import CATALOG_LOG, open_identity

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from nodes.settings_model import Settings
    from storage.objects import ObjectStore


def skip(config: Path | None, flags: Mapping[str, object], log_id: int, sequence: int) -> ExitCode:
    """Open Log ``log_id`` without its object ``sequence``, record that, checkpoint, and close."""
    settings = load(config, flags).settings
    logs.configure(settings.logs, settings.node_name)
    try:
        with LockFile(settings.data_dir):
            asyncio.run(_skip(settings, log_id, sequence))
    except StorageError as error:
        sys.stderr.write(f"nothing was skipped: {error}\n")
        return exit_code(error)
    sys.stdout.write(f"Log {log_id} is open again without object {sequence}; the rows in it are given up.\n")
    return ExitCode.OK


async def _skip(settings: Settings, log_id: int, sequence: int) -> None:
    with ThreadPoolExecutor(4) as executor:
        store = open_store(settings.store_url, s3_options(settings))
        try:
            await _skip_in(store, settings, executor, log_id, sequence)
        finally:
            store.close()


async def _skip_in(
    store: ObjectStore, settings: Settings, executor: ThreadPoolExecutor, log_id: int, sequence: int
) -> None:
    failures: list[BaseException] = []
    owner = open_identity(store).id.bytes
    node = uuid.uuid4().bytes
    catalog = Catalog(store, Identity(owner, CATALOG_LOG, node), executor, CatalogLimits(), failures.append)
    record = {"sequence": sequence, "skipped_at_ms": time.time_ns() // 1_000_000}
    entry = record_entry(EntryKind.SKIP, record, base_offset=sequence)
    is_catalog = log_id == CATALOG_LOG
    try:
        await catalog.open([], frozenset({sequence}) if is_catalog else frozenset())
        if is_catalog:
            await _record(catalog, entry)
            return
        shard = Shard(
            store, Identity(owner, log_id, node), catalog.table_by_id, MemoryBudget(settings.budgets().memtable_bytes),
            executor, ShardLimits(), failures.append,
        )  # fmt: skip
        try:
            await shard.open(frozenset({sequence}))
            await _record(shard, entry)
        finally:
            await shard.close()
    finally:
        await catalog.close()


async def _record(owner: Catalog | Shard, entry: object) -> None:
    (future,) = owner.driver.append([entry], [None])  # type: ignore[list-item]
    await future
    await owner.checkpoint()
