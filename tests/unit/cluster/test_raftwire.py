"""What passes between voters: what was sealed comes out, and nothing else does."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import ClusterDenied, MalformedMessage
from cluster.raftwire import ODD_NAMES_MAX, AnotherVoterList, Seal

VOTERS = {"a": "h1:1", "b": "h2:1", "c": "h3:1"}
SECRET = b"s" * 32
OURS = Seal("a", VOTERS, (SECRET,))
THEIRS = Seal("b", VOTERS, (SECRET,))
KEY = bytes(range(32))
ENTRIES = [(b"\0x", 2, 1), (b"\1", 3, 1)]

MESSAGES = {
    "vote?": {"type": "request_vote", "term": 3, "last_log_index": 9, "last_log_term": 2},
    "vote": {"type": "response_vote", "term": 3},
    "entries": {
        "type": "append_entries",
        "term": 3,
        "commit_index": 8,
        "entries": ENTRIES,
        "prevLogIdx": 7,
        "prevLogTerm": 2,
    },
    "no entries": {"type": "append_entries", "term": 3, "commit_index": 8, "serialized": None},
    "snapshot": {"type": "append_entries", "term": 3, "commit_index": 8, "serialized": (b"x", True, False)},
    "next": {"type": "next_node_idx", "next_node_idx": 4, "reset": False, "success": True},
    "command": {"type": "apply_command", "command": b"\0x", "request_id": 5},
    "taken": {"type": "apply_command_response", "request_id": 5, "log_idx": 6, "log_term": 3},
    "refused": {"type": "apply_command_response", "request_id": 5, "error": 4},
}


def lists(value: object) -> object:
    """Tuples are lists on the wire."""
    if isinstance(value, dict):
        return {key: lists(item) for key, item in value.items()}
    return [lists(item) for item in value] if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize("what", MESSAGES)
def test_each_of_pysyncobjs_messages_comes_out_with_the_keys_it_had(what: str) -> None:
    message = MESSAGES[what]
    assert lists(OURS.open(THEIRS.seal(KEY, 1, message), KEY, 1)) == lists(message)


@pytest.mark.parametrize("hello", [bytes(32), "h1:1", ""])
def test_the_handshake_comes_out(hello: bytes | str) -> None:
    assert OURS.open(THEIRS.seal(b"", 1, hello), b"", 1) == hello


@given(st.binary(max_size=200))
def test_any_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ClusterDenied):
        OURS.open(data, b"", 1)


@given(st.integers(0, 150), st.integers(1, 255))
def test_a_changed_byte_is_refused(place: int, change: int) -> None:
    data = bytearray(THEIRS.seal(KEY, 1, MESSAGES["vote"]))
    data[place] ^= change
    with pytest.raises((ClusterDenied, MalformedMessage)):
        OURS.open(bytes(data), KEY, 2)


def test_another_secret_connection_or_place_is_refused() -> None:
    stranger = Seal("b", VOTERS, (b"t" * 32,))
    message = MESSAGES["vote"]
    for data, key, number in (
        (stranger.seal(KEY, 1, message), KEY, 1),
        (THEIRS.seal(bytes(32), 1, message), KEY, 1),
        (THEIRS.seal(b"", 1, message), KEY, 1),
        (THEIRS.seal(KEY, 1, message), KEY, 2),
        (THEIRS.seal(KEY, 3, message), KEY, 2),
    ):
        with pytest.raises(ClusterDenied):
            OURS.open(data, key, number)


def test_voters_hear_each_other_through_each_step_of_a_rotation() -> None:
    new = b"n" * 32
    steps = [(SECRET,), (SECRET, new), (new, SECRET), (new,)]
    for before, after in itertools.pairwise(steps):
        one, other = Seal("a", VOTERS, before), Seal("b", VOTERS, after)
        assert other.open(one.seal(KEY, 1, "x"), KEY, 1) == "x"
        assert one.open(other.seal(KEY, 1, "y"), KEY, 1) == "y"
    with pytest.raises(ClusterDenied):
        Seal("a", VOTERS, steps[-1]).open(OURS.seal(KEY, 1, "x"), KEY, 1)


def test_another_voter_list_is_named_and_the_first_time_told_apart() -> None:
    odd = Seal("c", {**VOTERS, "b": "h2:2"}, (SECRET,))
    for is_first in (True, False, False):
        with pytest.raises(AnotherVoterList, match="'c'") as caught:
            Seal.open(OURS, odd.seal(b"", 1, bytes(32)), b"", 1)
        assert caught.value.is_first is is_first
    for number in range(2 * ODD_NAMES_MAX):
        with pytest.raises(AnotherVoterList):
            OURS.open(Seal(f"n{number}", {}, (SECRET,)).seal(b"", 1, ""), b"", 1)
    assert len(OURS._odd) <= ODD_NAMES_MAX


def test_the_order_of_the_list_does_not_matter() -> None:
    turned = Seal("c", dict(reversed(VOTERS.items())), (SECRET,))
    assert OURS.open(turned.seal(b"", 1, "x"), b"", 1) == "x"


@pytest.mark.parametrize(
    "body",
    [
        {"type": "timeout_now", "term": 1},
        {"type": "append_entries", "term": 1, "commit_index": 1, "transmission": "finish", "data": b""},
        {"type": "append_entries", "term": "1", "commit_index": 1},
        {"type": "append_entries", "term": 1, "commit_index": 1, "serialized": False},
        {"type": "append_entries", "term": 1, "commit_index": 1, "entries": [(b"", 1)]},
        {"type": "response_vote"},
        {"term": 1},
        ["status"],
        5,
        None,
    ],
)
def test_what_is_no_message_of_ours_is_malformed(body: object) -> None:
    with pytest.raises(MalformedMessage):
        OURS.open(THEIRS.seal(b"", 1, body), b"", 1)


def test_deep_nesting_is_malformed() -> None:
    plain = b"\x91" * 100_000
    with pytest.raises(MalformedMessage):
        OURS.open(THEIRS._fernet.encrypt(plain), b"", 1)
    assert msgspec.msgpack.encode([]) == b"\x90"
