"""The Log's owner, answer by answer: every phase, answers that are late, lost, stale or about objects that are
missing or torn. `tests.sim` searches all orders; here each case is written out and names its rule.
"""

from __future__ import annotations

import pytest

import storage.log
import storage.replay
from storage.errors import Fenced, LogDamaged
from storage.frames import ObjectKind
from storage.log import LogCore, Phase
from storage.logeffects import Closed, Outcome, Stood
from tests.unit.storage.logscripts import Ledger, Play, Shelf, run, skip_entry

OPENED = """
    start               -> list
    listed              -> create 1 open
    created 1 created   -> list
    listed 1            -> opened 1
"""
"""A node that owns an empty Log under epoch 1; its next sequence is 2."""

WITH_CHECKPOINT = (
    OPENED
    + """
    append a            -> create 2 data
    created 2 created   -> stood 2 a
    append b            -> create 3 data
    created 3 created   -> stood 3 b
    checkpoint 2        -> create 4 checkpoint
    created 4 created   -> checkpoint 4 covers 2
"""
)


def owner(script: str = OPENED, state: Ledger | None = None, shelf: Shelf | None = None) -> Play:
    """A play whose ``script`` is behind it."""
    play = Play(shelf or Shelf(), state or Ledger())
    run(script, shelf, core=play.core)
    return play


