"""The one family of errors that codecs raise.

Each class fixes a machine-readable ``code`` and whether sending the same bytes again can help
(``retriable``); the doors map codes to their own status words.
"""

from __future__ import annotations

from typing import ClassVar


class WireError(Exception):
    """Root of everything that a codec raises on purpose. The message says what, where and what to do."""

    code: ClassVar[str] = "wire"
    retriable: ClassVar[bool] = False
