"""`runnel start --grpc`: the public API of a real node, through the example client, over restarts and TLS."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pyarrow as pa
import pytest

from cluster.certificates import make_certificates
from cluster.secret import make_secret
from cluster.tlsfiles import channel_credentials, load
from examples.runnel_client import RunnelClient, RunnelError, main
from protos import runnel_pb2 as pb
from protos.runnel_pb2_grpc import RunnelStub
from tests.harness.node import RunningNode

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RunningNode]:
    with RunningNode(tmp_path / "data", "--grpc", "127.0.0.1:0") as running:
        yield running
        assert running.stop() == 0
        assert running.alarms() == []


def test_every_call_of_the_example_client(node: RunningNode) -> None:
    with RunnelClient(node.grpc_address) as client:
        written = client.write("home", "room,name=kitchen celsius=21.5 1\nbroken\nroom,name=hall celsius=19 2")
        assert (written.rejected, written.faults[0][0]) == (1, 2)
        rows = pa.table({"time": pa.array([3], pa.timestamp("ns")), "name": ["attic"], "celsius": [30.0]})
        client.write_table("home", "room", rows, tags=["name"])
        assert client.write_many("home", (b"room,name=cellar celsius=%d %d" % (n, n + 10) for n in range(20))) == 20
        warm = client.query("home", "SELECT name FROM room WHERE celsius > $low ORDER BY name", {"low": 20.5})
        assert warm.column("name").to_pylist() == ["attic", "kitchen"]
        assert client.query("home", "SELECT count(*) AS n FROM room").to_pylist() == [{"n": 23}]
        assert client.tables("home") == {"room": {"time": "timestamp", "name": "string", "celsius": "float64"}}
        status = client.status()
        assert (status.phase, status.is_ready, len(status.nodes)) == ("ready", True, 0)
        assert status.node
        with pytest.raises(RunnelError) as caught:
            client.query("home", "SELECT nothing FROM room")
        assert (caught.value.code, caught.value.retry_seconds) == ("invalid_statement", None)
    assert node.query("SELECT count(*) AS n FROM room", "home") == [{"n": 23}]


def test_the_example_runs(node: RunningNode, capsys: pytest.CaptureFixture[str]) -> None:
    main(node.grpc_address)
    assert "kitchen" in capsys.readouterr().out


def test_a_key_is_known_after_a_crash(tmp_path: Path) -> None:
    """The first try's rows stand; the second is answered from the Log, not from memory."""
    node = RunningNode(tmp_path / "data", "--grpc", "127.0.0.1:0")
    lines = "\n".join(f"m,t={n % 7} v={n} {n}" for n in range(100))
    with node:
        with RunnelClient(node.grpc_address) as client:
            client.write("db", lines, key="batch-1")
        files = offsets(node)
        node.kill()
        node.start()
        with RunnelClient(node.grpc_address) as client:
            client.write("db", lines, key="batch-1")
            client.write("db", lines.replace("v=", "v=9"), key="batch-1")
            assert offsets(node) == files
            assert client.query("db", "SELECT max(v) AS high FROM m").to_pylist() == [{"high": 99.0}]
            client.write("db", lines.replace("v=", "v=9"), key="batch-2")
            assert client.query("db", "SELECT max(v) AS high FROM m").to_pylist() == [{"high": 999.0}]


def offsets(node: RunningNode) -> int:
    """Rows of all DataFiles and memtables, before folding."""
    status, body = node.request("GET", "/api/runnel/status")
    assert status == 200
    return sum(table["rows"] for database in json.loads(body)["databases"] for table in database["tables"])


def test_keyed_writes_while_the_node_is_killed(tmp_path: Path) -> None:
    """Clients that repeat until it stands, and a node that is killed under them: each row once, none lost."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        where = f"127.0.0.1:{free.getsockname()[1]}"  # the same one after the restart
    node = RunningNode(tmp_path / "data", "--grpc", where)
    with node:
        done: list[int] = []

        def write(first: int) -> None:
            with RunnelClient(where, seconds=60) as client:
                for number in range(first, first + 40):
                    client.write("db", f"m,n=x{number} v={number}i {number}")
                    done.append(number)

        threads = [threading.Thread(target=write, args=(first,)) for first in (0, 1000)]
        for thread in threads:
            thread.start()
        while len(done) < 20:
            time.sleep(0.005)
        node.kill()
        node.start()
        for thread in threads:
            thread.join(90)
        assert sorted(done) == [*range(40), *range(1000, 1040)]
        assert offsets(node) == 80


def test_with_tls_the_server_shows_its_certificate_and_plaintext_is_refused(tmp_path: Path) -> None:
    files = make_certificates(tmp_path / "tls")
    make_secret(tmp_path / "secret")
    environment = {
        "RUNNEL_TLS__CA": str(files.ca), "RUNNEL_TLS__CERT": str(files.cert), "RUNNEL_TLS__KEY": str(files.key),
        "RUNNEL_CLUSTER__SECRET_FILE": str(tmp_path / "secret"),
    }  # fmt: skip
    with RunningNode(tmp_path / "data", "--grpc", "127.0.0.1:0", environment=environment) as node:
        with RunnelClient(node.grpc_address, credentials=channel_credentials(load(files))) as client:
            client.write("db", "m v=1 1")
            assert client.query("db", "SELECT v FROM m").to_pylist() == [{"v": 1.0}]
        authority = grpc.ssl_channel_credentials(files.ca.read_bytes())  # a client is no node: it needs none itself
        with RunnelClient(node.grpc_address, credentials=authority) as client:
            assert list(client.tables("db")) == ["m"]
        with RunnelClient(node.grpc_address, seconds=3) as plain, pytest.raises(RunnelError) as caught:
            plain.tables("db")
        assert caught.value.code == "unavailable"
        assert node.stop() == 0


def test_without_the_flag_nothing_of_grpc_is_loaded(tmp_path: Path) -> None:
    with RunningNode(tmp_path / "data") as node:
        node.write("m v=1 1")
        assert node.process is not None
        maps = Path(f"/proc/{node.process.pid}/maps").read_text()
        assert "pyarrow" in maps
        assert "cygrpc" not in maps


def test_a_taken_port_ends_the_node(tmp_path: Path) -> None:
    with RunningNode(tmp_path / "one", "--grpc", "127.0.0.1:0") as node:
        other = RunningNode(tmp_path / "two", "--grpc", node.grpc_address, name="other")
        with pytest.raises(Exception, match="exit 69"):
            other.start()
        assert "Address already in use" in other.text()


def test_a_deadline_ends_a_query(node: RunningNode) -> None:
    node.write("\n".join(f"m v={n} {n}" for n in range(3000)))
    stub: Any = RunnelStub(grpc.insecure_channel(node.grpc_address))
    slow = "SELECT count(*) FROM m a, m b, m c WHERE a.v + b.v + c.v < 0"
    began = time.monotonic()
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Query(pb.QueryRequest(database="db", sql=slow), timeout=1.0))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - began < 5
    assert stub.ListTables(pb.ListTablesRequest(database="db"), timeout=10).tables[0].name == "m"
