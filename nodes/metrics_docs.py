"""docs/metrics.md from what a node shows: ``curl -s URL/metrics | python -m nodes.metrics_docs``; a test compares."""

from __future__ import annotations

import sys
from typing import Final

from nodes.gateway.clustermetrics import CLUSTER_METRICS

PREFIXES: Final = ("# HELP ", "# TYPE ")
SKIPPED: Final = ("_created",)
"""When a series began: prometheus-client adds it to each counter and histogram."""


def rows(text: str) -> list[tuple[str, str, str]]:
    """(name, type, help) of every metric in ``text``, in the Prometheus text format, by name."""
    helps: dict[str, str] = {}
    types: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith(PREFIXES):
            _, kind, name, rest = line.split(" ", 3)
            (helps if kind == "HELP" else types)[name] = rest
    return sorted((n, types[n], helps.get(n, "")) for n in types if not n.endswith(SKIPPED))


def markdown(text: str) -> str:
    """The whole page."""
    lines = [
        "# Metrics",
        "",
        "What `GET /metrics` shows, generated from a running node by `python -m nodes.metrics_docs`.",
        "",
        "| metric | type | meaning |",
        "|---|---|---|",
        *(f"| `{name}` | {kind} | {meaning} |" for name, kind, meaning in rows(text)),
        "",
        "## In a cluster",
        "",
        "Beside these, on every node or on the kind that is named:",
        "",
        "| metric | type | meaning |",
        "|---|---|---|",
        *(f"| `{name}` | {kind} | {meaning} |" for name, (kind, meaning) in sorted(CLUSTER_METRICS.items())),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(markdown(sys.stdin.read()))
