"""Profile s3: the same cluster over an S3-compatible store; moto's, in a container from our own image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.compose.docker import ROOT
from tests.compose.stack import GATEWAYS, INGEST, NODES, Stack
from tests.compose.writer import Writer, check

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(900)


def settings() -> dict[str, str]:
    """What deploy/s3.env says."""
    lines = (ROOT / "deploy/s3.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


@pytest.fixture(scope="module")
def s3_stack() -> Iterator[Stack]:
    with Stack("runnel-test-s3", **settings()) as stack:
        stack.up("s3", *NODES)
        stack.wait_settled()
        yield stack


def test_rows_are_on_s3_and_survive_a_killed_ingest_node(s3_stack: Stack) -> None:
    owners = list(s3_stack.owners(GATEWAYS[0]).values())
    lost = max(INGEST, key=owners.count)
    with Writer(s3_stack, "s3") as writer:
        writer.wait_for(30)
        s3_stack.kill(lost)
        writer.wait_for(30)
        s3_stack.start(lost)
        s3_stack.wait_settled()
    check(s3_stack, writer)
    objects = s3_stack.ask("s3", "GET", "/runnel?list-type=2&prefix=store/").ok().text
    assert "<Key>store/" in objects
