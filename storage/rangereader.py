"""An object of a store as a file that can be read at any place: what Parquet readers want. Blocking."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from storage.objects import ObjectStore


class RangeReader(io.RawIOBase):
    """Each read is one request for just those bytes. Raises ObjectMissing, StoreUnavailable."""

    def __init__(self, store: ObjectStore, path: str, size: int) -> None:
        super().__init__()
        self._store = store
        self._path = path
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Up to ``size`` bytes; to the end if it is negative."""
        left = max(0, self._size - self._at)
        length = left if size < 0 else min(size, left)
        data = self._store.get_range(self._path, self._at, length) if length else b""
        self._at += len(data)
        return data

    def readall(self) -> bytes:
        return self.read()
