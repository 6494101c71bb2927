"""The short form of ``make chaos-local`` (DESIGN promises 1 and 2; LOG L4-L6, L9-L10)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.chaos.kill_rounds import run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.timeout(300)
@pytest.mark.parametrize("faulty", [False, True], ids=["plain", "answers lost"])
def test_kill_9_loses_nothing_and_doubles_nothing(tmp_path: Path, faulty: bool) -> None:
    assert "0 lost" in run(4, 20261120, tmp_path, faulty=faulty)
