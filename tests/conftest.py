"""For all tests: property tests draw the same examples each time, so that a failure is the change's, not chance's.

``HYPOTHESIS_PROFILE=search`` draws new ones, for a developer who looks for trouble.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Sequence

settings.register_profile("steady", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))

ONE_NODE_FOLDERS: Final = [Path(__file__).parent / "integration" / "whole", Path(__file__).parent / "conformance"]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Tests of a module that share a node stay on one worker: else each worker would start a node of its own."""
    for item in items:
        if item.path.parent in ONE_NODE_FOLDERS and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
