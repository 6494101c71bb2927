"""The engine of a node, from its settings. Used by `nodes.embedded` and `nodes.query.node`."""

from __future__ import annotations

import dataclasses
import shutil
from typing import TYPE_CHECKING, Final

from engine.engine import Engine, EngineLimits
from engine.ladder import LadderLimits
from nodes.slowlog import slow_log
from nodes.status import FileCacheStatus
from nodes.storeoptions import s3_options

if TYPE_CHECKING:
    from engine.ladder import Workers
    from nodes.settings_model import Budgets, Settings

TAILS_BYTES_MAX: Final = 256 * 2**20
"""Sorted copies of memtables that are kept for queries; never more than the memtables themselves may have."""


def new_engine(settings: Settings, budgets: Budgets, store_url: str, workers: Workers | None) -> Engine:
    """An engine with an empty spill folder, whose ``workers`` are. Nothing of DataFusion is imported before its first
    statement."""
    spill = settings.spill_dir
    if not settings.query.file_cache_bytes_max:
        shutil.rmtree(settings.file_cache_dir, ignore_errors=True)
    shutil.rmtree(spill, ignore_errors=True)
    spill.mkdir(parents=True, exist_ok=True)
    limits = EngineLimits(
        memory_bytes=budgets.query_bytes,
        query_bytes_max=settings.query.memory_max or 0,
        spill_folder=spill,
        spill_bytes_max=settings.query.spill_bytes_max,
        query_seconds=settings.query.timeout,
        target_partitions=settings.target_partitions,
        queries_max=settings.query.queries_max,
        waiting_max=settings.query.waiting_max,
        wait_seconds=settings.query.wait_seconds,
        tails_bytes_max=min(TAILS_BYTES_MAX, budgets.memtable_bytes),
        cache_folder=settings.file_cache_dir,
        cache_bytes_max=settings.query.file_cache_bytes_max,
        ladder=LadderLimits(settings.ray.query_bytes_min, settings.ray.shuffle_bytes_min, settings.ray.task_bytes),
    )
    return Engine(store_url, limits, s3_options(settings), slow_log(settings), workers)


def file_cache_status(engine: Engine) -> FileCacheStatus:
    """What the engine's cache of a remote store's files holds and has done."""
    return FileCacheStatus(**dataclasses.asdict(engine.cache_counters))
