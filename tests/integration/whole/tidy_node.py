"""A node that tidies up at once: ``python -m tests.integration.whole.tidy_node start ...``.

Files of expired rows leave the list within a second, not after minutes.
"""

from __future__ import annotations

import sys

import nodes.housekeeping


def main() -> None:
    """Run the command line with a quick housekeeper."""
    vars(nodes.housekeeping)["TIDY_SECONDS"] = 0.3
    from nodes.__main__ import main as run

    sys.exit(run())


if __name__ == "__main__":
    main()