SCRIPTS: dict[str, str] = {
    "L4: a write is acknowledged when its create has succeeded, not before": OPENED
    + """
    append a            -> create 2 data
    created 2 created   -> stood 2 a
    """,
    "L5: one create in flight; what comes meanwhile is one group": OPENED
    + """
    append a            -> create 2 data
    append b            ->
    append c            ->
    created 2 created   -> stood 2 a; create 3 data
    created 3 created   -> stood 3 bc
    """,
    "L5: the answer to another create changes nothing": OPENED
    + """
    append a            -> create 2 data
    created 1 created   ->
    created 3 exists    ->
    settled 3           ->
    refused 3           ->
    created 2 created   -> stood 2 a
    created 2 created   ->
    created 2 unknown   ->
    """,
    "L6: no answer: the same bytes at the same sequence, as often as it takes": OPENED
    + """
    append a            -> create 2 data
    append b            ->
    created 2 unknown   -> create 2 data try 2
    created 2 unknown   -> create 2 data try 3
    created 2 created   -> stood 2 a; create 3 data
    """,
    "L6: exists, our nonce: made durable, then acknowledged": OPENED
    + """
    append a            -> create 2 data
    created 2 unknown   -> create 2 data try 2
    created 2 exists    -> read 2
    read 2 own          -> settle 2
    settled 2           -> stood 2 a
    """,
    "L6: certainly refused after an unknown try is still unknown": OPENED
    + """
    append a            -> create 2 data
    created 2 unknown   -> create 2 data try 2
    refused 2           -> create 2 data try 3
    created 2 exists    -> read 2
    read 2 own          -> settle 2
    settled 2           -> stood 2 a
    """,
    "L6: certainly refused: the group fails, the owner goes on at the same sequence": OPENED
    + """
    append a            -> create 2 data
    append b            ->
    prove 1             ->
    refused 2           -> failed a StoreFull; create 2 data
    created 2 created   -> stood 2 b; proved 1
    """,
    "L6: a Checkpoint that is refused fails alone": OPENED
    + """
    append a            -> create 2 data
    created 2 created   -> stood 2 a
    checkpoint 2        -> create 3 checkpoint
    append b            ->
    refused 3           -> failed StoreFull; create 3 data
    created 3 created   -> stood 3 b
    """,
    "L6: letting go while a create is under way leaves it unknown; what waits was not written": OPENED
    + """
    append a            -> create 2 data
    append b            ->
    prove 1             ->
    close               -> failed a OutcomeUnknown; failed b ShardClosed; unproved 1 ShardClosed; closed ShardClosed
    created 2 created   ->
    close               ->
    """,
    "L13: nothing at the next sequence is proof": OPENED
    + """
    prove 1             -> check 2
    checked 2 absent    -> proved 1
    """,
    "L13: a read never shares a check in transit; those that come meanwhile share the next": OPENED
    + """
    prove 1             -> check 2
    prove 2             ->
    prove 3             ->
    checked 2 absent    -> proved 1; check 2
    checked 2 absent    -> proved 2 3
    """,
    "L13: beside a create in flight a read waits for its outcome, then checks": OPENED
    + """
    append a            -> create 2 data
    prove 1             ->
    created 2 created   -> stood 2 a; check 3
    checked 3 absent    -> proved 1
    """,
    "L13: a create that was sent after the read arrived is proof": OPENED
    + """
    append a            -> create 2 data
    append b            ->
    prove 1             ->
    created 2 created   -> stood 2 a; create 3 data
    created 3 created   -> stood 3 b; proved 1
    """,
    "L13: an object at the next sequence fences, if it cannot be our own": OPENED
    + """
    prove 1             -> check 2
    checked 2 exists    -> unproved 1 Fenced; closed Fenced
    """,
    "L13: what the check finds may be our own create: ask again": OPENED
    + """
    prove 1             -> check 2
    append a            -> create 2 data
    checked 2 exists    ->
    created 2 created   -> stood 2 a; check 3
    checked 3 absent    -> proved 1
    """,
    "L13: a check that was overtaken by our create is asked again where the Log now ends": OPENED
    + """
    prove 1             -> check 2
    append a            -> create 2 data
    created 2 created   -> stood 2 a
    checked 2 exists    -> check 3
    checked 3 absent    -> proved 1
    """,
    "L13: a store that does not answer the check fails these reads and no others": OPENED
    + """
    prove 1             -> check 2
    prove 2             ->
    unchecked           -> unproved 1 StoreUnavailable; check 2
    checked 2 absent    -> proved 2
    """,
    "L13: whoever does not own the Log answers no read": """
    start               -> list
    prove 1             -> unproved 1 ShardClosed
    """,
    "L18: a Checkpoint goes before what waits": OPENED
    + """
    append a            -> create 2 data
    append b            ->
    checkpoint 1        ->
    created 2 created   -> stood 2 a; create 3 checkpoint
    created 3 created   -> checkpoint 3 covers 1; create 4 data
    created 4 created   -> stood 4 b
    """,
    "L19: only what is at or below k goes, and no open": WITH_CHECKPOINT
    + """
    collect             -> list
    listed 1 2 3 4      -> delete 2
    deleted 2           -> collected 1
    """,
    "L19: one collection at a time; a second call changes nothing": WITH_CHECKPOINT
    + """
    collect             -> list
    collect             ->
    listed 1 2 3 4      -> delete 2
    collect             ->
    deleted 2           -> collected 1
    collect             -> list
    listed 1 3 4        -> collected 0
    """,
    "L19: while a Checkpoint's outcome is unknown nothing is deleted": WITH_CHECKPOINT
    + """
    collect             -> list
    checkpoint 3        -> create 5 checkpoint
    listed 1 2 3 4      ->
    created 5 unknown   -> create 5 checkpoint try 2
    created 5 created   -> checkpoint 5 covers 3; delete 2
    deleted 2           -> collected 1
    """,
    "L6: while a create is unknown nothing is deleted": WITH_CHECKPOINT
    + """
    collect             -> list
    append c            -> create 5 data
    created 5 unknown   -> create 5 data try 2
    listed 1 2 3 4      ->
    created 5 created   -> stood 5 c; delete 2
    deleted 2           -> collected 1
    """,
    "L19: a delete without an answer: the next collection begins with a listing": WITH_CHECKPOINT
    + """
    collect             -> list
    listed 1 2 3 4      -> delete 2
    undeleted           ->
    deleted 2           ->
    collect             -> list
    listed 1 3 4        -> collected 0
    """,
    "L12: a fenced owner collects nothing more": WITH_CHECKPOINT
    + """
    collect             -> list
    listed 1 2 3 4      -> delete 2
    prove 1             -> check 5
    checked 5 exists    -> unproved 1 Fenced; closed Fenced
    deleted 2           ->
    listed 1 2 3 4      ->
    """,
}


