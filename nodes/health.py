"""What a node says of its health: the phase of its life, and the reasons why it is not ready.

Pure state without I/O or clock. `nodes.node` moves it, the parts of the node report to it, the HTTP door asks.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping


class Phase(enum.StrEnum):
    """Where a node is in its life."""

    STARTING = "starting"
    REPLAYING = "replaying"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


MOVES: Final[dict[Phase, frozenset[Phase]]] = {
    Phase.STARTING: frozenset({Phase.REPLAYING, Phase.READY, Phase.DRAINING, Phase.FAILED}),
    Phase.REPLAYING: frozenset({Phase.READY, Phase.DRAINING, Phase.FAILED}),
    Phase.READY: frozenset({Phase.DRAINING, Phase.FAILED}),
    Phase.DRAINING: frozenset({Phase.FAILED}),
    Phase.FAILED: frozenset(),
}
"""Which phase may follow which; a phase may also be announced again with another reason."""


@dataclass(frozen=True, slots=True)
class HealthReport:
    """One look at a node's health. ``reasons`` maps a part of the node to what is wrong with it."""

    phase: Phase
    reasons: Mapping[str, str]
    is_live: bool
    is_started: bool
    is_ready: bool

    @property
    def text(self) -> str:
        """``ready``, or the phase and why: ``replaying: shards: 3 of 8``."""
        why = "; ".join(f"{part}: {reason}" for part, reason in self.reasons.items())
        return f"{self.phase}: {why}" if why else str(self.phase)


class Health:
    """The health of this process.

    A part that cannot serve calls `hold` with the reason and `release` when it can again; the node is ready
    while its phase is READY and nothing holds it. What is bad but leaves the node useful (one damaged shard of
    eight) is a `warn`: it shows in the reasons and keeps the node ready.
    """

    def __init__(self) -> None:
        self._phase = Phase.STARTING
        self._started = False
        self._phase_reason: str | None = None
        self._holds: dict[str, str] = {}
        self._warnings: dict[str, str] = {}

    @property
    def phase(self) -> Phase:
        return self._phase

    @property
    def is_live(self) -> bool:
        """The process should be left running: everything but a failed one."""
        return self._phase is not Phase.FAILED

    @property
    def is_started(self) -> bool:
        """It has been ready once."""
        return self._started

    @property
    def is_ready(self) -> bool:
        """Send requests here."""
        return self._phase is Phase.READY and not self._holds

    def move(self, phase: Phase, reason: str | None = None) -> None:
        """Enter a phase. ValueError if it cannot follow the present one: that is a fault in the caller."""
        if phase is not self._phase and phase not in MOVES[self._phase]:
            raise ValueError(f"a node cannot go from {self._phase} to {phase}")
        self._phase = phase
        self._phase_reason = reason
        self._started = self._started or phase is Phase.READY

    def fail(self, reason: str) -> None:
        """Enter FAILED; the first reason stays."""
        if self._phase is not Phase.FAILED:
            self.move(Phase.FAILED, reason)

    def hold(self, part: str, reason: str) -> None:
        """``part`` cannot serve: the node is not ready until it is released."""
        self._holds[part] = reason

    def warn(self, part: str, reason: str) -> None:
        """``part`` is impaired; the node stays ready."""
        self._warnings[part] = reason

    def release(self, part: str) -> None:
        """``part`` serves again."""
        self._holds.pop(part, None)
        self._warnings.pop(part, None)

    def report(self) -> HealthReport:
        """Everything at this moment."""
        reasons = {"node": self._phase_reason} if self._phase_reason else {}
        return HealthReport(
            phase=self._phase,
            reasons=reasons | self._holds | self._warnings,
            is_live=self.is_live,
            is_started=self.is_started,
            is_ready=self.is_ready,
        )
