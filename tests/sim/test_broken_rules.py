"""Each rule that the search can show is broken on purpose, and the search must find a history that loses data,
reads late, or takes a sound Log for a damaged one. A rule whose breach is not seen here would be a rule that
the search does not test.
"""

from __future__ import annotations

import re

import pytest

import storage.log
from storage.log import LogCore
from storage.logreader import LogReader
from tests.sim import brokenlogs as broken
from tests.sim.logsearch import Bounds, Search, Violation


def breach(
    bounds: Bounds, core_class: type[LogCore] = LogCore, reader_class: type[LogReader] = LogReader, **options: bool
) -> str:
    """The violation that the search finds, with its history."""
    with pytest.raises(Violation) as caught:
        Search(bounds, core_class, reader_class, **options).run()
    return str(caught.value)


CASES: list[tuple[str, type[LogCore], Bounds, str]] = [
    ("L2", broken.OpenNamesWhatItKnew, Bounds(rows=1, checkpoints=1), "damaged"),
    ("L2", broken.OneNonceForAll, Bounds(rows=1), "damage where there is none"),
    ("L4", broken.AcknowledgesFirst, Bounds(rows=1), "acknowledged rows 1 are lost"),
    ("L5", broken.TwoInFlight, Bounds(rows=2), "lost|damage"),
    ("L6", broken.GivesUpTheUnknown, Bounds(rows=1, lost=1), "not written and stand"),
    ("L6", broken.TakesWhatExistsForItsOwn, Bounds(rows=1, lost=1), "are lost"),
    ("L6", broken.TakesItsOwnForARival, Bounds(rows=1, lost=1), "not written and stand"),
    ("L6", broken.SaysNotWritten, Bounds(rows=1, closes=1), "not written and stand"),
    ("L9", broken.ListsOnce, Bounds(rows=2, checkpoints=1, owner_reads=1), "owner read returns|are lost"),
    ("L9", broken.ProbesForTheEnd, Bounds(rows=2, checkpoints=1, owner_reads=1), "owner read returns|are lost"),
    ("L10", broken.CallsEveryGapDamage, Bounds(rows=1, checkpoints=1, opens=3, nodes=3), "damage where there is none"),
    ("L11", broken.CollectsOpens, Bounds(rows=1, checkpoints=1), "are lost|damage"),
    ("L13", broken.AnswersWithoutProof, Bounds(rows=1, owner_reads=1), "owner read returns"),
    ("L13", broken.ChecksBesideACreate, Bounds(rows=2, checkpoints=1, owner_reads=1), "owner read returns"),
    ("L13", broken.ChecksBesideACreateAndTakesItForItsOwn, Bounds(rows=2, owner_reads=1), "owner read returns"),
    ("L13", broken.SharesAChecksTransit, Bounds(rows=1, owner_reads=2), "owner read returns"),
    ("L13", broken.TakesAnOlderCreateForProof, Bounds(rows=2, owner_reads=1), "owner read returns"),
    ("L19", broken.CollectsBelowTheCheckpoint, Bounds(rows=1, checkpoints=1), "lost|damage"),
    ("L19", broken.CollectsOlderCheckpoints, Bounds(rows=1, checkpoints=2, compact=True), "lost|damage"),
    ("L19", broken.CollectsForAnUnknownCheckpoint, Bounds(rows=1, checkpoints=1), "lost|damage"),
]


@pytest.mark.parametrize(
    ("rule", "core_class", "bounds", "seen"), CASES, ids=[f"{rule}-{cls.__name__}" for rule, cls, _, _ in CASES]
)
def test_a_broken_owner_is_found(rule: str, core_class: type[LogCore], bounds: Bounds, seen: str) -> None:
    """The rule is named by the class and in its docstring; L2 and L11 must show by what they lead to."""
    assert rule in (core_class.__doc__ or "")
    assert re.search(seen, breach(bounds, core_class, judge_objects=False).splitlines()[0])


def test_l10_a_store_read_without_the_second_listing_is_found() -> None:
    """L10: the open of a sleeper stands where a collected object was, and the read misses its rows."""
    bounds = Bounds(rows=1, store_reads=1, checkpoints=1)
    assert "store read returns" in breach(bounds, reader_class=broken.ReadsWithoutListingAgain)


def test_l18_an_owner_that_replays_from_the_checkpoint_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """L18: what was appended while the Checkpoint's files were written is lost."""
    monkeypatch.setattr(storage.log, "Replay", broken.ReplayFromTheCheckpoint)
    found = breach(Bounds(rows=1, checkpoints=1, owner_reads=1))
    assert re.search("owner read returns|are lost", found)


def test_l18_a_store_read_from_the_checkpoint_is_found() -> None:
    """L18: the same for a node that reads the store."""
    bounds = Bounds(rows=1, store_reads=1, checkpoints=1)
    assert "store read returns" in breach(bounds, reader_class=broken.ReadsFromTheCheckpoint)


def test_l2_and_l11_are_also_seen_in_the_store_itself() -> None:
    """L2, L11: the last object names the newest Checkpoint; the open of every epoch in the Log stands."""
    assert "(L2)" in breach(Bounds(rows=1, checkpoints=1), broken.OpenNamesWhatItKnew)
    assert "(L11)" in breach(Bounds(rows=1, checkpoints=1), broken.CollectsOpens)