@pytest.mark.parametrize("case", SCRIPTS)
def test_an_owner_obeys_the_script(case: str) -> None:
    core = run(SCRIPTS[case])
    assert core.take() == []


def rivals() -> Shelf:
    return Shelf().open(1).open(2).data(3, "x")


def test_l6_another_owner_where_our_create_should_stand_fences() -> None:
    """L6, L12: a first try that met an object was certainly not written; the successor's header is handed on."""
    play = owner(shelf=rivals())
    assert play.do(["append", "a"]) == ["create 2 data"]
    assert play.do(["append", "b"]) == []
    assert play.do(["created", "2", "exists"]) == ["read 2"]
    play.core.read(2, rivals().objects[2])
    effects = play.core.take()
    closed = effects[-1]
    assert isinstance(closed, Closed)
    assert isinstance(closed.error, Fenced)
    assert closed.successor is not None
    assert (closed.successor.epoch, closed.successor.kind) == (2, ObjectKind.OPEN)
    assert [type(e).__name__ for e in effects] == ["Failed", "Failed", "Closed"]
    assert play.core.phase is Phase.FENCED


def test_l6_after_an_unknown_try_the_client_hears_unknown() -> None:
    run(
        OPENED
        + """
    append a            -> create 2 data
    append b            ->
    created 2 unknown   -> create 2 data try 2
    created 2 exists    -> read 2
    read 2              -> failed a OutcomeUnknown; failed b Fenced; closed Fenced
    """,
        rivals(),
    )


def test_l6_what_our_create_met_has_been_collected() -> None:
    """L6: whose it was cannot be read any more, but it was not ours alone: a newer Checkpoint stands above."""
    run(
        OPENED
        + """
    append a            -> create 2 data
    created 2 exists    -> read 2
    read 2 missing      -> failed a Fenced; closed Fenced
    """
    )


def test_l3_our_own_object_that_stands_torn_is_not_acknowledged() -> None:
    core = run(
        OPENED
        + """
    append a            -> create 2 data
    created 2 unknown   -> create 2 data try 2
    created 2 exists    -> read 2
    read 2 cut          -> failed a OutcomeUnknown; closed LogDamaged
    """
    )
    assert core.phase is Phase.DAMAGED


def test_l3_an_own_object_that_cannot_be_applied_is_neither_acknowledged_nor_refused() -> None:
    state = Ledger()
    state.refuses = {"a"}
    run(
        OPENED
        + """
    append a            -> create 2 data
    created 2 created   -> failed a OutcomeUnknown; closed LogDamaged
    """,
        state=state,
    )


# -- headers (L1, L2) -----------------------------------------------------------------------------------


def test_l1_l2_headers_say_epoch_checkpoint_and_a_new_nonce() -> None:
    shelf = Shelf().open(1).data(2, "x", opens=3).checkpoint(3, "2:x:", opens=3)
    play = Play(shelf, Ledger())
    script = """
    start / listed 1 2 3 / read 3 / created 4 created / listed 1 2 3 4 / read 3 / read 3 /
    append a / created 5 created / checkpoint 5 / created 6 created / append b
    """
    for line in script.split("/"):
        play.do(line.split())
    headers = [play.header(sequence) for sequence in (4, 5, 6, 7)]
    assert [h.checkpoint_seq for h in headers] == [3, 3, 3, 6]
    assert {(h.epoch, h.opens) for h in headers} == {(4, 4)}
    assert len({h.nonce for h in headers}) == 4


def test_f4_written_at_never_decreases() -> None:
    play = Play(Shelf().open(1, written_at_ms=1_000), Ledger())
    for words in (["start"], ["listed", "1"], ["read", "1"]):
        play.do(words)
    assert play.header(2).written_at_ms == 1_000


# -- taking over (L9) -----------------------------------------------------------------------------------


def test_l9_someone_was_faster() -> None:
    run(
        """
    start               -> list
    listed 1            -> read 1
    read 1              -> create 2 open
    created 2 exists    -> read 2
    read 2              -> list
    listed 1 2          -> read 2
    read 2              -> create 3 open
    """,
        rivals(),
    )


