"""Gossip's streams (TCP): one sealed question, one sealed answer, then the connection ends. Driven by `cluster.gossip`.

A frame is its length (4 bytes, big-endian) and a sealed message. An empty frame is the only thing that is said in the
clear: "I could not open what you sent". It proves nothing, so it is only logged.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from cluster.errors import MalformedMessage, PeerUnavailable
from cluster.messages import MEMBERS_MAX, decode_stream, encode_stream, split_address

if TYPE_CHECKING:
    from cluster.keyring import Keyring
    from cluster.messages import StreamMessage

STREAM_BYTES_MAX: Final = 1024 * MEMBERS_MAX
"""More than the longest push/pull: an entry has at most 128 + 64 + 512 bytes and its lengths."""

_LENGTH_BYTES: Final = 4
CANNOT_OPEN: Final = bytes(_LENGTH_BYTES)


class CannotOpen(MalformedMessage):
    """The other side says that it could not open our message: another secret or cluster name, here or there."""


async def read_message(reader: asyncio.StreamReader, keyring: Keyring) -> StreamMessage:
    """The next message. Raises MalformedMessage (of which CannotOpen and NotForUs), EOFError, OSError."""
    length = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "big")
    if not length:
        raise CannotOpen("the other side cannot open our messages: another secret or cluster name")
    if length > STREAM_BYTES_MAX:
        raise MalformedMessage(f"a stream message of {length} bytes, at most {STREAM_BYTES_MAX}")
    return decode_stream(keyring.open(await reader.readexactly(length)))


async def write_message(writer: asyncio.StreamWriter, keyring: Keyring, message: StreamMessage) -> None:
    sealed = keyring.seal(encode_stream(message))
    assert len(sealed) <= STREAM_BYTES_MAX
    writer.write(len(sealed).to_bytes(_LENGTH_BYTES, "big") + sealed)
    await writer.drain()


async def ask(address: str, keyring: Keyring, message: StreamMessage, timeout: float) -> StreamMessage:
    """Connect to an address literal, ask, and return the answer. Raises PeerUnavailable, MalformedMessage."""
    host, port = split_address(address)
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                await write_message(writer, keyring, message)
                return await read_message(reader, keyring)
            finally:
                writer.transport.abort()  # everything is said; no linger
    except (OSError, EOFError, TimeoutError) as error:
        raise PeerUnavailable(f"{address}: {type(error).__name__} {error}") from error
