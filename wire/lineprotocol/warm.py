"""``python -m wire.lineprotocol.warm``: compile the kernel now, into numba's cache, not at a user's first write.

`make` runs it after it has installed Python packages, and an image when it is built: 8 to 20 s once, 0.3 s afterwards.
"""

from __future__ import annotations

from typing import Final

from wire.lineprotocol import Precision, create_parser

SERIES: Final = 2_000
"""More than the tables have room for at first, so that the code that grows them is compiled too."""
FIELDS: Final = 300


def warm() -> None:
    """Parse bodies that need every compiled function."""
    parser = create_parser()
    many = b"\n".join(b't,tag=%d f%d=1i,g=1.5,s="x",b=t %d' % (i, i % FIELDS, i) for i in range(SERIES))
    for body in (many, b"t,tag=1 g=2 1"):
        parser.parse([body], precision=Precision.NANOSECOND, now_ns=0, known=lambda _: None)


if __name__ == "__main__":
    warm()