def test_l9_above_the_open_stands_another() -> None:
    """L9, L11: it was not the end. The open that is left behind is one of those that are never deleted."""
    play = Play(rivals(), Ledger())
    run(
        """
    start               -> list
    listed              -> create 1 open
    created 1 created   -> list
    listed 1 2          -> list
    listed 1 2          -> read 2
    read 2              -> create 3 open
    created 3 created   -> list
    listed 1 2 3        -> read 1; read 2
    read 2              ->
    read 1              -> opened 3
    append a            -> create 4 data
    created 4 created   -> stood 4 a
    checkpoint 4        -> create 5 checkpoint
    created 5 created   -> checkpoint 5 covers 4
    collect             -> list
    listed 1 2 3 4 5    -> delete 4
    deleted 4           -> collected 1
    """,
        play.shelf,
        core=play.core,
    )


def test_l9_a_stale_listing_creates_nothing() -> None:
    """L9: a second listing that does not show our own open is asked for again; one that never does ends it."""
    play = Play(Shelf(), Ledger())
    run(
        """
    start               -> list
    listed              -> create 1 open
    created 1 created   -> list
    listed              -> list
    listed              -> list
    listed 1            -> opened 1
    """,
        core=play.core,
    )
    stale = Play(Shelf(), Ledger())
    for words in (["start"], ["listed"], ["created", "1", "created"]):
        stale.do(words)
    seen: list[str] = []
    for _ in range(storage.log.RELIST_MAX):
        seen = stale.do(["listed"])
    assert seen == ["closed Fenced"]
    assert stale.do(["listed", "1"]) == []


def test_l9_the_object_below_the_end_is_collected_meanwhile() -> None:
    run(
        """
    start               -> list
    listed 1 2 3        -> read 3
    read 3 missing      -> list
    listed 1 2 4        -> read 4
    """
    )


def test_l6_an_open_without_an_answer_is_sent_again_and_may_be_given_up_for_another() -> None:
    run(
        """
    start               -> list
    listed              -> create 1 open
    created 1 unknown   -> create 1 open try 2
    created 1 exists    -> read 1
    read 1              -> list
    listed 1            -> read 1
    read 1              -> create 2 open
    created 2 unknown   -> create 2 open try 2
    created 2 exists    -> read 2
    read 2 own          -> settle 2
    settled 2           -> list
    listed 1 2          -> read 1
    read 1              -> opened 2
    """,
        Shelf().open(1),
    )


def test_an_open_that_the_store_refuses_ends_it() -> None:
    core = run(
        """
    start               -> list
    listed              -> create 1 open
    refused 1           -> closed StoreFull
    listed              ->
    """
    )
    assert core.phase is Phase.CLOSED


# -- replay (L3, L10, L18, L23) -------------------------------------------------------------------------


def long_log() -> Shelf:
    """Checkpoint 5 covers 2; 3 and 4 were appended while its files were written."""
    return (
        Shelf().open(1).data(2, "a").data(3, "b").data(4, "c").checkpoint(5, "2:a:").data(6, "d", checkpoint_seq=5)
    )  # fmt: skip


TAKEN = """
    start               -> list
    listed 1 3 4 5 6    -> read 6
    read 6              -> create 7 open
    created 7 created   -> list
    listed 1 3 4 5 6 7  -> read 5
    read 5              -> read 3; read 4
"""
"""`long_log` after a collection, taken over up to the first reads of the replay."""


