"""What Grafana's dashboard asks Prometheus for. Driven by the tests here and by those of the compose cluster."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[3]
DASHBOARD: Final = ROOT / "deploy/grafana/dashboards/runnel.json"
OURS: Final = re.compile(r"\b(?:runnel|http|influxdb3|process|python)_[a-z0-9_]+\b|\bup\b")
"""A metric's name; functions and labels of PromQL do not begin like that."""


def panels() -> list[dict[str, Any]]:
    """The dashboard's panels."""
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def expressions() -> list[str]:
    """Every PromQL expression of the dashboard."""
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def metric_names() -> set[str]:
    """Every metric that the dashboard needs."""
    return {name for expression in expressions() for name in OURS.findall(expression)}
