"""`runnel config show|check`: the settings as a node would see them."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from cluster.members import Kind
from nodes.clustercheck import check_cluster
from nodes.exitcodes import ExitCode
from nodes.settings import SettingsError, load
from nodes.settings_docs import shown, shown_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def show(config: Path | None, flags: Mapping[str, object], *, is_json: bool) -> ExitCode:
    """Print each setting with its value and origin."""
    loaded = load(config, flags)
    if is_json:
        sys.stdout.write(json.dumps(shown_json(loaded), indent=2) + "\n")
        return ExitCode.OK
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("setting", "value", "origin"):
        table.add_column(column, overflow="fold")
    for field, value, origin in shown(loaded):
        table.add_row(field.name, value, origin, style=None if origin != "default" else "dim")
    Console(highlight=False).print(table)
    return ExitCode.OK


def check(config: Path | None, kind: str, *, is_json: bool) -> ExitCode:
    """Name every problem, one a line on standard error (with ``is_json`` as a list on standard output).

    ``kind`` is the command whose node is meant: "start", or a kind of a cluster's node.
    """
    try:
        check_cluster(load(config).settings, None if kind == "start" else Kind(kind))
        problems: tuple[str, ...] = ()
    except SettingsError as error:
        problems = error.problems
    if is_json:
        sys.stdout.write(json.dumps({"ok": not problems, "problems": problems}, indent=2) + "\n")
    elif problems:
        sys.stderr.write("".join(f"runnel: {problem}\n" for problem in problems))
    else:
        sys.stdout.write("the settings are fine\n")
    return ExitCode.CONFIG if problems else ExitCode.OK
