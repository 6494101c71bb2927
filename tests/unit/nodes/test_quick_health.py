"""`runnel health` without the command line's grammar: which forms it answers, and that both say the same."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

from nodes.cli import app
from nodes.cli.health import SECONDS_DEFAULT, quick


@pytest.mark.parametrize(
    "words",
    [
        ["--json"],
        ["-h"],
        ["--help"],
        ["--live"],
        ["--timeout"],
        ["--timeout", "x"],
        ["--timeout", "0"],
        ["--timeout", "nan"],
        ["--timeout", "inf"],
        ["--host"],
        ["extra"],
        ["--host", "h", "--json"],
    ],
)
def test_other_forms_are_left_to_the_grammar(words: list[str]) -> None:
    assert quick(words) is None


def test_the_default_is_the_grammars() -> None:
    assert inspect.signature(app.health).parameters["timeout"].default == SECONDS_DEFAULT


def test_it_imports_neither_the_grammar_nor_the_http_client_of_the_commands() -> None:
    """A container's engine runs it all the time."""
    program = (
        "import sys, nodes.cli.health; print(*{'typer', 'aiohttp', 'asyncio', 'pyarrow', 'numpy'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
