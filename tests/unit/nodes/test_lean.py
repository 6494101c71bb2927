"""A node never loads pandas, though pyarrow would."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
from nodes.lean import keep_pandas_out
keep_pandas_out()
keep_pandas_out()
import numpy as np
import pyarrow as pa
assert pa.array(np.arange(3)).to_pylist() == [0, 1, 2]
assert pa.array(["a"]).dictionary_encode().to_pylist() == ["a"]
print("pandas" in sys.modules, len(sys.meta_path))
"""


def test_columns_are_made_without_pandas() -> None:
    found = subprocess.run([sys.executable, "-W", "error", "-c", PROGRAM], capture_output=True, text=True, check=True)
    loaded, finders = found.stdout.split()
    assert loaded == "False"
    assert int(finders) < 12
