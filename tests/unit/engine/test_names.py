"""The lexer: what a statement may mean, and names in another case."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import AmbiguousName
from engine.names import first_word, mentioned, operators, rewrite, tokens, words


def kinds(statement: str) -> list[tuple[str, str]]:
    return [(t.kind, t.text) for t in tokens(statement)]


def test_tokens_of_each_kind() -> None:
    assert kinds("""SELECT a1, "b ""c" FROM t -- no 'x'\nWHERE s = 'it''s' AND n > 1.5e3 AND $p::int""") == [
        ("word", "SELECT"), ("word", "a1"), ("symbol", ","), ("quoted", '"b ""c"'), ("word", "FROM"), ("word", "t"),
        ("word", "WHERE"), ("word", "s"), ("symbol", "="), ("string", "'it''s'"), ("word", "AND"), ("word", "n"),
        ("symbol", ">"), ("number", "1.5e3"), ("word", "AND"), ("param", "$p"), ("symbol", ":"), ("symbol", ":"),
        ("word", "int"),
    ]  # fmt: skip


def test_block_comments_nest_and_may_lack_their_end() -> None:
    assert kinds("a /* b /* c */ d */ e") == [("word", "a"), ("word", "e")]
    assert kinds("a /* b") == [("word", "a")]


def test_what_looks_like_a_comment_in_a_string_is_none() -> None:
    assert kinds("'--' /**/ '/*' \"--\"") == [("string", "'--'"), ("string", "'/*'"), ("quoted", '"--"')]


def test_dollar_quotes_are_one_token() -> None:
    assert kinds("$$a b$$ $x$ $$ $x$") == [("dollar", "$$a b$$"), ("dollar", "$x$ $$ $x$")]


@given(st.text())
def test_any_text_has_tokens_that_lie_where_they_say(text: str) -> None:
    end = 0
    for token in tokens(text):
        assert token.start >= end
        assert text[token.start : token.end] == token.text
        end = token.end


def test_mentioned_finds_exact_folded_and_quoted_names() -> None:
    names = ["cpu", "Mem", "a.b", 'q"t', "disk", "net"]
    statement = """SELECT * FROM CPU, mem, "a.b", "q""t" WHERE x = 'disk'"""
    assert mentioned(statement, names) == ["cpu", "Mem", "a.b", 'q"t', "disk"]


def test_rewrite_puts_the_case_right_where_one_name_matches() -> None:
    assert rewrite("SELECT Usage FROM CPU", ["cpu", "usage"]) == 'SELECT "usage" FROM "cpu"'
    assert rewrite("SELECT usage FROM cpu", ["Cpu", 'Us"age', "Usage"]) == 'SELECT "Usage" FROM "Cpu"'


def test_rewrite_leaves_exact_quoted_reserved_and_called_names() -> None:
    names = ["cpu", "Select", "Count", "TIME"]
    statement = """SELECT count(*), "CPU", 'CPU' FROM cpu"""
    assert rewrite(statement, names) == statement
    assert rewrite("SELECT time FROM cpu", names) == 'SELECT "TIME" FROM cpu'


def test_rewrite_quotes_quotes() -> None:
    assert rewrite("SELECT A FROM t", ['a"', "a"]) == 'SELECT "a" FROM t'


def test_an_exact_match_wins_over_others() -> None:
    assert rewrite("SELECT host FROM t", ["host", "Host", "HOST"]) == "SELECT host FROM t"


def test_several_matches_without_an_exact_one_are_an_error_that_lists_them() -> None:
    with pytest.raises(AmbiguousName, match='hOST is ambiguous: write one of "HOST", "Host"'):
        rewrite("SELECT hOST FROM t", ["Host", "HOST"])


def test_aliases_of_the_statement_are_names_too() -> None:
    assert rewrite("SELECT a AS Hour FROM t GROUP BY hour", ["a", "t"]) == 'SELECT a AS Hour FROM t GROUP BY "Hour"'
    assert rewrite("WITH Foo AS (SELECT 1) SELECT * FROM foo", []) == 'WITH Foo AS (SELECT 1) SELECT * FROM "Foo"'
    assert rewrite("SELECT CAST(A AS BIGINT) FROM t", ["a"]) == 'SELECT CAST("a" AS BIGINT) FROM t'


def test_operators_count_what_can_nest() -> None:
    assert operators("SELECT a, b, c FROM t WHERE x IN (1, 2, 3)") == 2
    assert operators("SELECT 1" + "+1" * 500) == 501
    assert operators("SELECT x::int::int") == 5


def test_first_word_and_words() -> None:
    assert first_word(" /* c */ Show tables") == "show"
    assert first_word('"show"') == ""
    assert first_word("") == ""
    assert words('Select "A" from B') == {"select", "from", "b"}
