"""docs/log.md names every rule, and whatever it names is there: files, classes, functions, tests."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "docs" / "log.md").read_text()
ROWS = re.findall(r"^\| L(\d+) \|(.*)\|(.*)\|(.*)\|$", TEXT, re.MULTILINE)
SOURCES = "\n".join(p.read_text() for d in ("engine", "nodes", "storage") for p in sorted((ROOT / d).rglob("*.py")))
TESTS = {p.name: p.read_text() for p in sorted((ROOT / "tests").rglob("*.py"))}


def test_every_rule_has_its_row_its_place_and_its_test() -> None:
    assert [int(number) for number, *_ in ROWS] == list(range(1, 37))
    for number, rule, place, test in ROWS:
        assert rule.strip()
        assert place.strip(), number
        assert test.strip(), number


def test_what_it_names_is_there() -> None:
    for path in set(re.findall(r"`((?:engine|nodes|storage|tests)/[\w/]+\.py)`", TEXT)):
        assert (ROOT / path).is_file(), path
    for name in set(re.findall(r"`(test_\w+\.py)`", TEXT)):
        assert name in TESTS, name
    for prefix in set(re.findall(r"`(test_(?!\w+\.py)\w+)…?`", TEXT)):
        assert any(f"def {prefix}" in text for text in TESTS.values()), prefix
    for _, _, places, _ in ROWS:
        for word in re.findall(r"`([\w.]+)`", places):
            if not word.endswith((".py", ".md")):
                name = word.rpartition(".")[2]
                assert re.search(rf"(def|class) {name}\b", SOURCES), word


def test_broken_rules_are_named_after_rules() -> None:
    """Each case of the broken rules that the table names exists, and each broken rule is in the table."""
    broken = set(re.findall(r'\("L(\d+)", broken', TESTS["test_broken_rules.py"]))
    named = {number for number, _, _, test in ROWS if "broken" in test}
    assert broken <= named
