"""The docker and compose commands, run with a deadline; what they say is in the failure."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT: Final = Path(__file__).resolve().parents[2]
SECONDS_MAX: Final = 120.0


def run(
    *command: str, environment: Mapping[str, str] | None = None, seconds: float = SECONDS_MAX, is_fine: bool = False
) -> str:
    """Standard output of a command. A failure is an AssertionError, unless it ``is_fine``."""
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )
    assert is_fine or done.returncode == 0, f"{' '.join(command)}: {done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout.strip()


def docker(*arguments: str, seconds: float = SECONDS_MAX, is_fine: bool = False) -> str:
    """`docker ...`."""
    return run("docker", *arguments, seconds=seconds, is_fine=is_fine)


@cache
def compose_command() -> tuple[str, ...]:
    """`docker compose` or docker-compose, whichever answers."""
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0:
        return ("docker", "compose")
    assert shutil.which("docker-compose"), "neither `docker compose` nor docker-compose is there"
    return ("docker-compose",)
