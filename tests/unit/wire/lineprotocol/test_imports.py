"""The package is cheap to import: numba comes with the first parser, pandas never."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[4]


def test_numba_comes_with_the_first_parser_and_pandas_never() -> None:
    script = (
        "import sys\n"
        "import wire.lineprotocol as lp\n"
        "assert 'numba' not in sys.modules\n"
        "parser = lp.create_parser()\n"
        "assert 'numba' in sys.modules\n"
        "for body in (b'm,a=x s=\"y\",v=1', b'm v=2'):\n"
        "    parsed = parser.parse([body], precision=lp.Precision.AUTO, now_ns=0, known=lambda name: None)\n"
        "    assert parsed.rows.tolist() == [1]\n"
        "assert 'pandas' not in sys.modules\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=False, timeout=100)
    assert ended.returncode == 0, ended.stderr.decode()


def test_it_works_where_compiled_code_cannot_be_kept() -> None:
    """On a read-only file system without a home numba refuses to cache; that must cost time only."""
    script = (
        "from numba.core.caching import CacheImpl\n"
        "CacheImpl._locator_classes = []\n"
        "import wire.lineprotocol.numbers as numbers\n"
        "import wire.lineprotocol.bytemap as bytemap\n"
        "import numpy as np\n"
        "table = bytemap.grown(bytemap.create(4, 64), 100)\n"
        "assert bytemap._rehash.stats.cache_hits == {} and bytemap._rehash.stats.cache_path is None\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=False, timeout=100)
    assert ended.returncode == 0, ended.stderr.decode()


def test_warming_compiles_every_function_of_the_kernel() -> None:
    script = (
        "from wire.lineprotocol.warm import warm\n"
        "warm()\n"
        "from wire.lineprotocol import bytemap, kernel, planner\n"
        "compiled = {f for m in (bytemap, kernel, planner) for f in vars(m).values() if hasattr(f, 'signatures')}\n"
        "kept = [f for f in compiled if not f.targetoptions.get('forceinline')]\n"
        "assert len(kept) > 8, kept\n"
        "assert all(len(f.signatures) == 1 for f in kept), [f for f in kept if len(f.signatures) != 1]\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=False, timeout=300)
    assert ended.returncode == 0, ended.stderr.decode()
