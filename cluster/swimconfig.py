"""The settings of SWIM and what follows from them. Values and arithmetic only; `cluster.swim` obeys them.

The defaults are those of hashicorp/memberlist for a LAN; `FAST` is for tests on one machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class SwimConfig:
    """All times in seconds."""

    probe_interval: float = 1.0
    probe_timeout: float = 0.5
    """How long a direct ping may take before others are asked to try; a relayed ping has as long."""
    indirect_checks: int = 3
    suspicion_mult: int = 4
    suspicion_max_timeout_mult: int = 6
    retransmit_mult: int = 4
    gossip_interval: float = 0.2
    gossip_nodes: int = 3
    gossip_to_the_dead: float = 30.0
    push_pull_interval: float = 30.0
    reconnect_interval: float = 30.0
    """How often a dead member is tried again: what makes two sides of a healed fault find each other."""
    awareness_max: int = 8
    packet_bytes_max: int = 1400
    stream_timeout: float = 10.0
    tombstone: float = 24 * 3600.0
    """How long a dead or left member is remembered."""
    meta_interval: float = 1.0
    """A member's meta is told to others at most this often."""

    def suspicion_min(self, live: int) -> float:
        """How long a suspicion lasts that enough members share."""
        return self.suspicion_mult * max(1.0, math.log10(max(1, live))) * self.probe_interval

    def confirmations(self, live: int) -> int:
        """Further accusers that shorten a suspicion to its minimum; 0 when there are not that many members."""
        wanted = self.suspicion_mult - 2
        return wanted if live - 2 >= wanted else 0

    def transmissions(self, live: int) -> int:
        """How often each member sends one broadcast."""
        return self.retransmit_mult * math.ceil(math.log10(live + 1))

    def push_pull_scaled(self, live: int) -> float:
        """Above 32 members each takes part in fewer full exchanges."""
        if live <= 32:
            return self.push_pull_interval
        return self.push_pull_interval * (math.ceil(math.log2(live) - math.log2(32)) + 1.0)


FAST: Final = SwimConfig(
    probe_interval=0.2,
    probe_timeout=0.1,
    gossip_interval=0.04,
    gossip_to_the_dead=2.0,
    push_pull_interval=2.0,
    reconnect_interval=1.0,
    stream_timeout=2.0,
    meta_interval=0.05,
)
"""For tests on one machine: a crash is known after about a second, and a busy machine may accuse the living."""
