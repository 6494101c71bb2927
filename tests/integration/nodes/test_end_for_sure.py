"""A process whose node has ended does not wait for a thread that never will."""

from __future__ import annotations

import subprocess
import sys
import time

SCRIPT = """
import sys, threading
from nodes.cli import start
from nodes.exitcodes import ExitCode
start.EXIT_SECONDS_MAX = 0.5
threading.Thread(target=threading.Event().wait).start()
sys.exit(start.end_for_sure(ExitCode.TRY_LATER))
"""


def test_a_stuck_thread_does_not_hold_the_process() -> None:
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (75, "", "")
    assert time.monotonic() - begun < 20