def test_l18_replay_starts_above_k_and_reads_arrive_in_any_order() -> None:
    state = Ledger()
    run(
        TAKEN
        + """
    read 4              -> read 5; read 6
    read 6              ->
    read 3              ->
    read 5              -> opened 7
    """,
        long_log(),
        state,
    )
    assert state.lines == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("last", "end"), [("8", "closed Fenced"), ("7", "closed LogDamaged")], ids=["a newer owner", "nobody newer"]
)
@pytest.mark.parametrize(
    "script",
    [
        TAKEN + "read 3 missing -> list\n read 4 ->",
        TAKEN + "read 4 -> read 5; read 6\n read 6 missing -> list\n read 3 ->",
        TAKEN.replace("read 5              -> read 3; read 4", "read 5 missing -> list"),
        TAKEN.replace("listed 1 3 4 5 6 7  -> read 5", "listed 1 3 4 6 7 -> list").replace(
            "read 5              -> read 3; read 4", ""
        ),
    ],
    ids=["first", "ahead", "checkpoint", "checkpoint not listed"],
)
def test_l10_a_missing_object_fences_or_is_damage(script: str, last: str, end: str) -> None:
    """L10: gone because somebody newer collected it, or because it is lost: the listing tells."""
    run(script + f"\n listed 1 3 7 {last} -> {end}\n read 3 ->\n listed 1 ->", long_log())


def test_l10_what_does_not_fit_may_be_the_open_of_a_sleeper() -> None:
    """L10: where an object was collected a sleeper's open may stand, and what follows does not fit. Not damage."""
    shelf = long_log().open(3)
    state = Ledger()
    state.refuses = {"c"}
    run(
        TAKEN
        + """
    read 3              -> read 5; read 6
    read 4              ->
    read 5              ->
    read 6              -> list
    listed 1 5 6 7 8 9  -> closed Fenced
    """,
        shelf,
        state,
    )


@pytest.mark.parametrize("what", ["torn", "another kind", "sections", "another log"])
def test_l3_a_checkpoint_that_cannot_be_read_closes_this_log_only(what: str) -> None:
    """L3: whatever is wrong with it ends in LogDamaged; nothing is raised into the driver."""
    shelf, state = long_log(), Ledger()
    if what == "torn":
        shelf.torn(5)
    elif what == "another kind":
        shelf.data(5, "x")
    elif what == "another log":
        shelf.checkpoint(5, "2:a:", log_id=8)
    else:
        state.refuses = {"load"}
    script = TAKEN.replace("read 5              -> read 3; read 4", "read 5 -> list")
    run(script + "\n listed 1 3 4 5 6 7 -> closed LogDamaged", shelf, state)


def with_parts() -> Shelf:
    return Shelf().open(1).data(2, "a").checkpoint(3, "2:a:p,q")


PARTS = """
    start               -> list
    listed 1 2 3        -> read 3
    read 3              -> create 4 open
    created 4 created   -> list
    listed 1 2 3 4      -> read 3
    read 3              -> part p; part q
"""


@pytest.mark.parametrize(
    "answers",
    [
        "part q -> \n part q -> \n part x -> \n part p -> read 3\n read 3 -> opened 4",
        "part p missing -> list\n part q -> \n listed 1 2 3 4 -> closed LogDamaged",
        "part p bad -> list\n part q missing -> \n listed 1 2 3 4 -> closed LogDamaged",
        "part p missing -> list\n listed 1 2 3 4 5 6 -> closed Fenced\n part q -> ",
    ],
    ids=["both", "missing", "bad", "fenced"],
)
def test_l10_the_parts_of_a_checkpoint(answers: str) -> None:
    run(PARTS + answers, with_parts())


def test_replay_reads_ahead_by_count_and_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held in memory while replaying is bounded, whatever the size of objects."""
    shelf = Shelf().open(1)
    for sequence in range(2, 30):
        shelf.data(sequence, "x" * 100)
    names = " ".join(map(str, range(1, 30)))
    script = f"""
    start                 -> list
    listed {names}        -> read 29
    read 29               -> create 30 open
    created 30 created    -> list
    listed {names} 30     -> read 1; read 2
    """
    small = run(script, shelf)
    small.read(1, shelf.objects[1])
    assert len(small.take()) == storage.replay.REPLAY_READS_MAX - 1
    monkeypatch.setattr(storage.replay, "REPLAY_AHEAD_BYTES_MAX", 100)
    large = run(script, shelf)
    large.read(1, shelf.objects[1])
    assert len(large.take()) == storage.replay.REPLAY_READS_MIN - 1


# -- operators' skips (L3) ------------------------------------------------------------------------------


def torn_log() -> Shelf:
    return Shelf().open(1).data(2, "a").data(3, "b").torn(2)


TORN = """
    listed 1 2 3        -> read 3
    read 3              -> create 4 open
    created 4 created   -> list
    listed 1 2 3 4      -> read 1; read 2
    read 1              -> read 3
    read 2              ->
