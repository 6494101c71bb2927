"""Which statement kills a query, and what is wrong with one that nearly does."""

from __future__ import annotations

import pytest

from engine.errors import InvalidStatement
from engine.killstatement import CHARACTERS_MAX, killed_id


@pytest.mark.parametrize(
    "statement",
    ["KILL QUERY 'abc'", "kill query 'abc';", "\n  Kill\tQuery 'abc' ;; -- now", "-- a\n/* b */ /**/ KILL QUERY 'abc'"],
)
def test_the_id_is_found(statement: str) -> None:
    assert killed_id(statement) == "abc"


def test_a_quote_in_the_id_is_doubled() -> None:
    assert killed_id("KILL QUERY 'it''s'") == "it's"


@pytest.mark.parametrize(
    "statement",
    ["", "SELECT 'KILL QUERY'", "killer", "SELECT 1; KILL QUERY 'x'", "/* KILL QUERY 'x' */ SELECT 1", "--kill"],
)
def test_other_statements_are_left_alone(statement: str) -> None:
    assert killed_id(statement) is None


@pytest.mark.parametrize(
    "statement",
    [
        "KILL", "KILL QUERY", "KILL QUERY abc", 'KILL QUERY "abc"', "KILL QUERY 7", "KILL QUERY 'a' 'b'", "KILL 'a'",
        "KILL QUERY E'a'", "KILL QUERY 'a", "KILL CONNECTION 'a'", "KILL QUERY 'a'; SELECT 1", "KILL;",
    ],
)  # fmt: skip
def test_the_usage_is_said(statement: str) -> None:
    with pytest.raises(InvalidStatement, match="write KILL QUERY 'id'"):
        killed_id(statement)


def test_a_long_one_is_refused_before_it_is_taken_apart() -> None:
    with pytest.raises(InvalidStatement, match="characters"):
        killed_id("KILL QUERY '" + "x" * CHARACTERS_MAX + "'")


def test_many_comments_take_no_time() -> None:
    assert killed_id("/**/" * 50_000 + "/*") is None
