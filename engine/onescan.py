"""Many large files of this machine's disk: planned in parts, a few files each, and run as one scan.

DataFusion 55 asks for all files of a scan at once, each in a thread of its own, up to 512 of them. From then on reads
go around all these threads, and the allocator (mimalloc) takes back what a thread allocated and another one freed only
after 100 further allocations of that thread: with a thousand files of 100 MB it kept 2 GB of freed footers when they
were planned, and more for each row group. Planned four by four they need a dozen threads. `engine.views` makes the
parts, as a union, which is right as it stands; who runs a plan writes it down, has `joined` put the parts together, and
reads it again, so that no more files are open at once than in one scan. Object stores have no such threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from google.protobuf.message import DecodeError
from google.protobuf.wrappers_pb2 import UInt32Value

from engine import dfplan_pb2 as pb
from engine.stages import inputs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from datafusion import DataFrame

    from storage.schema import DataFile

FILES_AT_ONCE: Final = 4
"""Files of a part: so many are asked for, and their footers read, at once."""
BYTES_WHOLE_MAX: Final = 256 * 2**20
"""Files with so many bytes together are one scan, for no more than they have can be waiting to be taken back."""
FILE_BYTES_MIN: Final = 256 * 2**10
"""Mean size of files that are worth parts: DataFusion divides a part among all its threads from 1 MiB on only."""
TAILS_BYTES_MAX: Final = 128 * 2**20
"""A written plan holds the rows in memory that it reads; with more of them the parts run one beside the other."""
PART_NAME: Final = "files_part"
"""What plans call a part."""
OPTIONS: Final = {
    "execution.planning_concurrency": "1",
    "execution.meta_fetch_concurrency": "1",
    "execution.parquet.metadata_size_hint": str(64 * 2**10),
}
"""For a store on this machine's disk: one part at a time, one footer at a time. To decode one is work, not waiting."""
_CHAIN: Final = frozenset({"projection", "filter", "coalesce_batches", "sort", "repartition", "cooperative"})
"""Nodes that treat each row, or each partition, by itself: one of them over one scan is the same over all parts, as
long as it has no limit: `(... LIMIT 5) UNION ALL (... LIMIT 5)` has ten rows."""


def parts(files: Sequence[DataFile]) -> list[Sequence[DataFile]]:
    """The files of one scan as they are to be planned; one part if they need not be divided."""
    size = sum(file.bytes for file in files)
    if size <= max(BYTES_WHOLE_MAX, len(files) * FILE_BYTES_MIN):
        return [files]
    return [files[at : at + FILES_AT_ONCE] for at in range(0, len(files), FILES_AT_ONCE)]


def has_parts(frame: DataFrame) -> bool:
    """Whether a statement's plan has parts to be joined."""
    return f"TableScan: {PART_NAME}" in frame.logical_plan().display_indent()


def joined(written: bytes) -> bytes:
    """An encoded physical plan in which parts are one scan, as far as nothing but their files tells them apart."""
    root = pb.PhysicalPlanNode()
    try:
        root.ParseFromString(written)
    except DecodeError:  # nested too deeply for this reader: it runs in parts
        return written
    for node, fetch in reversed(list(_unions(root))):  # what is below comes first: what is above copies it
        _join(node, fetch)
    return root.SerializeToString()


def _unions(root: pb.PhysicalPlanNode) -> Iterator[tuple[pb.PhysicalPlanNode, int]]:
    """The unions of a plan; with each, if nobody wants more of its rows, whichever they are, how many are wanted."""
    pending = [(root, 0)]
    while pending:
        node, fetch = pending.pop()
        kind = node.WhichOneof("kind")
        if kind == "union":
            yield node, fetch
        below = node.merge.fetch if kind == "merge" else 0
        pending.extend((part, below) for part in _below(node))


def _below(node: pb.PhysicalPlanNode) -> Sequence[pb.PhysicalPlanNode]:
    kind = node.WhichOneof("kind")
    if kind == "analyze":
        return [node.analyze.input]
    if kind == "scalar_subquery":
        return [node.scalar_subquery.input, *node.scalar_subquery.subqueries]
    return [] if kind is None else inputs(node)


def _join(union: pb.PhysicalPlanNode, fetch: int) -> None:
    """Of inputs that are alike the first has all files, in as many groups as each of them had."""
    alike: dict[bytes, tuple[pb.PhysicalPlanNode, list[pb.PartitionedFile]]] = {}
    kept: list[pb.PhysicalPlanNode] = []
    for node in union.union.inputs:
        scan = _scan(node, fetch)
        if scan is None:
            kept.append(_copy(node))
        else:
            _, files = alike.setdefault(_without_files(node, fetch), (_copy(node), []))
            files += [file for group in scan.file_groups for file in group.files]
    for node, files in alike.values():
        scan = _scan(node, fetch)
        assert scan is not None
        count = len(scan.file_groups)
        groups = [pb.FileGroup(files=files[at::count]) for at in range(count)]
        del scan.file_groups[:]
        scan.file_groups.extend(groups)
    kept = [*(node for node, _ in alike.values()), *kept]
    if len(kept) == 1:
        union.CopyFrom(kept[0])
    else:
        del union.union.inputs[:]
        union.union.inputs.extend(kept)


def _scan(node: pb.PhysicalPlanNode, fetch: int) -> pb.FileScanConf | None:
    """The scan at the end of a chain, if it may have more files."""
    while (kind := node.WhichOneof("kind")) != "parquet_scan":
        body: Any = None if kind is None else getattr(node, kind)
        stays = kind in _CHAIN and not _has_limit(kind, body)
        if not stays and not (kind == "merge" and 0 < fetch <= body.fetch):
            return None
        node = body.input
    scan = node.parquet_scan.base_conf
    is_limited = scan.HasField("limit") and not (fetch and scan.limit == UInt32Value(value=fetch).SerializeToString())
    # Files of other parts would break an order that it promises.
    has_promises = scan.output_ordering or scan.partitioned_by_file_group or not scan.file_groups
    return None if is_limited or has_promises else scan


def _has_limit(kind: str, body: Any) -> bool:
    if kind == "sort":
        return bool(body.fetch >= 0)
    return kind in ("filter", "coalesce_batches") and bool(body.HasField("fetch"))


def _without_files(node: pb.PhysicalPlanNode, fetch: int) -> bytes:
    """What tells whether two inputs are alike. Statistics are for planning, which is over."""
    bare = _copy(node)
    scan = _scan(bare, fetch)
    assert scan is not None
    count = len(scan.file_groups)
    del scan.file_groups[:]
    scan.ClearField("statistics")
    return count.to_bytes(4, "big") + bare.SerializeToString()


def _copy(node: pb.PhysicalPlanNode) -> pb.PhysicalPlanNode:
    copied = pb.PhysicalPlanNode()
    copied.CopyFrom(node)
    return copied
