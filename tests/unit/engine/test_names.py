"""The lexer: what a statement may mean, and names in another case."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import AmbiguousName
from engine.names import change_target, first_word, mentioned, operators, rewrite, times, tokens, words


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
    assert rewrite("INSERT INTO CPU (A) VALUES (abs(1))", ["cpu", "a", "Abs"]) == (
        'INSERT INTO "cpu" ("a") VALUES (abs(1))'
    )


@pytest.mark.parametrize(
    ("statement", "parts"),
    [
        ("INSERT INTO t (a) VALUES (1)", ("t",)),
        ('insert into table "a.b".t SELECT 1', ("a.b", "t")),
        ("/* INSERT INTO x */ DELETE FROM public.iox.t WHERE a = 1", ("public", "iox", "t")),
        ('UPDATE "T""" SET a = 1', ('T"',)),
        ("INSERT INTO t", ("t",)),
        ("INSERT INTO", ()),
        ("INSERT INTO 't' VALUES (1)", ()),
        ("", ()),
    ],
)
def test_the_parts_of_the_name_of_the_table_that_is_written(statement: str, parts: tuple[str, ...]) -> None:
    assert change_target(statement) == parts


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


ANY_TIME = (-(2**63), 2**63 - 1)


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("SELECT * FROM cpu WHERE time >= '1970-01-01T00:00:01Z' AND time < '1970-01-01T00:00:02.5Z'",
         (10**9, 2_500_000_000 - 1)),
        ('SELECT max(a) FROM iox.cpu WHERE host = \'a\' AND "time" > \'1970-01-01 00:00:00\' GROUP BY 1 LIMIT 5;',
         (1, ANY_TIME[1])),
        ("SELECT 1 FROM cpu WHERE time = '1970-01-02'", (86_400 * 10**9,) * 2),
        ("SELECT 1 FROM cpu WHERE time <= '1970-01-01T00:00:00Z' AND time >= '1970-01-01T00:00:01Z'", (10**9, 0)),
        ("SELECT 1 FROM cpu WHERE a IN (1, 2) AND (time > '1980-01-01')", ANY_TIME),
        ("SELECT 1 FROM cpu WHERE time > '1980-01-01T00:00:00+01:00' AND time > now() AND time > 'x'", ANY_TIME),
        ("SELECT 1 FROM cpu WHERE time > '1980-02-30' AND time < '2600-01-01'", ANY_TIME),
        ("SELECT 1 FROM cpu WHERE a = time > '1980-01-01' AND time > '1980-01-01' IS NULL AND TIME > '1980-01-01'",
         ANY_TIME),
        ("SELECT 1 FROM cpu WHERE a > 1 QUALIFY count(*) OVER () = 1 AND time > '1980-01-01'", ANY_TIME),
        ("SELECT 1 FROM cpu WHERE a > 1 WINDOW w AS () QUALIFY a AND time > '1980-01-01'", ANY_TIME),
        ("SELECT 1 FROM cpu WHERE a > 1 |> EXTEND a = 1 AND time > '1980-01-01'", ANY_TIME),
        ("SELECT 1 FROM cpu WHERE a || b > 'c' AND time > '1970-01-01'", (1, ANY_TIME[1])),
        ("SELECT 1 FROM cpu GROUP BY a HAVING min(time) > '1980-01-01'", None),
        ("SELECT 1 FROM cpu WHERE time > '1980-01-01' OR a = 1", None),
        ("SELECT 1 FROM cpu WHERE NOT a AND time > '1980-01-01'", None),
        ("SELECT 1 FROM cpu WHERE a BETWEEN 1 AND time > '1980-01-01'", None),
        ("SELECT 1 FROM cpu, mem WHERE time > '1980-01-01'", None),
        ("SELECT 1 FROM cpu c WHERE time > '1980-01-01'", None),
        ("SELECT 1 FROM cpu JOIN mem USING (time) WHERE time > '1980-01-01'", None),
        ("SELECT count(*) FILTER (WHERE time > '1980-01-01') FROM cpu", None),
        ("SELECT 1 FROM (SELECT 1 FROM cpu) WHERE time > '1980-01-01'", None),
        ("SELECT 1 FROM cpu WHERE time > '1980-01-01' UNION SELECT 1 FROM cpu", None),
    ],
)  # fmt: skip
def test_times_of_plain_statements_only(statement: str, expected: tuple[int, int] | None) -> None:
    assert times(statement) == expected


@given(st.text(), st.text())
def test_times_of_any_text(before: str, after: str) -> None:
    times(before)
    times(f"SELECT {before} FROM t WHERE time > {after}")
