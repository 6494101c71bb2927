"""A shard's limits from the settings, and its row in a status. Used by `nodes.embedded` and `nodes.ingest`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nodes.status import LogStatus
from storage.shard import ShardLimits

if TYPE_CHECKING:
    from nodes.settings_model import Settings
    from storage.budget import MemoryBudget
    from storage.shard import Shard

LOG_BYTES_FACTOR: Final = 4
"""A Log may grow to so many times `log.checkpoint_bytes` before appends wait: bulk loads outrun a checkpoint."""


def shard_limits(settings: Settings, budget: MemoryBudget, logs: int) -> ShardLimits:
    """The limits of each of ``logs`` shards that share one memory budget."""
    given = settings.log
    return ShardLimits(
        checkpoint_bytes=given.checkpoint_bytes,
        checkpoint_seconds=given.checkpoint_age,
        checkpoint_objects=given.checkpoint_objects,
        log_bytes=LOG_BYTES_FACTOR * given.checkpoint_bytes,
        grace_seconds=given.collect_grace,
        group_min_interval_seconds=given.group_min_interval,
        replay_bytes_max=min(2 * given.checkpoint_bytes, budget.bytes_max // (2 * logs)),
    )


def log_status(shard: Shard) -> LogStatus:
    """Where a shard's Log stands, without I/O."""
    core, state = shard.driver.core, shard.state
    return LogStatus(
        id=shard.log_id, name=f"shard {shard.log_id}", state=core.phase.value, epoch=core.epoch,
        sequence=core.next_seq - 1, covered=state.k, checkpoint_sequence=state.checkpoint_seq,
        bytes_above_checkpoint=state.log_bytes_above_k, objects_above_checkpoint=state.objects_above_k,
    )  # fmt: skip
