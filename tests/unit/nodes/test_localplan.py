"""A cluster on one machine as it is planned: ports, voters, the nodes' files, the order of stopping."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from cluster.members import Kind
from nodes.cli.localplan import (
    PREFERENCES,
    Folder,
    LocalNode,
    Shape,
    Tls,
    plan,
    seeds,
    settings_of,
    stop_order,
    toml,
    voters,
)
from nodes.clustercheck import cluster_problems
from nodes.exitcodes import CommandFailed
from nodes.settings import FIELDS, load

FOLDER = Folder(Path("/c"))


def ports(node: LocalNode) -> list[int]:
    return [port for port in (node.http, node.grpc, node.gossip, node.raft) if port]


def free(_port: int) -> bool:
    return True


def test_names_kinds_and_ports() -> None:
    nodes = plan(Shape(), free)
    assert [node.name for node in nodes] == [
        "ingest-1", "ingest-2", "ingest-3", "gateway-1", "gateway-2", "query-1", "query-2",
    ]  # fmt: skip
    assert [node.http for node in nodes if node.kind == "gateway"] == [8181, 8182]
    assert all(bool(node.raft) == (node.kind == "ingest") for node in nodes)
    taken = [port for node in nodes for port in ports(node)]
    assert len(set(taken)) == len(taken)
    assert sorted(set(taken) - {8181, 8182}) == list(range(18181, 18181 + len(taken) - 2))


def test_ports_that_are_taken_are_left_out() -> None:
    nodes = plan(Shape(ingest=1, gateways=0, queries=0), lambda port: port % 2 == 0)
    assert ports(nodes[0]) == [18182, 18184, 18186, 18188]


def test_gateways_ports_are_never_given_to_others() -> None:
    nodes = plan(Shape(ingest=1, gateways=2, queries=0, http_port=20001, base_port=20000), free)
    taken = [port for node in nodes for port in ports(node)]
    assert len(set(taken)) == len(taken)


def test_a_gateways_port_must_be_free() -> None:
    with pytest.raises(CommandFailed, match=r"port 8182 is taken.*--http-port"):
        plan(Shape(), lambda port: port != 8182)
    with pytest.raises(CommandFailed, match="--base-port"):
        plan(Shape(), lambda port: port < 18185)


@pytest.mark.parametrize(("ingest", "count"), [(1, 1), (2, 1), (3, 3), (4, 3), (5, 5), (9, 5)])
def test_voters_are_1_3_or_5(ingest: int, count: int) -> None:
    nodes = plan(Shape(ingest=ingest), free)
    found = voters(nodes)
    assert len(found) == count
    assert found[0] == f"ingest-1=127.0.0.1:{nodes[0].raft}"
    assert len(seeds(nodes)) == ingest


@pytest.mark.parametrize("shape", [Shape(), Shape(ingest=1), Shape(ingest=4, gateways=1, queries=0)])
@pytest.mark.parametrize("tls", [None, Tls("/c/tls/ca.crt", "/c/tls/node.crt", "/c/tls/node.key")])
def test_every_nodes_file_is_fit_for_its_kind(shape: Shape, tls: Tls | None, tmp_path: Path) -> None:
    nodes = plan(shape, free)
    for node in nodes:
        given = settings_of(node, nodes, FOLDER, 2**28, tls)
        assert set(given) <= set(FIELDS)
        assert set(given) >= PREFERENCES
        path = tmp_path / f"{node.name}.toml"
        path.write_text(toml(given))
        settings = load(path, environment={}).settings
        assert cluster_problems(settings, Kind(node.kind)) == []
        assert (settings.node_name, settings.http.listen.port) == (node.name, node.http)
        assert settings.store_url == "/c/store"
        assert len(settings.cluster.join) == shape.ingest
        assert settings.tls.is_on == (tls is not None)


def test_texts_that_need_quoting() -> None:
    odd = 'a "b" \\ \u00e9 \U0001f30a'
    assert tomllib.loads(toml({"data.dir": odd, "cluster.join": ["a:1"]})) == {
        "data": {"dir": odd},
        "cluster": {"join": ["a:1"]},
    }


def test_ingest_nodes_stop_last_and_one_by_one() -> None:
    groups = [[node.name for node in group] for group in stop_order(plan(Shape(), free))]
    assert groups == [["query-1", "query-2"], ["gateway-1", "gateway-2"], ["ingest-1"], ["ingest-2"], ["ingest-3"]]
    assert stop_order([]) == []
