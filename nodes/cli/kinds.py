"""`runnel gateway`, `ingest`, `query`: one node of a cluster in this process."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from cluster.members import Kind
from nodes import logs
from nodes.assembly import parts_of
from nodes.cli.start import end_for_sure
from nodes.clustercheck import check_cluster
from nodes.node import run_node
from nodes.settings import load

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from nodes.exitcodes import ExitCode
    from nodes.node import Ready


def run(kind: str, config: Path | None, flags: Mapping[str, object]) -> ExitCode:
    """Run a node until it is told to stop. Raises SettingsError with every problem before anything is opened."""
    settings = load(config, flags).settings
    node_kind = Kind(kind)
    check_cluster(settings, node_kind)
    logs.configure(settings.logs, settings.node_name, kind=kind)

    async def say_so(ready: Ready) -> None:
        sys.stdout.write(f"\n  {kind} node {settings.node_name} is ready: {ready.url}. Stop it with Ctrl-C.\n\n")
        sys.stdout.flush()

    return end_for_sure(run_node(settings, parts_of(node_kind), [say_so] if sys.stdout.isatty() else []))
