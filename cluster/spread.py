"""Which shard goes where: pure arithmetic on a map of owners, for `cluster.placer`.

As few moves as possible: `fill` moves only what has no owner that may keep it, `level` only what makes the
difference between two nodes more than one.
"""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Rank(enum.IntEnum):
    """How welcome a node is as an owner; the lower is asked first, the higher only if there is no lower."""

    STEADY = 0
    DOUBTFUL = 1  # a suspect, or one that was unreachable a moment ago
    DRAINING = 2


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node that may own shards."""

    name: str
    rank: Rank = Rank.STEADY
    zone: str = ""
    load: float = 0.0


def fill(owners: Mapping[int, str], orphans: Iterable[int], candidates: Iterable[Candidate]) -> dict[int, str]:
    """``owners`` with each orphan given to the welcome candidate that has the fewest shards.

    Of several: the one whose zone has the fewest, then the least loaded, then the first by name.
    """
    filled = dict(owners)
    choices = _most_welcome(candidates)
    zones = {c.name: c.zone for c in choices}
    counts = Counter(filled.values())
    in_zone = Counter(zones[owner] for owner in filled.values() if owner in zones)
    for shard in sorted(orphans):
        if not choices:
            break
        best = min(choices, key=lambda c: (counts[c.name], in_zone[c.zone], c.load, c.name))
        filled[shard] = best.name
        counts[best.name] += 1
        in_zone[best.zone] += 1
    return filled


def level(owners: Mapping[int, str], candidates: Iterable[Candidate]) -> dict[int, str]:
    """``owners`` with shards moved between steady candidates until no two differ by more than one."""
    levelled = dict(owners)
    held: dict[str, list[int]] = {c.name: [] for c in candidates if c.rank is Rank.STEADY}
    for shard, owner in sorted(levelled.items()):
        if owner in held:
            held[owner].append(shard)
    while held:
        most = max(held, key=lambda name: (len(held[name]), name))
        least = min(held, key=lambda name: (len(held[name]), name))
        if len(held[most]) - len(held[least]) <= 1:
            break
        shard = held[most].pop()
        held[least].append(shard)
        levelled[shard] = least
    return levelled


def _most_welcome(candidates: Iterable[Candidate]) -> list[Candidate]:
    listed = list(candidates)
    best = min((c.rank for c in listed), default=Rank.STEADY)
    return [c for c in listed if c.rank is best]
