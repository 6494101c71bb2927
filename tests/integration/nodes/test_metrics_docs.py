"""docs/metrics.md names every metric of a real node, and no other."""

from __future__ import annotations

from pathlib import Path

from nodes.metrics_docs import markdown
from tests.harness.node import RunningNode


def test_the_page_is_what_a_node_shows(tmp_path: Path) -> None:
    with RunningNode(tmp_path / "data", "--grpc", "127.0.0.1:0") as node:
        node.write("m v=1 1")
        assert node.query("SELECT v FROM m") == [{"v": 1.0}]
        status, text = node.request("GET", "/metrics")
        assert status == 200
        page = Path(__file__).resolve().parents[3] / "docs" / "metrics.md"
        assert page.read_text() == markdown(text.decode()), "see nodes/metrics_docs.py"
