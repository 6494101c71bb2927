"""What a COPY asks for, and what is none."""

from __future__ import annotations

import pytest

from engine.copystatement import Copy, copy_of, is_copy
from engine.errors import InvalidStatement


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("COPY cpu TO 'a.csv'", Copy("a.csv", "SELECT * FROM cpu", "cpu")),
        ("copy \"My \"\"t\" to 'it''s.csv';", Copy("it's.csv", 'SELECT * FROM "My ""t"', 'My "t')),
        ("COPY (SELECT (1), ')' AS x) TO 'b.parquet' ;", Copy("b.parquet", "SELECT (1), ')' AS x", "")),
        ("-- c\nCOPY cpu FROM 'd/e.csv'", Copy("d/e.csv", None, "cpu")),
    ],
)
def test_what_is_copied(statement: str, expected: Copy) -> None:
    assert is_copy(statement)
    assert copy_of(statement) == expected


@pytest.mark.parametrize(
    "statement",
    [
        "COPY",
        "COPY;",
        "COPY cpu",
        "COPY cpu TO x",
        'COPY cpu TO "x"',
        "COPY () TO 'x.csv'",
        "COPY (SELECT 1) UNION (SELECT 2) TO 'x.csv'",
        "COPY (SELECT 1)) TO 'x.csv'",
        "COPY (SELECT 1) FROM 'x.csv'",
        "COPY cpu, mem TO 'x.csv'",
        "COPY cpu TO 'x.csv' STORED AS CSV",
        "COPY cpu INTO 'x.csv'",
        "COPY cpu TO E'x.csv'",
    ],
)
def test_what_cannot_be_meant(statement: str) -> None:
    assert is_copy(statement)
    with pytest.raises(InvalidStatement, match="write COPY"):
        copy_of(statement)


@pytest.mark.parametrize("statement", ["", "SELECT 'COPY'", "copycat", "(COPY cpu TO 'x')"])
def test_other_statements(statement: str) -> None:
    assert not is_copy(statement)
