"""`runnel start`: everything in one process, and a short banner on a terminal."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nodes import logs
from nodes.assembly import embedded_parts
from nodes.clustercheck import check_cluster
from nodes.node import run_node
from nodes.settings import Settings, load

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nodes.exitcodes import ExitCode
    from nodes.node import Ready

EXIT_SECONDS_MAX: Final = 5.0
"""How long the interpreter may wait for threads when the node has ended."""


def start(config: Path | None, flags: Mapping[str, object]) -> ExitCode:
    """Run a node until it is told to stop. Raises SettingsError before anything is opened."""
    settings = load(config, flags).settings
    check_cluster(settings, None)
    logs.configure(settings.logs, settings.node_name)
    return end_for_sure(run_node(settings, embedded_parts(), [show_banner] if sys.stdout.isatty() else []))


def end_for_sure(code: ExitCode) -> ExitCode:
    """Python ends when all threads have: one deep in a query's plan that cannot be stopped may not hold it up.

    The node has closed everything before; nothing is lost.
    """
    timer = threading.Timer(EXIT_SECONDS_MAX, os._exit, [int(code)])
    timer.daemon = True
    timer.start()
    return code


async def show_banner(ready: Ready) -> None:
    """Where it listens, where the data lies, what to paste."""
    sys.stdout.write(banner(ready.settings, ready.url))
    sys.stdout.flush()


def banner(settings: Settings, url: str) -> str:
    """The text of it, for a terminal of 80 columns."""
    return f"""
  Runnel listens on {url}; its data is in {settings.store_url}

  write    curl '{url}/api/v3/write_lp?db=home' \\
                --data-binary 'room,name=kitchen celsius=21.5'
  read     curl -G '{url}/api/v3/query_sql' --data-urlencode db=home \\
                --data-urlencode 'q=SELECT * FROM room'
  explore  {command()} sql --db home --host {url}
  stop     Ctrl-C

"""  # noqa: S608 - text to read


def command() -> str:
    """How this program was called, so that a pasted line finds it: a virtual environment may not be on the PATH."""
    name = Path(sys.argv[0]).name
    return name if shutil.which(name) else os.path.relpath(sys.argv[0])
