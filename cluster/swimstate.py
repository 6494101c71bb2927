"""What SWIM's machine keeps of others, and what it counts (values only). Owned by `cluster.swim`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.members import Member


@dataclass(slots=True)
class Suspicion:
    """How long a suspect has left to be refuted: the more members accuse it independently, the shorter (Lifeguard)."""

    started: float
    shortest: float
    longest: float
    wanted: int
    accusers: set[str] = field(default_factory=set)  # at most wanted + 1

    def confirm(self, accuser: str) -> bool:
        """Whether this is news: another accuser, and more are wanted."""
        if accuser in self.accusers or len(self.accusers) > self.wanted:
            return False
        self.accusers.add(accuser)
        return True

    @property
    def ends_at(self) -> float:
        if not self.wanted:
            return self.started + self.shortest
        share = math.log(len(self.accusers)) / math.log(self.wanted + 1)
        return self.started + max(self.shortest, self.longest - share * (self.longest - self.shortest))


@dataclass(slots=True)
class SwimCounters:
    """What has happened, for metrics. Read by any thread, written by the driver's."""

    packets_in: int = 0
    packets_out: int = 0
    refused: int = 0
    probes: int = 0
    probes_failed: int = 0
    suspicions: int = 0
    refutations: int = 0
    deaths: int = 0
    stalls: int = 0


@dataclass(slots=True)
class Peer:
    """What is believed of another member."""

    member: Member
    meta: bytes
    changed_at: float
    suspicion: Suspicion | None = None


@dataclass(slots=True)
class Probe:
    name: str
    address: str
    incarnation: int
    indirect: bool = False
    nacks_wanted: int = 0
    nacks: int = 0
    stream_acked: bool = False


@dataclass(slots=True)
class Relay:
    """A ping under way for ``asker``, who calls it ``sequence``."""

    asker: str
    sequence: int
