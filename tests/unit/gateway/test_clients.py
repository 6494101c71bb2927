"""How a client's address is written, whichever door it came through."""

from __future__ import annotations

import pytest

from nodes.gateway.budget import WaitingBudget
from nodes.gateway.doors.grpc.service import client_address
from nodes.gateway.http import Limits, Request


@pytest.mark.parametrize(
    ("peer", "expected"),
    [("ipv4:127.0.0.1:5", "127.0.0.1:5"), ("ipv6:%5B::1%5D:5", "[::1]:5"), ("unix:/a", "unix:/a"), ("", "")],
)
def test_over_grpc(peer: str, expected: str) -> None:
    assert client_address(peer) == expected


@pytest.mark.parametrize(
    ("client", "expected"), [(("127.0.0.1", 5), "127.0.0.1:5"), (("::1", 5), "[::1]:5"), (None, "")]
)
def test_over_http(client: tuple[str, int] | None, expected: str) -> None:
    scope: dict[str, object] = {"method": "GET", "path": "/", "query_string": b"", "headers": [], "client": client}

    async def receive() -> dict[str, object]:
        return {}

    assert Request(scope, receive, Limits(), WaitingBudget(1)).client_address == expected
