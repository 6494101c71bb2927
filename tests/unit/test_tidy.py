"""Limits on the sources themselves (DESIGN section 9): file and function length, docstrings, names, owners."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("cluster", "engine", "nodes", "protos", "storage", "wire")
SOURCES = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py") if "_pb2" not in p.name)
ALL = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "benchmarks").rglob("*.py"))]
FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70
JIT = re.compile(r"njit|jit\(")
"""Compiled kernels are one function on purpose: Numba inlines what it can see, and calls cost."""


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]


def is_compiled(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(JIT.search(ast.unparse(d)) for d in function.decorator_list)


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or 0) - node.lineno + 1


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_source_file_is_short_documented_and_well_named(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert text.count("\n") <= FILE_LINES_MAX
    assert ast.get_docstring(tree), "a module says what it is and who drives it"
    assert path.stem not in {"utils", "common", "helpers", "manager"}
    long = [f.name for f in functions(tree) if length(f) > FUNCTION_LINES_MAX and not is_compiled(f)]
    assert not long


def test_the_median_function_is_short() -> None:
    lengths = [length(f) for path in SOURCES for f in functions(ast.parse(path.read_text()))]
    assert statistics.median(lengths) < 10
    assert sum(n > 40 for n in lengths) <= len(lengths) * 0.05


@pytest.mark.parametrize("path", ALL, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_sleep_and_hope(path: Path) -> None:
    """Unit tests and searches do not sleep at all."""
    if any(part in ("unit", "sim") for part in path.parts) and path != Path(__file__):
        assert not re.search(r"\btime\.sleep\(|asyncio\.sleep\([^0)]", path.read_text())


def test_only_settings_reads_the_environment() -> None:
    readers = [str(p.relative_to(ROOT)) for p in SOURCES if re.search(r"os\.(environ\b|getenv)", p.read_text())]
    assert [r for r in readers if r != "nodes/settings.py"] == []


def test_our_package_names_belong_to_our_distribution_alone() -> None:
    """A distribution that is called like one of our packages would overwrite it."""
    owners = importlib.metadata.packages_distributions()
    for package in PACKAGES:
        assert set(owners.get(package, ["runnel"])) == {"runnel"}


def test_no_host_of_a_registry_and_no_path_of_a_machine_is_written() -> None:
    lock_lines = [line for p in (ROOT / "requirements").glob("*.txt") for line in p.read_text().splitlines()]
    assert not [line for line in lock_lines if "://" in line or line.startswith(("--index", "-i ", "--find"))]
