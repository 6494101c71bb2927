"""Searches marked slow take minutes: they run when they are asked for (``pytest -m slow tests/sim``), not always."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.markexpr:
        return
    slow = [item for item in items if item.get_closest_marker("slow") and "sim" in item.path.parts]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in slow]
