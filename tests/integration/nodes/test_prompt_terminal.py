"""The SQL prompt as a person uses it: a real pseudo-terminal, a real server."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from nodes.cli.prompt import NAMES
from tests.integration.nodes.processes import ROOT
from tests.integration.nodes.scripted_server import ScriptedServer

if TYPE_CHECKING:
    from pathlib import Path

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\r")
WAIT_SECONDS = 20.0


class Terminal:
    """A process on a pseudo-terminal."""

    def __init__(self, *arguments: str, home: Path) -> None:
        self._master, slave = pty.openpty()
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RUNNEL_")}
        own = {
            "HOME": str(home),
            "XDG_STATE_HOME": str(home),
            "TERM": "xterm",
            "PROMPT_TOOLKIT_NO_CPR": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "nodes", *arguments],
            cwd=ROOT,
            env=kept | own,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self.text = ""

    def expect(self, words: str) -> None:
        """Read until the screen's text, without control sequences, holds these words after the last ones."""
        deadline = time.monotonic() + WAIT_SECONDS
        while words not in self.text:
            assert time.monotonic() < deadline, f"{words!r} did not come: {self.text!r}"
            if select.select([self._master], [], [], 0.1)[0]:
                self.text += CONTROL.sub("", os.read(self._master, 65536).decode(errors="replace"))
        self.text = self.text.partition(words)[2]

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(WAIT_SECONDS)
        os.close(self._master)


def test_a_session(tmp_path: Path) -> None:
    with ScriptedServer() as server:
        names = [{"table_name": "flights", "column_name": name} for name in ("carrier", "dep_delay")]
        server.script.answers |= {
            "/health": (200, "OK"),
            "/api/v3/configure/database": (200, json.dumps([{"iox::database": "demo", "deleted": False}])),
            NAMES: (200, json.dumps(names)),
            "SELECT\n1": (200, "+---+\n| 1 |\n+---+\n| 1 |\n+---+"),
            "SELECT dep_delay": (200, "+-----------+\n| dep_delay |\n+-----------+\n| 42        |\n+-----------+"),
        }
        terminal = Terminal("sql", "--host", server.url, home=tmp_path)
        try:
            terminal.expect("database demo")
            terminal.expect("demo>")
            terminal.type("SELECT\r")
            terminal.type("1;\r")
            terminal.expect("1 row, ")
            terminal.expect("demo>")
            terminal.type("SELECT dep_d\t")
            terminal.expect("elay")
            terminal.type(";\r")
            terminal.expect("| 42")
            terminal.expect("demo>")
            terminal.type("nonsense;\r")
            terminal.expect("no answer is scripted for nonsense")
            terminal.expect("demo>")
            terminal.type("\\q\r")
            assert terminal.process.wait(WAIT_SECONDS) == 0
        finally:
            terminal.close()
    history = (tmp_path / "runnel" / "sql_history").read_text()
    assert "SELECT dep_delay;" in history
    assert (tmp_path / "runnel" / "sql_history").stat().st_mode & 0o077 == 0
