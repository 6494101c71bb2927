"""Profile observability: Prometheus scrapes every node, and whatever the dashboard asks for is really there."""

from __future__ import annotations

import urllib.parse
from typing import TYPE_CHECKING, Any

import pytest

from tests.compose.stack import GATEWAYS, NODES
from tests.harness.exchange import query_path
from tests.unit.deploy.dashboards import expressions, metric_names

if TYPE_CHECKING:
    from tests.compose.stack import Stack

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def observed(stack: Stack) -> Stack:
    """The cluster with Prometheus, and a little of everything done, so that counters have begun."""
    stack.write(GATEWAYS[0], "seen,a=b x=1i 1").ok()
    stack.query(GATEWAYS[1], "SELECT x FROM seen")
    assert stack.write(GATEWAYS[0], 'seen,a=b x="text" 2').status == 400
    assert not stack.ask(GATEWAYS[0], "GET", query_path("SELECT nothing FROM nowhere", "db")).is_ok
    stack.up("prometheus")
    stack.wait(lambda: _unscraped(stack), "Prometheus scrapes all nodes")
    return stack


def _get(stack: Stack, path: str) -> Any:
    reply = stack.ask("prometheus", "GET", path, seconds=10)
    return reply.json["data"] if reply.status == 200 else {}


def _unscraped(stack: Stack) -> str:
    targets = _get(stack, "/api/v1/targets").get("activeTargets", [])
    up = {target["labels"]["instance"].split(":")[0] for target in targets if target["health"] == "up"}
    missing = sorted(set(NODES) - up)
    return f"not scraped: {missing} {[target['lastError'] for target in targets]}" if missing else ""


def test_every_metric_of_the_dashboard_is_on_a_node(observed: Stack) -> None:
    shown = {line.split("{")[0].split(" ")[0] for name in NODES for line in observed.metrics(name).splitlines()}
    missing = metric_names() - shown - {"up"}
    assert not missing, f"on no node's /metrics: {sorted(missing)}"


def test_prometheus_understands_every_expression_of_the_dashboard(observed: Stack) -> None:
    for expression in expressions():
        # Grafana puts its own step in there.
        asked = expression.replace("$__rate_interval", "1m")
        path = f"/api/v1/query?{urllib.parse.urlencode({'query': asked})}"
        reply = observed.ask("prometheus", "GET", path, seconds=10)
        assert reply.status == 200, (expression, reply.text)
