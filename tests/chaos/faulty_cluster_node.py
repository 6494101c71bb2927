"""A cluster node whose object store can be hurt while it runs.

Driven by the chaos rounds (`tests.chaos.nemesis`): ``python -m tests.chaos.faulty_cluster_node ingest ...`` with a
node's own flags. The file ``FAULT_CONTROL`` holds the rates in force, as JSON (``{"lost_answer": 0.02, "delay": 0.5,
"delay_seconds": 0.2}``; missing or empty: none), read again whenever it changes; what fired is added up in
``FAULT_REPORTS``/<pid>.json. ``FAULT_SEED`` and the command line seed it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import storage.objects
from tests.chaos.eager_node import compact_eagerly
from tests.harness.stores import Fault, FaultStore

if TYPE_CHECKING:
    from storage.objects import ObjectStore

POLL_SECONDS: Final = 0.05


class ControlledStore(FaultStore):
    """A `FaultStore` that takes its rates from a file, and forgets its trail."""

    def __init__(self, inner: ObjectStore, seed: int, control: Path, reports: Path) -> None:
        super().__init__(inner, seed=seed)
        self._control, self._reports = control, reports
        self._known: float | None = None
        threading.Thread(target=self._follow, daemon=True, name="fault control").start()

    def _follow(self) -> None:
        while True:
            self._look()
            self.trail.clear()
            time.sleep(POLL_SECONDS)

    def _look(self) -> None:
        try:
            changed = self._control.stat().st_mtime
            if changed != self._known:
                self._take(json.loads(self._control.read_text() or "{}"))
                self._known = changed
        except (FileNotFoundError, json.JSONDecodeError):
            return
        if self.fired:
            self._tell()

    def _take(self, rates: dict[str, float]) -> None:
        self._delay_seconds_max = rates.pop("delay_seconds", 0.005)
        self.rates = {Fault(name): rate for name, rate in rates.items()}
        if not self.rates and self.late:
            self.land_late()

    def _tell(self) -> None:
        whole = self._reports / f"{os.getpid()}.json"
        part = whole.with_suffix(".part")
        part.write_text(json.dumps({str(fault): count for fault, count in self.fired.items()}))
        part.replace(whole)


def fired(reports: Path) -> Counter[str]:
    """What fired in all nodes so far."""
    total = Counter[str]()
    for path in reports.glob("*.json"):
        total.update(json.loads(path.read_text()))
    return total


def main() -> None:
    """Run the command line with the store wrapped."""
    seed = int(os.environ.get("FAULT_SEED", "1")) ^ zlib.crc32(" ".join(sys.argv[1:]).encode())
    control, reports = Path(os.environ["FAULT_CONTROL"]), Path(os.environ["FAULT_REPORTS"])
    reports.mkdir(parents=True, exist_ok=True)
    real = storage.objects.open_store

    def open_faulty(*arguments: Any) -> ObjectStore:
        return ControlledStore(real(*arguments), seed, control, reports)

    vars(storage.objects)["open_store"] = open_faulty
    vars(storage.objects)["prove_store"] = lambda _: None  # the proof rightly refuses a store that loses answers
    compact_eagerly()
    from nodes.__main__ import main as run

    sys.exit(run())


if __name__ == "__main__":
    main()
