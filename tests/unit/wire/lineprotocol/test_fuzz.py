"""A short, seeded run of each fuzz target, so that the targets stay alive and the easy finds stay found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]


@pytest.mark.parametrize("target", ["reference", "differential"])
def test_a_short_run_finds_nothing(target: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz.lineprotocol", target, "-seed=7", "-runs=2500", "-max_len=200"]
    ended = subprocess.run(
        [*command, f"-artifact_prefix={tmp_path}/"], cwd=ROOT, capture_output=True, check=False, timeout=100, text=True
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "Done 2500 runs" in ended.stderr
