"""A Placement's order and bytes (L32); bytes of strangers are refused, whatever they are."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import MalformedMessage
from cluster.placement import Placement, PlacementVersion, decode_placement, encode_placement

VERSIONS = st.builds(PlacementVersion, st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1))
PLACEMENTS = st.builds(
    Placement, VERSIONS, st.text(max_size=8), st.dictionaries(st.integers(0, 2**31), st.text(max_size=8), max_size=8)
)
GOOD = Placement(PlacementVersion(7, 2), "a", {1: "a", 2: "b"})


@given(PLACEMENTS)
def test_bytes_come_back_as_they_were(placement: Placement) -> None:
    assert decode_placement(encode_placement(placement)) == placement


@given(st.binary(max_size=64))
def test_any_bytes_are_a_placement_or_malformed(data: bytes) -> None:
    try:
        placement = decode_placement(data)
    except MalformedMessage:
        return
    assert isinstance(placement, Placement)


@pytest.mark.parametrize("cut", range(len(encode_placement(GOOD))))
def test_a_part_of_it_is_malformed(cut: int) -> None:
    with pytest.raises(MalformedMessage):
        decode_placement(encode_placement(GOOD)[:cut])


@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        "text",
        [1, 2, "a"],
        [1, 2, "a", {}, "more"],
        [1.5, 2, "a", {}],
        ["1", 2, "a", {}],
        [1, None, "a", {}],
        [1, 2, b"a", {}],
        [1, 2, "a", {"x": "a"}],
        [1, 2, "a", {1: 2}],
        [1, 2, "a", [[1, "a"]]],
    ],
)
def test_another_shape_is_malformed(value: object) -> None:
    with pytest.raises(MalformedMessage):
        decode_placement(msgspec.msgpack.encode(value))


def test_the_epoch_goes_before_the_number() -> None:
    assert PlacementVersion(2, 1) > PlacementVersion(1, 9) > PlacementVersion(1, 8) > PlacementVersion()


def test_shards_of_a_node() -> None:
    assert GOOD.shards_of("a") == {1}
    assert GOOD.shards_of("z") == frozenset()
