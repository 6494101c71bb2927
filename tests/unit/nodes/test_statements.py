"""Where SQL statements end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes.cli.statements import is_complete, quote_name, quote_string, split


@pytest.mark.parametrize(
    ("text", "statements", "rest"),
    [
        ("", [], ""),
        ("SELECT 1", [], "SELECT 1"),
        ("SELECT 1;", ["SELECT 1"], ""),
        ("SELECT 1; SELECT 2", ["SELECT 1"], "SELECT 2"),
        ("SELECT ';' ;", ["SELECT ';'"], ""),
        ("SELECT 'it''s; fine';x", ["SELECT 'it''s; fine'"], "x"),
        ('SELECT "a;""b" FROM t;', ['SELECT "a;""b" FROM t'], ""),
        ("SELECT 1 -- no; end\n;", ["SELECT 1 -- no; end"], ""),
        ("SELECT /* ; */ 1;", ["SELECT /* ; */ 1"], ""),
        ("SELECT 4/2-1;", ["SELECT 4/2-1"], ""),
        (";;  ;", [], ""),
        ("-- only a comment\n;", [], ""),
        ("SELECT 'open;", [], "SELECT 'open;"),
        ("SELECT /* open;", [], "SELECT /* open;"),
    ],
)
def test_split(text: str, statements: list[str], rest: str) -> None:
    assert split(text) == (statements, rest)


@pytest.mark.parametrize(
    ("text", "complete"),
    [
        ("", True),
        ("\\dt", True),
        ("SELECT 1;", True),
        ("SELECT 1", False),
        ("SELECT ';", False),
        ("SELECT 1; --x", False),
    ],
)
def test_is_complete(text: str, complete: bool) -> None:
    assert is_complete(text) is complete


@given(st.text(alphabet="ab'\";-/* \n"))
def test_nothing_but_semicolons_and_comments_is_lost(text: str) -> None:
    statements, rest = split(text)
    letters = "".join([*statements, rest])
    assert letters.count("a") <= text.count("a")
    if not any(mark in text for mark in ("--", "/*")):
        assert letters.count("a") == text.count("a")


@given(st.text(alphabet="ab'\"; ", min_size=1))
def test_quoted_text_is_one_statement(text: str) -> None:
    for quoted in (quote_string(text), '"' + text.replace('"', '""') + '"'):
        assert split(f"SELECT {quoted};") == ([f"SELECT {quoted}"], "")


@pytest.mark.parametrize(
    ("name", "quoted"), [("cpu", "cpu"), ("CPU", '"CPU"'), ("order", '"order"'), ('a"b', '"a""b"'), ("1a", '"1a"')]
)
def test_quote_name(name: str, quoted: str) -> None:
    assert quote_name(name) == quoted
