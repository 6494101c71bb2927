"""As few moves as possible, and none but those that are asked for."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cluster.spread import Candidate, Rank, fill, level

NAMES = st.sampled_from("abcde")
OWNERS = st.dictionaries(st.integers(1, 16), NAMES, max_size=16)
NODES = st.sets(NAMES).map(lambda names: [Candidate(name) for name in sorted(names)])


@given(OWNERS, st.sets(st.integers(20, 30)), NODES)
def test_filling_moves_nothing_and_gives_all(owners: dict[int, str], orphans: set[int], nodes: list[Candidate]) -> None:
    filled = fill(owners, orphans, nodes)
    assert {s: o for s, o in filled.items() if s not in orphans} == owners
    assert filled.keys() == owners.keys() | (orphans if nodes else set())


@given(OWNERS, NODES)
def test_levelling_makes_even_with_the_fewest_moves(owners: dict[int, str], nodes: list[Candidate]) -> None:
    levelled = level(owners, nodes)
    names = {c.name for c in nodes}
    assert {s: o for s, o in levelled.items() if owners[s] not in names} == {
        s: o for s, o in owners.items() if o not in names
    }
    before, after = Counter(owners.values()), Counter(levelled.values())
    counts = [after[name] for name in names]
    assert not counts or max(counts) - min(counts) <= 1
    moved = sum(levelled[s] != owners[s] for s in owners)
    least = min(counts, default=0)
    assert moved <= sum(max(0, before[name] - least) for name in names)
    assert moved == sum(max(0, before[name] - after[name]) for name in names)


def test_the_fewest_shards_then_zone_then_load_then_name() -> None:
    busy, far, near = Candidate("c", load=9), Candidate("b", zone="z2", load=5), Candidate("a", zone="z1", load=5)
    assert fill({1: "a"}, [2], [near, busy]) == {1: "a", 2: "c"}
    assert fill({1: "x"}, [2], [Candidate("n", zone="z1"), Candidate("m", zone="z1")])[2] == "m"
    assert fill({}, [2], [near, far, Candidate("d", zone="z3", load=1)])[2] == "d"
    spread = fill({1: "a", 2: "b", 3: "d"}, [4], [near, far, Candidate("d", zone="z1", load=0)])
    assert spread[4] == "b", "the zone with the fewest"


def test_a_doubtful_node_is_asked_only_if_no_other_is_there() -> None:
    doubtful, draining = Candidate("a", Rank.DOUBTFUL), Candidate("b", Rank.DRAINING)
    assert fill({}, [1, 2], [doubtful, draining, Candidate("c")]) == {1: "c", 2: "c"}
    assert fill({}, [1], [doubtful, draining]) == {1: "a"}
    assert fill({}, [1], [draining]) == {1: "b"}
    assert fill({}, [1], []) == {}
    assert level({1: "c", 2: "c"}, [doubtful, Candidate("c")]) == {1: "c", 2: "c"}