"""


def test_l3_a_torn_object_closes_the_log_and_is_named() -> None:
    play = Play(torn_log(), Ledger())
    run("start -> list" + TORN + "read 3 -> list", play.shelf, core=play.core)
    play.core.listed([1, 2, 3, 4])
    (closed,) = play.core.take()
    assert isinstance(closed, Closed)
    assert isinstance(closed.error, LogDamaged)
    assert "log 7 object 2" in str(closed.error)


def test_l3_what_the_operator_gave_up_is_left_out_whole() -> None:
    state = Ledger()
    run("start 2 -> list" + TORN + "read 3 -> opened 4", torn_log(), state)
    assert state.lines == ["b"]


def test_l3_a_skip_that_is_recorded_in_the_log_needs_no_operator() -> None:
    state = Ledger()
    shelf = torn_log().data(3, entries=[skip_entry(2)])
    run("start -> list" + TORN + "read 3 -> opened 4", shelf, state)
    assert state.lines == []


def test_l3_a_torn_last_object_that_was_given_up() -> None:
    """L2, L3: the open copies from what stands below; a Log that holds nothing else begins anew."""
    run(
        """
    start 2             -> list
    listed 1 2          -> read 2
    read 2              -> read 1
    read 1              -> create 3 open
    """,
        torn_log(),
    )
    run("start 1 -> list\n listed 1 -> read 1\n read 1 -> create 2 open", Shelf().open(1).torn(1))
    run("start -> list\n listed 1 2 -> read 2\n read 2 -> list\n listed 1 2 -> closed LogDamaged", torn_log())
    run("start -> list\n listed 1 2 -> read 2\n read 2 -> list\n listed 1 2 3 -> closed Fenced", torn_log())


def test_l3_what_stands_below_a_given_up_object_is_missing() -> None:
    """L3: the torn object was the Checkpoint for which all others were deleted: damage, not a faster rival."""
    script = "start 2 -> list\n listed 1 2 -> read 2\n read 2 -> read 1\n read 1 missing -> list\n"
    run(script + "listed 2 -> closed LogDamaged", torn_log())
    run(script + "listed 2 3 -> closed Fenced", torn_log())


def test_l3_l23_no_checkpoint_on_the_way_hides_what_nobody_gave_up() -> None:
    """A Checkpoint would cover the torn object, and the next owner would find nothing wrong."""
    run("start -> list" + TORN + "read 3 -> list\n listed 1 2 3 4 -> closed LogDamaged", torn_log(), Ledger(full_at=1))
    shelf = torn_log().data(4, "c")
    script = TORN.replace("4", "5").replace("3 5", "3 4 5").replace("listed 1 2 3  ", "listed 1 2 3 4 ")
    script = script.replace("-> read 3\n    read 3", "-> read 4\n    read 4").replace(
        "read 1              -> read 3", "read 1 -> read 3; read 4"
    )
    run("start 2 -> list" + script + "read 3 -> paused", shelf, Ledger(full_at=1))


# -- a replay that pauses (L23) -------------------------------------------------------------------------


def full_log() -> Shelf:
    return Shelf().open(1).data(2, "a").data(3, "b").data(4, "c")


PAUSED = """
    start               -> list
    listed 1 2 3 4      -> read 4
    read 4              -> create 5 open
    created 5 created   -> list
    listed 1 2 3 4 5    -> read 1; read 2
    read 1              -> read 3; read 4
    read 2              -> paused
