"""`runnel`, but the nodes that `runnel cluster` starts are stand-ins (`standin_kind`)."""

from __future__ import annotations

import sys

from nodes import __main__ as entry
from nodes.cli import localcluster

if __name__ == "__main__":
    vars(localcluster)["MODULE"] = "tests.integration.nodes.standin_kind"
    entry.main(sys.argv[1:])
