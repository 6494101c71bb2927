"""Compile the line protocol kernel into the image's cache; with ``--check`` say whether a process finds it there.

Driven by the Dockerfile while the image is built, as the user that runs Runnel, and with ``--check`` by the tests of
the image. A process that finds the compiled kernel parses its first lines in 0.3 s, one that does not in 8 s.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from typing import Any, Final

import wire.lineprotocol
from wire.lineprotocol import Precision, create_parser

SERIES: Final = 3000
"""Enough that the tables of series and of names grow: growing is compiled code too."""
WIDTH: Final = 300
NOW_NS: Final = 1_767_225_600_000_000_000


def bodies() -> list[bytes]:
    """Lines with every type of field, escapes, text beyond ASCII, many series and columns, and lines that are wrong."""
    plain = [f'm,h=a{n},r\\ x=b{n % 7} i={n}i,u={n}u,f={n}.5,b=t,s="t\\"{n}" {NOW_NS + n}' for n in range(SERIES)]
    wide = [f"w,h=a {','.join(f'c{n}={n}' for n in range(WIDTH))} {NOW_NS}"]
    odd = ['m,h=é s="ü\nü" 1', "m,h=a i=1.5", "m,h=a new=1,i=t", "m,,h i=", "# nothing", "m,h=a f=1e300", "m,h=a"]
    return ["\n".join(plain).encode(), "\n".join(wide).encode(), "\n".join(odd).encode(), b"\xff\xfe x=1\n"]


def dispatchers() -> dict[str, Any]:
    """Every function that is compiled by itself and kept on disk."""
    found: dict[str, Any] = {}
    for module in pkgutil.iter_modules(wire.lineprotocol.__path__):
        for value in vars(importlib.import_module(f"wire.lineprotocol.{module.name}")).values():
            if hasattr(value, "stats") and hasattr(value, "py_func") and value.stats.cache_path:
                found[value.py_func.__qualname__] = value
    return found


def main(arguments: list[str]) -> int:
    """0 if everything was compiled or, with ``--check``, taken from the cache; else 1, and which was not."""
    parser = create_parser()
    few = [b"\n".join(bodies()[0].splitlines()[:3])]
    for precision, sent in ((Precision.NANOSECOND, bodies()), (Precision.AUTO, bodies()), (Precision.AUTO, few)):
        parser.parse(sent, precision=precision, now_ns=NOW_NS, known=lambda _name: None)
    compiled = dispatchers()
    is_check = arguments == ["--check"]
    missing = [name for name, each in compiled.items() if not each.signatures or (is_check and each.stats.cache_misses)]
    sys.stdout.write(f"{len(compiled) - len(missing)} of {len(compiled)} functions {'found' if is_check else 'kept'}\n")
    if missing or not compiled:
        sys.stderr.write(f"not {'in the cache' if is_check else 'compiled'}: {', '.join(missing) or 'nothing is'}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
