"""Joins of tables that have columns of one name, which DataFusion 55 mixes up when it pushes conditions down."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from engine.errors import NotSupported
from storage.schema import TypeKind
from tests.harness.queries import World, make_table, sorted_rows

if TYPE_CHECKING:
    from pathlib import Path

FIELDS = {"k": TypeKind.INT64, "i": TypeKind.INT64}
BIG = make_table("big", ("host",), FIELDS)
SMALL = make_table("small", ("host",), FIELDS | {"only": TypeKind.INT64}, id=2)
MISSES = [{"k": 6}, {"k": 7}, {"k": 8}]


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Of the four rows of `small` the first meets rows of `big`; all have a `k`."""
    world = World(tmp_path, BIG, SMALL)
    world.add_file([{"time": t, "host": "a", "k": t % 4, "i": t % 4 * 10} for t in range(400)], BIG)
    world.add_file([{"time": t, "host": "a", "k": 5 + t, "i": (10, 99, 98, 97)[t], "only": t} for t in range(4)], SMALL)
    return world


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT small.k FROM big RIGHT JOIN small ON big.i = small.i WHERE big.k IS NULL",
        "SELECT small.k FROM big RIGHT OUTER JOIN small ON big.i = small.i WHERE big.k IS NULL OR small.k = 5",
        "SELECT small.k FROM big FULL JOIN small ON big.i = small.i WHERE big.k IS NULL AND small.k > 5",
        "SELECT k FROM (SELECT small.k, big.k AS b FROM big RIGHT JOIN small ON big.i = small.i) WHERE b IS NULL",
        "SELECT sum(s.k) AS n FROM big RIGHT JOIN small AS s ON big.i = s.i JOIN big AS o ON true WHERE big.k IS NULL",
    ],
)
def test_a_condition_that_would_be_asked_of_the_wrong_side_is_refused(world: World, statement: str) -> None:
    with pytest.raises(NotSupported, match=r"on 'k', which both sides .* LEFT JOIN"):
        world.ask(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT small.k FROM small LEFT JOIN big ON big.i = small.i WHERE big.k IS NULL",
        "SELECT s AS k FROM big RIGHT JOIN (SELECT k AS s, i AS j FROM small) ON i = j WHERE k IS NULL",
        "SELECT s AS k FROM big FULL JOIN (SELECT k AS s, i AS j FROM small) ON i = j WHERE k IS NULL AND s > 0",
        "SELECT small.k FROM big RIGHT JOIN small ON big.i = small.i WHERE small.k > 5",
        "SELECT DISTINCT small.k FROM big RIGHT JOIN small ON big.i = small.i AND big.k > 0 WHERE only > 0",
    ],
)
def test_others_are_answered(world: World, statement: str) -> None:
    assert sorted_rows(world.ask(statement)) == MISSES


def test_a_left_join_asks_its_own_sides(world: World) -> None:
    """In whichever order DataFusion has them."""
    statement = "SELECT count(*) AS n FROM {} LEFT JOIN {} ON big.i = small.i WHERE small.k IS NULL OR big.k IS NULL"
    assert world.ask(statement.format("big", "small")) == [{"n": 300}]
    assert world.ask(statement.format("small", "big")) == [{"n": 3}]


def test_a_join_hands_nothing_down_through_another(world: World) -> None:
    """DataFusion does it by the columns' names, which both sides of the lower one have."""
    two = "SELECT count(*) FROM big JOIN small ON big.k = small.k"
    three = f"{two} JOIN big AS other ON other.k = small.k"
    assert "DynamicFilter" in str(world.ask(f"EXPLAIN {two}")), "then the next line shows nothing"
    assert "DynamicFilter" not in str(world.ask(f"EXPLAIN {three}"))
    assert "DynamicFilter" in str(world.ask(f"EXPLAIN {two}"))
