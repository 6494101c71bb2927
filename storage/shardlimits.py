"""The bounds that a shard keeps, and what it counts. Values only; `storage.shard` uses them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ShardLimits:
    """When a checkpoint starts, and when appends are refused (L23): at twice any of the three."""

    checkpoint_bytes: int = 64 * 1024 * 1024
    checkpoint_seconds: float = 600.0
    checkpoint_objects: int = 20_000
    log_bytes: int = 256 * 1024 * 1024
    grace_seconds: float = 900.0
    replay_bytes_max: int = 0
    group_min_interval_seconds: float = 0.0


@dataclass(slots=True)
class ShardCounters:
    """What happened since the start, for metrics."""

    objects: int = 0
    rows: int = 0
    bytes: int = 0
    checkpoints: int = 0
    checkpoint_seconds: float = 0.0
    datafiles: int = 0
    collected: int = 0