"""


def test_l23_replay_pauses_for_a_checkpoint_on_its_way() -> None:
    """The Checkpoint stands above our open and covers what was replayed; reads that arrive meanwhile are kept."""
    state = Ledger(full_at=1)
    core = run(
        PAUSED
        + """
    prove 1             -> unproved 1 ShardClosed
    read 4              ->
    checkpoint 2        -> create 6 checkpoint
    read 3              ->
    created 6 created   -> checkpoint 6 covers 2
    resume              -> paused
    resume              -> paused
    checkpoint 3        -> create 7 checkpoint
    created 7 unknown   -> create 7 checkpoint try 2
    created 7 created   -> checkpoint 7 covers 3
    resume              -> opened 5
    append d            -> create 8 data
    """,
        full_log(),
        state,
    )
    assert state.lines == ["a", "b", "c"]
    assert core.checkpoint_seq == 7


def test_l23_a_checkpoint_on_the_way_that_meets_another_owner() -> None:
    run(
        PAUSED
        + """
    checkpoint 2        -> create 6 checkpoint
    created 6 exists    -> read 6
    read 6              -> closed Fenced
    read 3              ->
    resume              ->
    """,
        full_log().open(6),
        Ledger(full_at=1),
    )


def test_l23_a_refused_checkpoint_on_the_way_leaves_the_replay_paused() -> None:
    run(
        PAUSED
        + """
    checkpoint 2        -> create 6 checkpoint
    refused 6           -> failed StoreFull
    read 3              ->
    checkpoint 2        -> create 6 checkpoint
    created 6 created   -> checkpoint 6 covers 2
    """,
        full_log(),
        Ledger(full_at=1),
    )


@pytest.mark.parametrize(
    "answers",
    [
        "created 6 created -> checkpoint 6 covers 2; list\n resume -> \n listed 1 2 4 5 6 -> closed LogDamaged",
        "created 6 created -> checkpoint 6 covers 2; list\n listed 1 2 4 5 6 7 -> closed Fenced",
        "refused 6 -> failed StoreFull; list\n listed 1 2 4 5 -> closed LogDamaged",
        "created 6 unknown -> create 6 checkpoint try 2\n created 6 exists -> read 6\n read 6 -> closed Fenced",
    ],
    ids=["damage", "a newer owner", "refused", "fenced"],
)
def test_l10_l23_an_object_is_missing_while_a_checkpoint_is_under_way(answers: str) -> None:
    """L10: our own Checkpoint must not be taken for a newer owner: its outcome is awaited before anybody looks."""
    run(PAUSED + "checkpoint 2 -> create 6 checkpoint\n read 3 missing -> \n" + answers, full_log().open(6),
        Ledger(full_at=1))  # fmt: skip


def test_l18_k_never_decreases_and_stays_below_the_checkpoint() -> None:
    for covered in ("1", "5"):
        play = owner(WITH_CHECKPOINT)
        with pytest.raises(AssertionError, match="L18"):
            play.do(["checkpoint", covered])


# -- collecting what earlier owners left (L11, L19) -----------------------------------------------------


def test_l11_l19_kinds_of_earlier_owners_objects_are_looked_up() -> None:
    """Opens stay; what cannot be read, or is not of this Log, stays too; what is gone is gone."""
    shelf = Shelf()
    shelf.open(1).data(2, "a").open(3).data(4, "b").torn(4).data(5, "c", log_id=9).data(6, "d").checkpoint(7, "6:d:")
    run(
        """
    start               -> list
    listed 1 2 3 4 5 6 7 -> read 7
    read 7              -> create 8 open
    created 8 created   -> list
    listed 1 2 3 4 5 6 7 8 -> read 7
    read 7              -> read 7
    read 7              -> opened 8
    collect             -> list
    listed 1 2 3 4 5 6 7 8 -> read 1
    read 1              -> read 2
    read 2              -> delete 2
    deleted 2           -> read 3
    read 3              -> read 4
    read 4              -> read 5
    read 5              -> read 6
    read 6 missing      -> collected 1
    collect             -> list
    listed 1 3 4 5 7 8  -> collected 0
    """,
        shelf,
    )


def test_l19_a_corrupt_open_is_not_taken_for_data() -> None:
    """L11: one flipped bit in the kind of an object must not let an open be deleted."""
    shelf = Shelf().open(1).open(2).checkpoint(3, "2::")
    flipped = bytearray(shelf.objects[1])
    flipped[10:12] = int(ObjectKind.DATA).to_bytes(2, "little")
    shelf.objects[1] = bytes(flipped)
    run(
        """
    start               -> list
    listed 1 2 3        -> read 3
    read 3              -> create 4 open
    created 4 created   -> list
    listed 1 2 3 4      -> read 3
    read 3              -> read 3
    read 3              -> opened 4
    collect             -> list
    listed 1 2 3 4      -> read 1
    read 1              -> read 2
    read 2              -> collected 0
    """,
        shelf,
    )


# -- group commit (L5, L17) -----------------------------------------------------------------------------


def test_l17_a_request_is_never_split_and_an_object_has_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.log, "GROUP_ENTRIES_MAX", 3)
    run(
        OPENED
        + """
    append a            -> create 2 data
    append b c          ->
    append d e          ->
    append f            ->
    created 2 created   -> stood 2 a; create 3 data
    created 3 created   -> stood 3 bc; create 4 data
    created 4 created   -> stood 4 def
    """
    )
    monkeypatch.setattr(storage.log, "OBJECT_BYTES_MAX", 600)
    run(
        OPENED
        + f"""
    append a            -> create 2 data
    append b{"x" * 200} ->
    append c{"x" * 200} ->
    created 2 created   -> stood 2 a; create 3 data
    created 3 created   -> stood 3 b; create 4 data
    """
    )


# -- the ends -------------------------------------------------------------------------------------------

ANSWERS = ("listed", "listed 1 2 9", "created 2 created", "created 2 exists", "created 2 unknown", "refused 2",
           "settled 2", "read 2 missing", "read 1", "part p", "checked 2 exists", "checked 2 absent", "unchecked",
           "deleted 2", "undeleted", "resume", "collect", "close")  # fmt: skip


def ended(phase: Phase) -> LogCore:
    """A core with everything under way, ended."""
    play = owner(
        OPENED
        + """
    append a            -> create 2 data
    append b            ->
    prove 1             ->
    collect             -> list
    """
    )
    if phase is Phase.CLOSED:
        play.core.close()
    elif phase is Phase.FENCED:
        play.core.created(2, Outcome.EXISTS)
        play.core.read(2, None)
    else:
        play.core._damaged("on purpose")
    play.core.take()
    return play.core


@pytest.mark.parametrize("phase", [Phase.CLOSED, Phase.FENCED, Phase.DAMAGED], ids=lambda p: p.value)
@pytest.mark.parametrize("answer", ANSWERS)
def test_l12_an_ended_owner_is_silent_whatever_arrives_late(phase: Phase, answer: str) -> None:
    core = ended(phase)
    play = Play(Shelf().open(1), Ledger(), core)
    assert play.do(answer.split()) == []
    assert core.phase is phase
    assert not core.busy


@pytest.mark.parametrize("steps", range(8))
def test_close_in_any_phase_of_a_take_over_is_the_end(steps: int) -> None:
    """L12: letting go is possible at every moment, and no answer that comes later opens the Log."""
    play = Play(full_log(), Ledger(full_at=1))
    lines = [line.partition("->")[0].split() for line in PAUSED.strip().splitlines()]
    for words in lines[:steps]:
        play.do(words)
    assert play.do(["close"]) == ["closed ShardClosed"]
    for words in lines[max(1, steps) :]:
        assert play.do(words) == []
    assert play.core.phase is Phase.CLOSED


def test_a_ticket_keeps_its_entry_as_it_was_placed() -> None:
    """L24: the offset is given when the group is sent, and reported with it."""
    play = owner(OPENED + "append a -> create 2 data\n append b -> \n append c ->")
    play.core.created(2, Outcome.CREATED)
    play.core.take()
    play.core.created(3, Outcome.CREATED)
    (stood,) = play.core.take()
    assert isinstance(stood, Stood)
    assert [entry.base_offset for entry in stood.entries] == [1, 2]
