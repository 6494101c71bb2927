"""The test stores themselves: a fault that does not fire, or fires otherwise, would make other tests lie."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import FsyncFailed, ObjectMissing, StoreFull, StoreUnavailable
from storage.objects import CreateOutcome, Listed
from tests.harness.stores import APPLIES_TO, Crash, Fault, FaultStore, MemoryStore

CREATED, EXISTS, UNKNOWN = CreateOutcome.CREATED, CreateOutcome.EXISTS, CreateOutcome.UNKNOWN


def _stores(**options: object) -> tuple[MemoryStore, FaultStore]:
    behind = MemoryStore()
    return behind, FaultStore(behind, **options)  # type: ignore[arg-type]


def test_a_copy_is_independent_and_a_snapshot_comes_back() -> None:
    store = MemoryStore()
    store.create("a", b"1")
    before, copy = store.snapshot(), store.copy()
    store.create("b", b"2")
    copy.delete("a")
    assert sorted(store.objects) == ["a", "b"]
    assert copy.objects == {}
    store.restore(before)
    assert store.objects == {"a": b"1"}
    assert store.create("b", b"3") is CREATED
    assert "b" not in before


def test_the_clock_is_the_tests() -> None:
    store = MemoryStore(now_ms=5)
    assert store.clock_ms() == 5
    store.now_ms = 7
    assert store.copy().clock_ms() == 7


@pytest.mark.parametrize(
    ("fault", "outcome", "stands"),
    [
        (Fault.CONFLICT, UNKNOWN, None),
        (Fault.LOST_REQUEST, UNKNOWN, None),
        (Fault.LATE, UNKNOWN, None),
        (Fault.LOST_ANSWER, UNKNOWN, b"content"),
        (Fault.DELAY, CREATED, b"content"),
    ],
)
def test_an_armed_fault_happens_once(fault: Fault, outcome: CreateOutcome, stands: bytes | None) -> None:
    slept: list[float] = []
    behind, store = _stores(sleep=slept.append)
    store.arm(fault, match="logs/*")
    assert store.create("data/x", b"not meant") is CREATED
    assert store.create("logs/1", b"content") is outcome
    assert behind.objects.get("logs/1") == stands
    assert store.create("logs/2", b"content") is CREATED
    assert store.fired == {fault: 1}
    assert len(slept) == (fault is Fault.DELAY)
    assert store.calls["create"] == 3


def test_errors_before_the_effect_have_none() -> None:
    behind, store = _stores()
    store.arm(Fault.FULL)
    with pytest.raises(StoreFull):
        store.create("a", b"x")
    for call in ("create", "get", "exists", "list", "delete", "clock_ms", "settle", "get_range", "list_all"):
        store.arm(Fault.UNAVAILABLE, call)
    for use in (
        lambda: store.create("a", b"x"),
        lambda: store.get("a"),
        lambda: store.get_range("a", 0, 1),
        lambda: store.exists("a"),
        lambda: store.list(""),
        lambda: store.list_all(""),
        lambda: store.delete("a"),
        lambda: store.settle("a"),
        store.clock_ms,
    ):
        with pytest.raises(StoreUnavailable):
            use()
    assert behind.objects == {}
    assert store.fired == {Fault.FULL: 1, Fault.UNAVAILABLE: 9}


def test_a_late_create_lands_when_told_and_overwrites_nothing() -> None:
    """L6, L9: a request that was under way when its sender gave up, or died."""
    behind, store = _stores()
    store.arm(Fault.LATE, times=2)
    assert store.create("a", b"late") is UNKNOWN
    assert store.create("b", b"late") is UNKNOWN
    behind.create("b", b"faster")
    assert store.land_late() == [CREATED, EXISTS]
    assert behind.objects == {"a": b"late", "b": b"faster"}
    assert store.land_late() == []


@given(st.binary(min_size=1, max_size=50), st.integers(0, 1000))
def test_a_torn_object_is_a_proper_prefix(content: bytes, seed: int) -> None:
    """L3."""
    behind, store = _stores(seed=seed)
    store.arm(Fault.TORN)
    assert store.create("a", content) is UNKNOWN
    assert len(behind.objects["a"]) < len(content)
    assert content.startswith(behind.objects["a"])


def test_a_stale_listing_misses_the_newest() -> None:
    """L35: what a cache would do; it counts only when there was something to miss."""
    behind, store = _stores()
    store.arm(Fault.STALE_LISTING, "list", times=2)
    store.arm(Fault.STALE_LISTING, "list_all")
    assert store.list("logs") == []
    for number in range(5):
        behind.create(f"logs/{number}", b"")
    everything = [Listed(str(number), 0) for number in range(5)]
    assert store.list("logs") in (everything[:-1], everything[:-2])
    assert len(store.list_all("logs")) in {3, 4}
    assert store.list("logs") == everything
    assert store.fired == {Fault.STALE_LISTING: 2}


def test_a_lost_answer_to_a_delete_has_its_effect() -> None:
    behind, store = _stores()
    store.create("a", b"")
    store.arm(Fault.LOST_ANSWER, "delete")
    with pytest.raises(StoreUnavailable):
        store.delete("a")
    assert behind.objects == {}


def test_after_a_failed_fsync_everything_is_refused() -> None:
    """L34; the effect may or may not stand."""
    effects = set()
    for seed in range(20):
        behind, store = _stores(seed=seed)
        store.arm(Fault.FSYNC)
        with pytest.raises(FsyncFailed):
            store.create("a", b"x")
        with pytest.raises(FsyncFailed):
            store.get("a")
        effects.add("a" in behind.objects)
    assert effects == {True, False}


def test_arming_what_cannot_happen_is_an_error() -> None:
    _, store = _stores()
    with pytest.raises(ValueError, match="does not happen"):
        store.arm(Fault.TORN, "get")


def _work(store: FaultStore) -> None:
    store.create("a", b"1")
    store.exists("a")
    store.create("b", b"2")
    store.delete("a")


def test_a_crash_at_every_step_shows_every_state() -> None:
    """Each write dies before and after its effect; a dead process does nothing more."""
    _, store = _stores()
    _work(store)
    assert store.trail == [
        "before create a",
        "after create a",
        "before exists a",
        "before create b",
        "after create b",
        "before delete a",
        "after delete a",
    ]
    states = []
    for step in range(1, store.steps + 1):
        behind, dying = _stores(crash_at=step)
        with pytest.raises(Crash, match=f"step {step}: {store.trail[step - 1]}"):
            _work(dying)
        with pytest.raises(Crash, match="dead"):
            dying.exists("a")
        assert dying.steps == step
        states.append("".join(sorted(behind.objects)))
    assert states == ["", "a", "a", "a", "ab", "ab", "b"]


def test_the_same_seed_breaks_the_same_things() -> None:
    rates = dict.fromkeys((f for f in Fault if f not in {Fault.FSYNC, Fault.DELAY}), 0.1)

    def run(seed: int) -> tuple[dict[str, bytes], dict[Fault, int], list[str]]:
        behind, store = _stores(seed=seed, rates=rates)
        said = []
        for number in range(200):
            try:
                said.append(store.create(f"{number % 50}", bytes(5)).value)
                store.list("")
                store.delete(f"{number % 7}")
            except (StoreUnavailable, StoreFull, ObjectMissing) as error:
                said.append(error.code)
        return behind.objects, dict(store.fired), said

    assert run(1) == run(1)
    assert run(1) != run(2)
    assert set(run(3)[1]) == set(rates)


def test_every_fault_applies_to_something() -> None:
    assert set(APPLIES_TO) == set(Fault)
    assert all(hasattr(FaultStore, call) for calls in APPLIES_TO.values() for call in calls)
