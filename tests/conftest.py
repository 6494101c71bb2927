"""For all tests: property tests draw the same examples each time, so that a failure is the change's, not chance's.

``HYPOTHESIS_PROFILE=search`` draws new ones, for a developer who looks for trouble.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling

settings.register_profile("steady", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))

CLUSTERS: Final = (
    "tests/chaos/test_cluster",
    "tests/integration/harness/test_cluster",
    "tests/integration/nodes/test_local_cluster",
    "tests/integration/whole/test_cluster",
    "tests/integration/whole/test_strange_nodes",
)
"""Files whose tests start whole clusters: one at a time, however many workers there are."""
RAY: Final = (
    "tests/integration/engine/test_workers",
    "tests/integration/engine/test_ray_cluster",
    "tests/integration/whole/test_ray",
)
"""Files whose tests start Ray, a dozen processes: one at a time too."""
ONE_NODE: Final = ("tests/integration/whole/", "tests/conformance/")
"""Files whose tests share a node."""


def shared_by(nodeid: str) -> str:
    """Tests with the same answer run on one worker, one after the other."""
    path = nodeid.partition("::")[0]
    if path.startswith(CLUSTERS):
        return "cluster"
    if path.startswith(RAY):
        return "ray"
    return path if path.startswith(ONE_NODE) else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling:
    """By names: xdist's groups have no effect under this pytest, whose items do not let themselves be renamed."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return shared_by(nodeid)

    return Scheduling(config, log)
