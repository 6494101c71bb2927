"""Compaction's Checkpoints over the real Shard: "remove these, add those" against the current list, at the k in force,
by the owner alone (LOG L14, L16, L18, L20, L21, L22, L23). Crashes are in `test_crashes.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

from storage.checkpoint import Section, decode_tables, section_entry
from storage.errors import Fenced, ObjectMissing, ShardClosed, StoreFull
from storage.filechange import FileChange, repeated_sections, standing
from storage.frames import ObjectKind, decode_object
from storage.shardstate import ShardState
from storage.store import data_folder
from tests.harness.merging import merge_all, merged
from tests.harness.storagenode import Ledger, StorageNode, check_node, other_limits, read_all
from tests.harness.stores import Fault, FaultStore, MemoryStore
from tests.integration.storage.test_two_owners import in_a_loop, owner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from storage.frames import Entry, LogObject
    from storage.schema import DataFile
    from storage.shard import Shard


async def filled(store: Any, ledger: Ledger, files: int = 4, name: bytes = b"a", **limits: Any) -> StorageNode:
    """An owner whose one partition has so many files, and a row above them."""
    node = await owner(store, name, **limits)
    await node.ensure("t0", ledger)
    for _ in range(files):
        await node.write("t0", 3, ledger)
        await node.shards[1].checkpoint()
    await node.write("t0", 1, ledger)
    return node


async def reopened(store: Any, name: bytes = b"z") -> StorageNode:
    return await owner(store, name, seed=7)


def files_of(shard: Shard) -> tuple[DataFile, ...]:
    return tuple(shard.state.all_files())


def data_objects(store: MemoryStore) -> set[str]:
    return {f"{data_folder(1)}/{o.name}" for o in store.list_all(data_folder(1))}


def test_l18_a_compaction_repeats_the_k_in_force() -> None:
    """What stands above k stays above it, for the owner and for who replays; nothing else of the state moves."""

    async def work() -> None:
        store, ledger = MemoryStore(), Ledger()
        node = await filled(store, ledger)
        shard = node.shards[1]
        k, tail, horizon = shard.state.k, shard.state.tail_bytes, shard.state.horizon
        before = shard.state.checkpoint_seq
        assert await merge_all(node, shard) == [True]
        assert (shard.state.k, shard.state.tail_bytes, shard.state.horizon) == (k, tail, horizon)
        assert shard.state.checkpoint_seq > before
        assert len(files_of(shard)) == 1
        await check_node(node, ledger)
        await node.write("t0", 2, ledger)
        other = await reopened(store)
        await check_node(other, ledger)
        replayed = other.shards[1].state
        assert (replayed.k, replayed.horizon) == (k, horizon)
        assert replayed.write_ids == shard.state.write_ids, "L7: ids at k, and those above it"
        assert files_of(other.shards[1]) == files_of(shard)
        assert {key: p.bytes for key, p in replayed.partitions.items()} == {
            key: p.bytes for key, p in shard.state.partitions.items()
        }

    in_a_loop(work)


def test_l18_a_compaction_that_covers_what_is_in_no_file_is_noticed() -> None:
    """Were its k what the Log has reached, the row above the Checkpoint would be lost to who replays."""

    def covering_now(in_force: LogObject, *arguments: Any) -> tuple[Entry, ...]:
        (meta,) = decode_tables(in_force.entries, "here")[Section.META].to_pylist()
        broken = {**meta, "covered": in_force.header.sequence + 1}
        return (section_entry(Section.META, [broken]), *repeated_sections(in_force, *arguments)[1:])

    async def work() -> None:
        store, ledger = MemoryStore(), Ledger()
        node = await filled(store, ledger)
        await merge_all(node, node.shards[1])
        with pytest.raises(AssertionError):
            await check_node(await reopened(store), ledger)

    with mock.patch("storage.shard.repeated_sections", covering_now):
        in_a_loop(work)


def test_l21_a_change_is_void_if_a_file_is_gone() -> None:
    async def work() -> None:
        store, ledger = MemoryStore(), Ledger()
        node = await filled(store, ledger)
        shard = node.shards[1]
        files = files_of(shard)
        first, _ = await merged(node, shard, files[1:3])
        late, _ = await merged(node, shard, files[2:])
        rest, _ = await merged(node, shard, files[:1])
        assert await shard.replace_files([first, late]) == [True, False]
        sequence = shard.state.checkpoint_seq
        assert await shard.replace_files([late]) == [False]
        assert shard.state.checkpoint_seq == sequence, "a void change writes nothing"
        assert await shard.replace_files([rest]) == [True]
        await check_node(node, ledger)
        await check_node(await reopened(store), ledger)

    in_a_loop(work)


def test_l21_a_change_that_is_not_checked_is_noticed() -> None:
    """Two compactions of overlapping runs, both committed: rows stand twice."""

    async def work() -> None:
        store, ledger = MemoryStore(), Ledger()
        node = await filled(store, ledger)
        shard = node.shards[1]
        files = files_of(shard)
        first, _ = await merged(node, shard, files[:3])
        late, _ = await merged(node, shard, files[1:])
        assert await shard.replace_files([first]) == [True]
        assert await shard.replace_files([late]) == [True]
        with pytest.raises(AssertionError):
            await check_node(node, ledger)

    def never_void(changes: Sequence[FileChange], paths: object, pending: object) -> list[bool]:
        return [True] * len(standing(changes, [], {}))

    with mock.patch("storage.shard.standing", never_void):
        in_a_loop(work)


def test_l21_who_lost_the_shard_commits_nothing() -> None:
    """A merge that outlives its owner is void, also one that the owner does not know to be too late; its files are
    orphans that the new owner sweeps, and the files that it would have replaced stay."""

    async def work() -> None:
        store, ledger = MemoryStore(), Ledger()
        node = await filled(store, ledger)
        shard = node.shards[1]
        files = files_of(shard)
        change, _ = await merged(node, shard, files)
        heir = await reopened(store)
        with pytest.raises((Fenced, ShardClosed)):
            await shard.replace_files([change])
        with pytest.raises((Fenced, ShardClosed)):
            await shard.replace_files([change])
        assert files_of(heir.shards[1]) == files
        assert data_objects(store) > {f.path for f in files}
        assert await heir.shards[1].sweep() == 1
        assert data_objects(store) == {f.path for f in files}
        assert await merge_all(heir, heir.shards[1]) == [True]
        await check_node(heir, ledger)

    in_a_loop(work)


def test_l20_the_sweep_spares_what_is_being_written() -> None:
    """Also with no grace at all. When a merge has come to nothing its files are orphans."""

    async def work() -> None:
        store, ledger = MemoryStore(), Ledger()
        node = await filled(store, ledger)
        shard = node.shards[1]
        change, names = await merged(node, shard, files_of(shard)[:2])
        late, late_names = await merged(node, shard, files_of(shard)[:2])
        assert await shard.sweep() == 0
        assert await shard.replace_files([change, late]) == [True, False]
        shard.release_names(names)
        assert await shard.sweep() == 2, "the two that were replaced"
        shard.release_names(late_names)
        assert await shard.sweep() == 1
        assert data_objects(store) == {f.path for f in files_of(shard)}
        await check_node(node, ledger)

    in_a_loop(work)


def test_l20_a_sweep_that_does_not_know_what_is_being_written_is_noticed() -> None:
    async def work() -> None:
        store, ledger = MemoryStore(), Ledger()
        node = await filled(store, ledger)
        shard = node.shards[1]
        change, names = await merged(node, shard, files_of(shard))
        shard.release_names(names)
        assert await shard.sweep() == 1
        assert await shard.replace_files([change]) == [True]
        with pytest.raises(ObjectMissing):
            await check_node(node, ledger)

    in_a_loop(work)


def test_l16_a_reader_keeps_its_files_for_the_grace_and_then_is_told() -> None:
    async def work() -> None:
        store, ledger = MemoryStore(), Ledger()
        node = await filled(store, ledger, grace_seconds=3600.0)
        shard = node.shards[1]
        (before,) = shard.snapshot(node.table("t0"))
        await merge_all(node, shard)
        (after,) = shard.snapshot(node.table("t0"))
        assert before.position != after.position, "L14: what is kept of the one is not taken for the other"
        assert await shard.sweep() == 0
        assert all(store.exists(file.path) for file in before.files)
        shard.limits = other_limits(grace_seconds=0.0)
        assert await shard.sweep() == len(before.files)
        with pytest.raises(ObjectMissing):
            store.get(before.files[0].path)
        await check_node(node, ledger)

    in_a_loop(work)


def test_l23_a_part_that_loses_a_file_is_written_anew_and_the_others_are_named_again() -> None:
    async def work() -> None:
        store, ledger = MemoryStore(), Ledger()
        node = await owner(store, b"a")
        await node.ensure("t0", ledger)
        for number in range(9):
            await node.write("t0", 2, ledger)
            with mock.patch("storage.shardstate.FILES_INLINE_MAX", 0 if number % 3 == 2 else 99):
                await node.shards[1].checkpoint()
        state = node.shards[1].state
        first, second, third = state.parts
        change, _ = await merged(node, node.shards[1], second.files[1:])
        with mock.patch("storage.shard.FILES_INLINE_MAX", 1):
            assert await node.shards[1].replace_files([change]) == [True]
        assert state.parts[:2] == (first, third)
        (new,) = state.parts[2:]
        assert new.files == (second.files[0], *change.added)
        assert state.loose == ()
        await check_node(node, ledger)
        change, _ = await merged(node, node.shards[1], third.files[:2])
        assert await node.shards[1].replace_files([change]) == [True]
        assert state.loose == (third.files[2], *change.added)
        other = await reopened(store)
        await check_node(other, ledger)
        assert set(files_of(other.shards[1])) == set(state.all_files())
        assert await other.shards[1].sweep() > 0
        await check_node(other, ledger)

    in_a_loop(work)


@pytest.mark.parametrize("fault", [Fault.FULL, Fault.LOST_ANSWER, Fault.CONFLICT])
def test_a_commit_that_the_store_refuses_changes_nothing(fault: Fault) -> None:
    async def work() -> None:
        store, ledger = FaultStore(MemoryStore()), Ledger()
        node = await filled(store, ledger)
        shard = node.shards[1]
        change, _ = await merged(node, shard, files_of(shard))
        store.arm(fault, match="logs/1/*")
        if fault is Fault.FULL:
            with pytest.raises(StoreFull):
                await shard.replace_files([change])
            assert len(files_of(shard)) == 4
            await check_node(node, ledger)
        assert await shard.replace_files([change]) == ([True])
        await check_node(node, ledger)
        await check_node(await reopened(store.inner), ledger)

    in_a_loop(work)


def test_l19_the_checkpoints_of_compactions_are_collected_with_what_k_covers() -> None:
    async def work() -> None:
        store, ledger = MemoryStore(), Ledger()
        node = await filled(store, ledger)
        shard = node.shards[1]
        await merge_all(node, shard)
        await node.write("t0", 1, ledger)
        await shard.checkpoint()
        await merge_all(node, shard)
        kinds = [decode_object(store.get(f"logs/1/{o.name}"), o.name).header.kind for o in store.list("logs/1")]
        assert kinds.count(ObjectKind.CHECKPOINT) == 2, "the one that covers k, and the newest above it"
        assert sorted(await read_all(node)) == sorted(ledger.acknowledged)

    in_a_loop(work)


def test_l22_a_state_that_keeps_what_was_replaced_is_noticed() -> None:
    async def work() -> None:
        store, ledger = MemoryStore(), Ledger()
        node = await filled(store, ledger)
        with mock.patch.object(ShardState, "_remove_files", return_value=None):
            await merge_all(node, node.shards[1])
        with pytest.raises(AssertionError):
            await check_node(node, ledger)

    in_a_loop(work)
