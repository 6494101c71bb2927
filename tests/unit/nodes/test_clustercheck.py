"""What the settings of a cluster's node may not say together."""

from __future__ import annotations

import pytest

from cluster.members import Kind
from nodes.clustercheck import check_cluster, cluster_problems
from nodes.exitcodes import ExitCode
from nodes.settings import SettingsError, load
from nodes.settings_cluster import ClusterSettings, GrpcSettings, RaftSettings
from nodes.settings_kinds import Address

VOTERS = "i1=127.0.0.1:7947,i2=127.0.0.1:7957,i3=127.0.0.1:7967"
GOOD = {"store.url": "/shared", "node.name": "i1", "raft.voters": VOTERS, "cluster.join": "127.0.0.1:7946"}
TRUST = {"cluster.secret_file": "s", "tls.ca": "ca", "tls.cert": "c", "tls.key": "k"}


def problems(kind: Kind | None = Kind.INGEST, /, **changes: object) -> list[str]:
    """Of good settings with changes; ``section__key`` names a setting, None takes it out."""
    flags = {**GOOD, **{name.replace("__", "."): value for name, value in changes.items()}}
    return cluster_problems(load(None, flags, {}).settings, kind)


@pytest.mark.parametrize("kind", list(Kind))
def test_good_settings(kind: Kind) -> None:
    name = "i1" if kind is Kind.INGEST else "other"
    assert problems(kind, node__name=name) == []
    assert problems(kind, node__name="i4" if kind is Kind.INGEST else "other", raft__voters=None) == []


def test_every_problem_is_raised_at_once() -> None:
    settings = load(None, {"node.name": "a b", "grpc.listen": "0.0.0.0:1"}, {}).settings
    with pytest.raises(SettingsError) as caught:
        check_cluster(settings, Kind.INGEST)
    assert caught.value.exit_code is ExitCode.CONFIG
    named = " ".join(caught.value.problems)
    for word in ("grpc.listen", "store.url", "node.name", "cluster.advertise", "raft.voters"):
        assert word in named


@pytest.mark.parametrize("name", ["grpc__listen", "gossip__listen", "raft__listen"])
@pytest.mark.parametrize("host", ["10.1.2.3", "example.org", "[fd00::1]"])
def test_beyond_loopback_needs_a_secret_and_tls(name: str, host: str) -> None:
    changes = {name: f"{host}:7947"}
    (problem,) = problems(**changes)
    assert problem.startswith(f"{name.replace('__', '.')} = {host}:7947 can be reached from other machines")
    assert "cluster.secret_file and tls.ca, tls.cert and tls.key" in problem
    (problem,) = problems(**changes, cluster__secret_file="s")
    assert "give tls.ca, tls.cert and tls.key (" in problem
    assert problems(**changes, **{name.replace(".", "__"): value for name, value in TRUST.items()}) == []


def test_raft_counts_only_where_it_listens() -> None:
    assert problems(raft__listen="10.1.2.3:7947", node__name="i4") == []
    assert problems(Kind.GATEWAY, raft__listen="10.1.2.3:7947", node__name="g1") == []


def test_one_process_is_asked_only_about_its_grpc_and_tls() -> None:
    alone = {name.replace(".", "__"): None for name in GOOD}
    assert problems(None, **alone) == []
    assert problems(None, **alone, gossip__listen="10.1.2.3:1") == []
    (problem,) = problems(None, **alone, grpc__listen="10.1.2.3:1")
    assert "grpc.listen" in problem
    assert "tls.cert is given without tls.ca and tls.key" in problems(None, **alone, tls__cert="c")[0]


def test_everywhere_is_no_address_to_reach() -> None:
    trust = {name.replace(".", "__"): value for name, value in TRUST.items()}
    (problem,) = problems(**trust, gossip__listen="0.0.0.0:7946")
    assert "cluster.advertise" in problem
    assert problems(**trust, gossip__listen="0.0.0.0:7946", cluster__advertise="n1.example.org") == []
    (problem,) = problems(cluster__advertise="n1:7946")
    assert "only the host" in problem
    assert problems(cluster__advertise="fd00::1") == []


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({"tls__cert": "c"}, "tls.cert is given without tls.ca and tls.key"),
        ({"tls__cert": "c", "tls__ca": "a"}, "tls.ca is given without tls.key"),
        ({"tls__key": "k", "tls__ca": "a"}, "tls.ca is given without tls.cert"),
    ],
)
def test_tls_needs_all_its_files(given: dict[str, object], missing: str) -> None:
    (problem,) = problems(**given)
    assert problem.startswith(missing)


@pytest.mark.parametrize("kind", list(Kind))
def test_the_store_must_be_given(kind: Kind) -> None:
    (problem,) = problems(kind, node__name="i1" if kind is Kind.INGEST else "x", store__url=None)
    assert problem.startswith("store.url is missing")
    assert f"runnel {kind.value}" in problem


@pytest.mark.parametrize("name", ["a b", "a=b", "a,b", "-a", "x" * 64, "\u00e9"])
def test_names_that_cannot_be_written_in_lists(name: str) -> None:
    assert "cannot be a name in a cluster" in problems(node__name=name)[0]


@pytest.mark.parametrize(
    ("voters", "says"),
    [
        ("i1=h:7947,i2=h:2", "has 2 nodes; name 1, 3 or 5"),
        (",".join(f"i{n}=h:{7946 + n}" for n in range(1, 8)), "has 7 nodes"),
        ("i1=127.0.0.1:7947,i2=h:2,i2=h:3", "the name i2 more than once"),
        ("i1=127.0.0.1:7947,i2=h:2,i3=h:2", "the address h:2 more than once"),
        ("i1=127.0.0.1:7000,i2=h:2,i3=h:3", "make the ports the same"),
        ("i1=10.0.0.1:7947,i2=h:2,i3=h:3", "only this machine gets"),
    ],
)
def test_voters(voters: str, says: str) -> None:
    assert [problem for problem in problems(raft__voters=voters) if says in problem]


def test_only_ingest_nodes_vote() -> None:
    (problem,) = problems(Kind.QUERY)
    assert "names i1, which is a query node" in problem


def test_an_ingest_node_must_find_a_controller() -> None:
    (problem,) = problems(raft__voters=None, cluster__join=None)
    assert "--voters or --join" in problem
    assert problems(Kind.GATEWAY, node__name="g", raft__voters=None, cluster__join=None) == []


def test_a_probe_must_be_answered_before_the_next() -> None:
    assert "probe_timeout" in problems(gossip__probe_interval="500ms")[0]


def test_derived_values() -> None:
    assert GrpcSettings().address == Address("127.0.0.1", 50051)
    assert GrpcSettings(listen=Address("h", 1)).address == Address("h", 1)
    assert ClusterSettings().partitions(in_cluster=False) == 1
    assert ClusterSettings().partitions(in_cluster=True) == 4
    assert ClusterSettings(partitions_default=2).partitions(in_cluster=True) == 2
    assert ClusterSettings(advertise="h").reached_at(Address("0.0.0.0", 7)) == Address("h", 7)
    assert ClusterSettings().reached_at(Address("127.0.0.1", 7)) == Address("127.0.0.1", 7)
    assert not RaftSettings().is_voter("i1")
