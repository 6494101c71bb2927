"""Keep what a node never uses out of its memory.

pyarrow imports pandas, if it is installed, the first time that a list or an array becomes a column: a second of
start-up and 50 MB that a database node has no use for. Driven by `nodes.node.run_node`, before the first column.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType


class _WithoutPandas(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "pandas":
            raise ModuleNotFoundError("a node runs without pandas", name=fullname)
        return None


def keep_pandas_out() -> None:
    """From now on this process cannot import pandas; libraries take their way without it. Idempotent."""
    if "pandas" not in sys.modules and not any(isinstance(f, _WithoutPandas) for f in sys.meta_path):
        sys.meta_path.insert(0, _WithoutPandas())
