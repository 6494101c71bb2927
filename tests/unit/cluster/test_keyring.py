"""The seal of gossip: what opens what, and that nothing else is raised."""

from __future__ import annotations

import random

import pytest

from cluster.errors import ClusterMisconfigured, MalformedMessage
from cluster.keyring import KEYS_MAX, SEAL_BYTES, Keyring, NotForUs, derive_key, open_key
from cluster.messages import PACKET_OVERHEAD_BYTES, encode_packet


def ring(*secrets: bytes, cluster: str = "c") -> Keyring:
    return Keyring.of_cluster(cluster, secrets)


def test_a_sealed_message_opens_with_the_same_secret_and_name() -> None:
    sealed = ring(b"s").seal(b"hello")
    assert ring(b"s").open(sealed) == b"hello"
    assert len(sealed) == len(b"hello") + SEAL_BYTES
    assert b"hello" not in sealed
    assert ring(b"s").seal(b"hello") != sealed  # another nonce


def test_the_overhead_of_a_packet_is_what_the_machine_leaves_room_for() -> None:
    assert len(ring(b"s").seal(encode_packet([]))) == PACKET_OVERHEAD_BYTES


@pytest.mark.parametrize("other", [ring(b"t"), ring(b"s", cluster="d"), ring(), ring(b"t", b"u")])
def test_another_secret_or_cluster_does_not_open_it(other: Keyring) -> None:
    with pytest.raises(NotForUs):
        other.open(ring(b"s").seal(b"hello"))


def test_clusters_without_a_secret_are_kept_apart_by_their_names() -> None:
    assert ring(cluster="c").open(ring(cluster="c").seal(b"x")) == b"x"
    with pytest.raises(NotForUs):
        ring(cluster="d").open(ring(cluster="c").seal(b"x"))
    assert open_key("c") != derive_key(b"c")


def test_the_first_key_seals_and_every_key_opens() -> None:
    both, old, new = ring(b"new", b"old"), ring(b"old"), ring(b"new")
    assert both.open(old.seal(b"x")) == b"x"
    assert new.open(both.seal(b"x")) == b"x"
    with pytest.raises(NotForUs):
        old.open(both.seal(b"x"))


def test_every_changed_bit_is_noticed() -> None:
    mine = ring(b"s")
    sealed = mine.seal(b"hello, others")
    for bit in range(8 * len(sealed)):
        broken = bytearray(sealed)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(NotForUs):
            mine.open(bytes(broken))


def test_garbage_of_any_length_is_refused_as_malformed() -> None:
    rng = random.Random(1)
    for length in (*range(64), 1400, 70_000):
        with pytest.raises(MalformedMessage):
            ring(b"s", b"t").open(rng.randbytes(length))


def test_keys_have_a_size_and_a_number() -> None:
    for keys in ([], [b"short"], [bytes(32)] * (KEYS_MAX + 1)):
        with pytest.raises(ClusterMisconfigured):
            Keyring(keys, "c")
    assert len(derive_key(b"a secret")) == 32
    assert Keyring([derive_key(b"s")], "c").open(ring(b"s").seal(b"x")) == b"x"
