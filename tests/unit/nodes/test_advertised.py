"""What a node tells the others of its own address."""

from __future__ import annotations

import pytest

from cluster.channels import target
from nodes.settings_cluster import ClusterSettings
from nodes.settings_kinds import Address


@pytest.mark.parametrize(
    ("host", "bound", "reached"),
    [
        ("", "127.0.0.1", "127.0.0.1:50051"),
        ("n1.river", "0.0.0.0", "n1.river:50051"),
        ("", "::1", "[::1]:50051"),
        ("fd00::7", "::", "[fd00::7]:50051"),
    ],
)
def test_others_can_call_what_is_advertised(host: str, bound: str, reached: str) -> None:
    assert str(ClusterSettings(advertise=host).reached_at(Address(bound, 50051))) == reached
    assert target(reached) == f"dns:///{reached}"
