"""Two processes: one folder refuses the second; on one store the first is fenced and acknowledges no more."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import TYPE_CHECKING

import pytest

from tests.harness.node import NodeDied, RunningNode
from tests.integration.whole.probing import checkpoint, end_clean, goes_on, post_lines

if TYPE_CHECKING:
    from pathlib import Path

TRY_LATER = 75
ENDS_SECONDS_MAX = 30.0


@dataclass
class Load:
    """Writers that remember what was acknowledged, and when the last acknowledgement came."""

    node: RunningNode
    acknowledged: set[tuple[int, int]] = field(default_factory=set)
    sent: set[tuple[int, int]] = field(default_factory=set)
    answers: set[int] = field(default_factory=set)
    last_acknowledged: float = 0.0
    stopping: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.threads = [threading.Thread(target=self._write, args=(n,), daemon=True) for n in range(3)]
        for thread in self.threads:
            thread.start()

    def _write(self, writer: int) -> None:
        at = 0
        while not self.stopping.is_set():
            at += 1
            self.sent.add((writer, at))
            try:
                status = post_lines(self.node, f"m{at % 3},w=w{writer} v={at}i {at}", precision="ns").status
            except (OSError, HTTPException):
                return  # the process is gone
            self.answers.add(status)
            if status == 204:
                self.last_acknowledged = time.monotonic()
                self.acknowledged.add((writer, at))

    def wait(self, acknowledged: int) -> None:
        deadline = time.monotonic() + 30
        wanted = len(self.acknowledged) + acknowledged
        while len(self.acknowledged) < wanted:
            assert time.monotonic() < deadline, f"too few writes are acknowledged: {self.answers}"
            time.sleep(0.01)

    def stop(self) -> None:
        self.stopping.set()
        for thread in self.threads:
            thread.join(30)


def standing(node: RunningNode) -> list[tuple[int, int]]:
    return [
        (int(row["w"][1:]), row["v"]) for table in ("m0", "m1", "m2") for row in node.query(f"SELECT w, v FROM {table}")
    ]


def test_a_second_process_on_the_folder_is_refused(tmp_path: Path) -> None:
    with RunningNode(tmp_path / "data") as first:
        load = Load(first)
        load.wait(50)
        second = RunningNode(tmp_path / "data", name="second")
        with pytest.raises(NodeDied, match=f"exit {TRY_LATER}"):
            second.start()
        assert first.process is not None
        (complaint,) = second.alarms()
        assert f"process {first.process.pid}" in complaint["error"]
        assert str(tmp_path / "data") in complaint["error"]
        load.wait(50)
        load.stop()
        assert load.answers == {204}, "the first did not even notice"
        assert set(standing(first)) == load.acknowledged
        end_clean(first)


@pytest.mark.parametrize("checkpointed", [False, True], ids=["log_only", "with_files"])
def test_a_second_process_on_the_store_fences_the_first(tmp_path: Path, checkpointed: bool) -> None:
    """LOG L12: different folders, one store. What the first acknowledged stands; it acknowledges nothing afterwards."""
    store = str(tmp_path / "store")
    first = RunningNode(tmp_path / "one" / "data", "--store", store)
    second = RunningNode(tmp_path / "two" / "data", "--store", store)
    first.data.parent.mkdir()
    second.data.parent.mkdir()
    with first:
        load = Load(first)
        load.wait(50)
        if checkpointed:
            checkpoint(first)
            load.wait(20)
        with second:
            taken_over = time.monotonic()
            assert first.process is not None
            assert first.process.wait(ENDS_SECONDS_MAX) == TRY_LATER, first.text()[-2000:]
            load.stop()
            assert load.last_acknowledged < taken_over, "a fenced node has acknowledged a write"
            assert load.answers <= {204, 503}
            reasons = [line for line in first.alarms() if line["event"] == "ownership ended"]
            assert reasons
            assert {line["event"] for line in first.alarms()} <= {"ownership ended", "the node ends"}
            found = standing(second)
            assert len(found) == len(set(found)), "a row stands twice"
            assert load.acknowledged <= set(found) <= load.sent
            goes_on(second)
            end_clean(second)
        first.start()
        assert set(standing(first)) == set(found), "the first can take it back"
        end_clean(first)
