"""Is a history linearizable? The search of Wing, Gong and Lowe, as Knossos and Porcupine do it. Pure.

Driven by `tests.chaos.checkers`. Partition a history by key first: the search is exponential in what overlaps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

_S = TypeVar("_S", bound="Hashable")

STEPS_MAX = 2_000_000


class TooManySteps(RuntimeError):
    """The history is too concurrent to be decided."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One call. ``end`` is infinite when its outcome is unknown: it may take effect at any later time, or never.

    ``result`` None: unknown.
    """

    client: int
    start: float
    end: float
    call: str
    result: str | None

    @property
    def is_unknown(self) -> bool:
        return self.end == math.inf


@dataclass(frozen=True, slots=True)
class Model(Generic[_S]):
    """``step(state, operation)``: the state after it, or None if it cannot have had this result in this state."""

    initial: _S
    step: Callable[[_S, Operation], _S | None]


def is_linearizable(history: Sequence[Operation], model: Model[_S]) -> bool:
    """Whether some order that respects real time explains every result. Raises TooManySteps."""
    operations = sorted(history, key=lambda operation: operation.start)
    must = sum(1 << index for index, operation in enumerate(operations) if not operation.is_unknown)
    seen: set[tuple[int, _S]] = set()
    stack = [(0, model.initial)]
    steps = 0
    while stack:
        done, state = stack.pop()
        if done & must == must:
            return True
        steps += 1
        if steps > STEPS_MAX:
            raise TooManySteps(f"undecided after {STEPS_MAX} steps over {len(operations)} operations")
        for index in _candidates(operations, done):
            following = model.step(state, operations[index])
            if following is None:
                continue
            known = (done | 1 << index, following)
            if known not in seen:
                seen.add(known)
                stack.append(known)
    return False


def _candidates(operations: Sequence[Operation], done: int) -> list[int]:
    """What may take effect next: everything that began before the earliest end of what has not."""
    earliest = math.inf
    found = []
    for index, operation in enumerate(operations):
        if done >> index & 1:
            continue
        if operation.start > earliest:
            break
        found.append(index)
        earliest = min(earliest, operation.end)
    return [index for index in found if operations[index].start <= earliest]
