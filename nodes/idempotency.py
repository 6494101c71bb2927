"""Write ids from an idempotency key: the same write under the same key gets the same ids, on any node (LOG L7).

Pure; used by every Backend. A part is named by the key, its table, its partition and how many parts of that
partition came before it, never by the node or the time, so that a second try finds the first one's rows wherever it
goes. The Logs forget ids when `storage.shard.RETRY_SECONDS_MAX` has passed.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Final

from nodes.gateway.faults import BadRequest
from storage.frames import WriteId

KIND: Final = 2
"""Ids from keys (FORMAT F14); a gateway's own are of kind 1."""
KEY_BYTES_MAX: Final = 256
_PERSON: Final = b"runnel key 1"


def check_key(key: str) -> str:
    """The key if it can be one. BadRequest says what it may be."""
    if not key or len(key.encode("utf-8", "replace")) > KEY_BYTES_MAX or not key.isprintable():
        raise BadRequest(f"an idempotency key has 1 to {KEY_BYTES_MAX} printable characters")
    return key


class KeyedIds:
    """Ids for the parts of one write, asked for in the order of its batches and partitions."""

    def __init__(self, key: str) -> None:
        self._key = check_key(key).encode()
        self._parts: Counter[tuple[int, int]] = Counter()

    def of(self, table_id: int, partition: int) -> WriteId:
        """The id of the next part. A table id is of one table of one database, and never used again."""
        number = self._parts[table_id, partition]
        self._parts[table_id, partition] += 1
        name = b"%d/%d/%b" % (table_id, partition, self._key)
        writer = hashlib.blake2b(name, digest_size=16, person=_PERSON).digest()
        return WriteId(KIND, writer, 0, number, 1)
