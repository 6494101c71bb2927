"""A node whose DataFiles take their time: ``python -m tests.integration.whole.slow_node start ...``.

Each create of a DataFile waits ``SLOW_SECONDS`` first, as on a disk or bucket that does not keep up.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import storage.datafile


def main() -> None:
    """Run the command line with slow DataFiles."""
    seconds = float(os.environ["SLOW_SECONDS"])
    create = vars(storage.datafile)["create_datafile"]

    def slow(*arguments: Any) -> Any:
        time.sleep(seconds)
        return create(*arguments)

    vars(storage.datafile)["create_datafile"] = slow
    from nodes.__main__ import main as run

    sys.exit(run())


if __name__ == "__main__":
    main()
