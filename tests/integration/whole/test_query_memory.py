"""A query over the memory that one may have, through HTTP: it is refused with the setting's name, and others go on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.harness.node import RunningNode

if TYPE_CHECKING:
    from pathlib import Path

HUNGRY = "SELECT cardinality(array_agg(value)) AS n FROM generate_series(1, 2500000)"


def test_one_query_s_memory_is_limited(tmp_path: Path) -> None:
    limits = {"RUNNEL_QUERY__MEMORY": "64 MiB", "RUNNEL_QUERY__MEMORY_MAX": "16 MiB"}
    with RunningNode(tmp_path / "data", environment=limits) as node:
        node.write("t,host=a v=1i 1")
        for _ in range(2):
            status, answer = ask(node, HUNGRY)
            assert status == 422, answer
            assert "query.memory_max" in answer
            assert ask(node, "SELECT v FROM t") == (200, '[{"v":1}]')


def ask(node: RunningNode, statement: str) -> tuple[int, str]:
    body = json.dumps({"db": "db", "q": statement}).encode()
    status, answer = node.request("POST", "/api/v3/query_sql", body, {"Content-Type": "application/json"})
    return status, answer.decode()
