"""Gossip's messages: they come back as they were, bounds are enforced, and garbage is only ever malformed."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import ClusterMisconfigured, MalformedMessage
from cluster.members import Kind, MemberMeta
from cluster.messages import (
    MEMBERS_MAX,
    META_BYTES_MAX,
    WIRE_VERSION,
    Ack,
    Alive,
    Dead,
    Entry,
    Nack,
    NameIsTaken,
    OtherVersion,
    PacketMessage,
    Ping,
    PingRequest,
    PushPull,
    StreamMessage,
    StreamPing,
    StreamPong,
    Suspect,
    check_address,
    decode_meta,
    decode_packet,
    decode_stream,
    encode_message,
    encode_meta,
    encode_packet,
    encode_stream,
    join_address,
    split_address,
)
from cluster.streams import STREAM_BYTES_MAX

if TYPE_CHECKING:
    from collections.abc import Callable

PACKET: list[PacketMessage] = [
    Ping(1, "n1"),
    Ack(2**61),
    Nack(3),
    PingRequest(4, "n2", "10.0.0.2:7000"),
    Alive("n3", "[::1]:7000", 5, b"meta"),
    Suspect("n4", 6, "n1"),
    Dead("n5", 7, "n5"),
]
STREAMS: list[StreamMessage] = [
    PushPull("n1", "10.0.0.1:7000", 12, [Entry("n2", "10.0.0.2:7000", 3, 2, b"")]),
    StreamPing("n1"),
    StreamPong("n1"),
    NameIsTaken("10.0.0.1:7000"),
]
DECODERS: list[Callable[[bytes], object]] = [decode_packet, decode_stream]


def test_packets_and_streams_come_back_as_they_were() -> None:
    assert decode_packet(encode_packet(map(encode_message, PACKET))) == PACKET
    assert decode_packet(encode_packet([])) == []
    for message in STREAMS:
        assert decode_stream(encode_stream(message)) == message


def test_the_smallest_and_largest_messages_fit_their_bounds() -> None:
    assert min(len(encode_message(message)) for message in PACKET) >= 3
    largest = Alive("n" * 128, "[" + "f" * 4 + ":ffff" * 7 + "]:65535", 2**53, bytes(META_BYTES_MAX))
    assert len(encode_message(largest)) + len(encode_message(Ping(2**62, "n" * 128))) < 1400 - 33
    entry = Entry(largest.name, largest.address, largest.incarnation, 3, largest.meta)
    everybody = PushPull(largest.name, largest.address, 2**60, [entry] * (MEMBERS_MAX + 1))
    assert len(encode_stream(everybody)) < STREAM_BYTES_MAX - 100
    assert decode_stream(encode_stream(everybody)) == everybody


@pytest.mark.parametrize(
    "message",
    [
        [1, 1],
        [1, 1, ""],
        [1, 1, "a b"],
        [1, 1, "n\n"],
        [1, 1, "n" * 129],
        [1, -1, "n"],
        [1, 2**63, "n"],
        [1, 1, "n", 0],
        [4, 1, "n", "host:7000"],
        [4, 1, "n", "10.0.0.1"],
        [5, "n", "10.0.0.1:0", 1, b""],
        [5, "n", "10.0.0.1:7", 2**53 + 1, b""],
        [5, "n", "10.0.0.1:7", 1, bytes(513)],
        [6, "n", 1.5, "m"],
        [99, 1],
        "ping",
        None,
    ],
)
def test_a_message_out_of_bounds_is_malformed(message: object) -> None:
    with pytest.raises(MalformedMessage):
        decode_packet(encode_packet([msgspec.msgpack.encode(message)]))


def test_a_push_pull_of_too_many_members_is_malformed() -> None:
    entry = Entry("n", "10.0.0.1:7", 1, 0, b"")
    with pytest.raises(MalformedMessage):
        decode_stream(encode_stream(PushPull("n", "10.0.0.1:7", 1, [entry] * (MEMBERS_MAX + 2))))
    with pytest.raises(MalformedMessage):
        decode_stream(encode_stream(PushPull("n", "10.0.0.1:7", 1, [Entry("n", "10.0.0.1:7", 1, 4, b"")])))


@pytest.mark.parametrize("decode", DECODERS)
def test_garbage_is_malformed_and_nothing_else(decode: Callable[[bytes], object]) -> None:
    rng = random.Random(2)
    whole = [encode_packet(map(encode_message, PACKET)), *map(encode_stream, STREAMS)]
    for data in whole:
        for _ in range(300):
            broken = bytearray(data)
            for _ in range(rng.randint(1, 4)):
                broken[rng.randrange(1, len(broken))] = rng.randrange(256)
            try:
                decode(bytes(broken[: rng.randint(0, len(broken))]))
            except MalformedMessage:
                continue
    with pytest.raises(MalformedMessage):
        decode(b"\x01" + b"\x91" * 5000)  # nested deeper than anything of ours


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_malformed(data: bytes) -> None:
    for decode in (*DECODERS, decode_meta):
        try:
            decode(bytes((WIRE_VERSION,)) + data)
        except MalformedMessage:
            continue


def test_another_version_is_told_apart() -> None:
    for decode in DECODERS:
        with pytest.raises(OtherVersion, match="wire version 7") as caught:
            decode(b"\x07whatever")
        assert caught.value.version == 7


def test_a_meta_comes_back_as_it_was_and_has_a_size() -> None:
    meta = MemberMeta(Kind.QUERY, {"grpc": "h:1", "http": "h:2"}, "zone", "0.1.0", 2.5, 77)
    assert decode_meta(encode_meta(meta)) == meta
    assert decode_meta(encode_meta(MemberMeta(Kind.GATEWAY))) == MemberMeta(Kind.GATEWAY)
    with pytest.raises(ClusterMisconfigured):
        encode_meta(MemberMeta(Kind.QUERY, zone="z" * 500))
    for data in (b"", b"\x96", msgspec.msgpack.encode(["king", {}, "", "", 0.0, 0])):
        with pytest.raises(MalformedMessage):
            decode_meta(data)


def test_addresses() -> None:
    assert split_address("10.0.0.1:7946") == ("10.0.0.1", 7946)
    assert split_address("[fe80::1]:7946") == ("fe80::1", 7946)
    assert join_address(*split_address("[fe80::1]:7946")) == "[fe80::1]:7946"
    for text in ("", "host", ":1", "host:", "host:0", "host:65536", "host:-1", "::1:5", "host:\u0661"):
        with pytest.raises(ValueError):
            split_address(text)
    check_address("10.0.0.1:7946")
    with pytest.raises(ValueError):
        check_address("localhost:7946")
