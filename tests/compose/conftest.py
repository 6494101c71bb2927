"""Left out unless `make compose-test` asks for them: they need Docker, root for one-way cuts, and many minutes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.compose.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Iterator

ASKED_FOR = os.environ.get("COMPOSE_TESTS") == "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not ASKED_FOR:
        for item in items:
            if "compose" in item.path.parent.name:
                item.add_marker(pytest.mark.skip(reason="run by make compose-test"))


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """The cluster of docker-compose.yml, up and settled; its volumes are gone afterwards."""
    with Stack("runnel-test") as stack:
        stack.up()
        stack.wait_settled()
        yield stack
