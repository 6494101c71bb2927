"""docs/errors.md says what the tables say."""

from __future__ import annotations

from pathlib import Path

from nodes.errors_docs import markdown


def test_the_page_is_the_tables() -> None:
    page = Path(__file__).resolve().parents[3] / "docs" / "errors.md"
    assert page.read_text() == markdown(), "run: python -m nodes.errors_docs > docs/errors.md"


def test_every_code_has_a_meaning() -> None:
    bare = [line for line in markdown().splitlines() if line.startswith("| `") and line.endswith("|  |")]
    assert bare == []
