"""Which ALTER says how long rows are kept, and what is wrong with one that nearly does."""

from __future__ import annotations

import pytest

from engine.errors import AmbiguousName, InvalidStatement
from engine.retentionstatement import Retain, retain_of


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("ALTER TABLE t SET (retention = '30d')", Retain(True, "t", False, {"retention": "30d"})),
        (
            "alter table \"T x\" set(retention_bytes='10 GB', Retention = none) ; -- now",
            Retain(True, "T x", True, {"retention_bytes": "10 GB", "retention": "none"}),
        ),
        ("ALTER DATABASE d SET (retention_bytes = 1000)", Retain(False, "d", False, {"retention_bytes": "1000"})),
        ("ALTER TABLE t RESET (retention)", Retain(True, "t", False, {"retention": None})),
        (
            "/* a */ ALTER DATABASE d RESET (retention, retention_bytes);",
            Retain(False, "d", False, {"retention": None, "retention_bytes": None}),
        ),
        ("ALTER TABLE t SET (retention = 'it''s')", Retain(True, "t", False, {"retention": "it's"})),
    ],
)
def test_what_is_asked_for(statement: str, expected: Retain) -> None:
    assert retain_of(statement) == expected


@pytest.mark.parametrize(
    "statement",
    ["", ";", "SELECT 1", "alter", "ALTER TABLE t ADD COLUMN a INT", "ALTER TABLE t", "ALTER TABLE t SET x = 1",
     "ALTER USER u SET (retention = '1d')", "SELECT 'ALTER TABLE t SET (retention = 1)'", "ALTER TABLE t RENAME TO u"],
)  # fmt: skip
def test_other_statements_are_left_alone(statement: str) -> None:
    assert retain_of(statement) is None


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE t SET ()", "ALTER TABLE t SET (retention)", "ALTER TABLE t SET (retention = )",
        "ALTER TABLE t SET (retention '1d')", "ALTER TABLE t SET (retention = '1d',)",
        "ALTER TABLE t SET (retention = '1d', retention = '2d')", "ALTER TABLE t SET (owner = 'me')",
        "ALTER TABLE t SET (retention = '1d') x", "ALTER TABLE t SET (retention = '1d'",
        "ALTER TABLE 't' SET (retention = '1d')", "ALTER TABLE t RESET ()", "ALTER TABLE t RESET (retention = '1d')",
        "ALTER TABLE t SET (retention = -1)", 'ALTER TABLE t SET (retention = "1d")',
        "ALTER TABLE t SET (retention = '1d'); SELECT 1", "ALTER TABLE t SET (retention = '1d' '2d')",
    ],
)  # fmt: skip
def test_the_usage_is_said(statement: str) -> None:
    with pytest.raises(InvalidStatement, match="write ALTER TABLE name SET"):
        retain_of(statement)


def test_which_name_is_meant() -> None:
    plain, quoted = Retain(True, "cpu", False, {}), Retain(True, "cpu", True, {})
    assert plain.of(["cpu", "CPU"]) == quoted.of(["cpu", "CPU"]) == "cpu"
    assert (plain.of(["Cpu"]), quoted.of(["Cpu"])) == ("Cpu", None)
    assert plain.of(["mem"]) is None
    with pytest.raises(AmbiguousName, match='write one of "CPU", "Cpu"'):
        plain.of(["Cpu", "CPU"])
