"""What Telegraf sends, as it sends it: its start-up question, its headers, its batches, its odd lines."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING

import pytest

from tests.harness.node import RunningNode

if TYPE_CHECKING:
    from collections.abc import Iterator

AGENT = {"User-Agent": "Telegraf/1.30.0 Go/1.22.2", "Content-Type": "text/plain; charset=utf-8"}
BATCH = b"""\
cpu,cpu=cpu-total,host=edge-1 usage_user=3.4132,usage_system=1.2,usage_idle=95.1,usage_guest=0 1767225600000000000
cpu,cpu=cpu0,host=edge-1 usage_user=4,usage_system=0.9,usage_idle=94.8,usage_guest=0 1767225600000000000
disk,device=nvme0n1p2,fstype=ext4,host=edge-1,mode=rw,path=/ free=81604378624i,used_percent=35.02 1767225600000000000
docker_container_status,container_image=my\\ registry/app\\,v1 pid=4242i,container_id="6f3a\\"x" 1767225600000000000
system,host=edge-1 uptime_format="3 days, 4:05" 1767225600000000000
system,host=edge-1 load1=0.31,load5=0.5,n_cpus=2i,n_users=1i 1767225600000000000
win_perf_counters,instance=C:\\,objectname=LogicalDisk,host=edge-1 Percent_Free_Space=12.5 1767225600000000000
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    with RunningNode(tmp_path_factory.mktemp("node") / "data") as node:
        yield node


def test_outputs_influxdb_starts_and_writes(node: RunningNode) -> None:
    """The 1.x output asks for the database first, then posts gzip batches to /write."""
    question = b"q=CREATE+DATABASE+%22telegraf%22"
    form = {**AGENT, "Content-Type": "application/x-www-form-urlencoded"}
    status, body = node.request("POST", "/query", question, form)
    assert (status, json.loads(body)) == (200, {"results": [{"statement_id": 0}]})
    headers = {**AGENT, "Content-Encoding": "gzip"}
    status, body = node.request("POST", "/write?db=telegraf", gzip.compress(BATCH), headers)
    assert (status, body) == (204, b"")
    rows = node.query("SELECT host, uptime_format, load1, n_cpus FROM system", "telegraf")
    assert rows == [{"host": "edge-1", "uptime_format": "3 days, 4:05", "load1": 0.31, "n_cpus": 2}]
    (status_row,) = node.query("SELECT * FROM docker_container_status", "telegraf")
    assert status_row["container_image"] == "my registry/app,v1"
    assert status_row["container_id"] == '6f3a"x'


def test_outputs_influxdb_v2_writes(node: RunningNode) -> None:
    headers = {**AGENT, "Authorization": "Token abc", "Content-Encoding": "gzip"}
    status, body = node.request("POST", "/api/v2/write?bucket=metrics&org=plant", gzip.compress(BATCH), headers)
    assert (status, body) == (204, b"")
    assert node.query("SELECT count(*) AS n FROM cpu", "metrics") == [{"n": 2}]


def test_a_batch_that_is_sent_again_changes_nothing(node: RunningNode) -> None:
    for _ in range(3):
        status, _ = node.request("POST", "/api/v2/write?bucket=again&org=plant", BATCH, AGENT)
        assert status == 204
    assert node.query("SELECT count(*) AS n FROM cpu", "again") == [{"n": 2}]
    assert node.query("SELECT count(*) AS n FROM system", "again") == [{"n": 1}]
