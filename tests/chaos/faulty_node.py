"""A node whose object store loses answers at random: ``python -m tests.chaos.faulty_node start ...``.

The store beneath is the real one; the wrapper of `tests.harness.stores` stands between, seeded by
``FAULT_SEED``, with ``FAULT_RATE`` of all calls hurt. What fired is written to ``FAULT_REPORT`` as it goes.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nodes.embedded
from storage.objects import open_store
from tests.chaos.eager_node import compact_eagerly
from tests.harness.stores import Fault, FaultStore

if TYPE_CHECKING:
    from storage.objects import ObjectStore


def _report(store: FaultStore, path: Path) -> None:
    while True:
        time.sleep(0.05)
        path.write_text(json.dumps({str(fault): count for fault, count in store.fired.items()}))


def main() -> None:
    """Run the command line with the store wrapped."""
    rate = float(os.environ.get("FAULT_RATE", "0.02"))
    rates = {
        Fault.LOST_ANSWER: rate,
        Fault.LOST_REQUEST: rate,
        Fault.LATE: rate,
        Fault.CONFLICT: rate,
        Fault.UNAVAILABLE: rate,
        Fault.DELAY: rate,
    }

    def open_faulty(*arguments: Any) -> ObjectStore:
        store = FaultStore(open_store(*arguments), seed=int(os.environ.get("FAULT_SEED", "1")), rates=rates)
        report = Path(os.environ["FAULT_REPORT"])
        threading.Thread(target=_report, args=(store, report), daemon=True).start()
        return store

    vars(nodes.embedded)["open_store"] = open_faulty
    vars(nodes.embedded)["prove_store"] = lambda _: None  # the proof rightly refuses a store that loses answers
    compact_eagerly()
    from nodes.__main__ import main as run

    sys.exit(run())


if __name__ == "__main__":
    main()
