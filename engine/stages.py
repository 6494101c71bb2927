"""DataFusion's physical plan cut at its exchanges into stages, and stages into tasks of one partition. Pure.

An exchange is where rows change their partition: a hash repartition, or partitions that become one. What is below it
becomes a stage; its place is taken by an `ExchangeNode`, which reads what the tasks of that stage made. The last stage
is one task, and it runs in the query's own process. Operators, hashing and the states of aggregates stay DataFusion's.

A plan that has anything that nobody here has thought about is refused with `CannotBeCut`, and then runs whole, in one
process: nothing is guessed. Driven by `engine.ladder`; `engine.tasks` runs what comes out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from engine import dfplan_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from google.protobuf.message import Message

Node: TypeAlias = pb.PhysicalPlanNode
Read: TypeAlias = tuple[int, int]
"""(stage, output): that output of every task of that stage."""

HELD_BYTES_MIN: Final = 16 * 2**10
"""Rows in memory from this size on travel beside the plan, once, instead of in every task's copy of it."""
OUTPUTS_MAX: Final = 1_024
"""Tasks of a stage times the outputs of each: each is an object that somebody has to keep track of."""

REPLICABLE: Final = frozenset((pb.INNER, pb.RIGHT, pb.RIGHTSEMI, pb.RIGHTANTI, pb.RIGHTMARK))
"""Joins whose collected left side may be copied to every task of the right side. The others also say something about
the left rows that met nothing, which a task that has seen a part of the right side cannot know."""
WHOLE_AGGREGATES: Final = frozenset((pb.FINAL, pb.SINGLE))
AGGREGATES: Final = frozenset((pb.PARTIAL, pb.FINAL_PARTITIONED, pb.SINGLE_PARTITIONED)) | WHOLE_AGGREGATES
ONE_INPUT: Final = frozenset(
    (
        "projection", "global_limit", "local_limit", "aggregate", "sort", "coalesce_batches", "filter", "merge",
        "repartition", "window", "sort_preserving_merge", "unnest", "cooperative",
    )
)  # fmt: skip
TWO_INPUTS: Final = frozenset(("hash_join", "nested_loop_join", "cross_join", "sort_merge_join"))
MANY_INPUTS: Final = frozenset(("union", "interleave"))
LEAVES: Final = frozenset(("empty", "placeholder_row"))


class CannotBeCut(Exception):
    """The plan has a part that cannot run in tasks, or that is not known here; the message says which."""


@dataclass(frozen=True)
class Stage:
    """One part of a plan. It has ``tasks`` partitions; each task makes ``outputs`` outputs."""

    plan: Node
    tasks: int
    outputs: int


@dataclass(frozen=True)
class Task:
    """One partition of one stage: its plan, what it reads, and which of `Stages.held`."""

    stage: int
    number: int
    plan: bytes
    reads: tuple[Read, ...]
    held: tuple[int, ...]
    outputs: int


@dataclass(frozen=True)
class Stages:
    """A whole plan. Each stage reads earlier ones only; the last is one task, whose output is the result.

    ``held`` are partitions of rows in memory, as Arrow IPC streams.
    """

    stages: tuple[Stage, ...]
    held: tuple[bytes, ...]

    def tasks(self, stage: int) -> list[Task]:
        """The tasks of one stage."""
        found = self.stages[stage]
        return [_task(stage, number, found) for number in range(found.tasks)]

    @property
    def last(self) -> Task:
        """The task that makes the result."""
        (task,) = self.tasks(len(self.stages) - 1)
        return task

    @property
    def count(self) -> int:
        """How many tasks run elsewhere."""
        return sum(stage.tasks for stage in self.stages[:-1])


def cut(written: bytes) -> Stages:
    """Cut an encoded physical plan of DataFusion 55. Raises CannotBeCut."""
    try:
        root = Node.FromString(written)
        _refuse_unknown(root)
        cutter = _Cutter()
        cutter.make_single(root, cutter.partitions(root))
        cutter.add(root, 1, 1)
    except DecodeError as error:  # also of a copy that is nested one level more than what was read
        raise CannotBeCut(f"the plan is nested too deeply to be read here: {error}") from error
    return Stages(tuple(cutter.stages), tuple(cutter.held))


def walk(node: Node) -> Iterator[Node]:
    """A plan's nodes, each before its inputs."""
    pending = [node]
    while pending:
        found = pending.pop()
        yield found
        pending.extend(inputs(found))


def inputs(node: Node) -> list[Node]:
    """The plans that a node reads."""
    kind = node.WhichOneof("kind")
    body = _body(node)
    if kind in ONE_INPUT:
        return [body.input]
    if kind in TWO_INPUTS:
        return [body.left, body.right]
    return list(body.inputs) if kind in MANY_INPUTS else []


def _body(node: Node) -> Any:
    kind = node.WhichOneof("kind")
    if kind is None:
        raise CannotBeCut("the plan has a node of a kind that is not known here")
    return getattr(node, kind)


def _refuse_unknown(message: Message) -> None:
    """A field that is not declared in dfplan.proto may say anything, also what makes a part of a plan wrong alone.

    Dynamic filters are such fields on purpose: one partition of a join that waits for those of all waits for ever.
    """
    unknown = UnknownFieldSet(message)
    if len(unknown):
        raise CannotBeCut(f"{message.DESCRIPTOR.name} has a field {unknown[0].field_number} that is not known here")
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for part in value if field.is_repeated else (value,):
            _refuse_unknown(part)


class _Cutter:
    """Walks a plan from its leaves up and changes it where it is cut."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []
        self.held: list[bytes] = []
        self._places: dict[bytes, int] = {}

    def partitions(self, node: Node) -> int:
        """Cut what is below a node, and the node; how many partitions it has then."""
        kind = node.WhichOneof("kind")
        body = _body(node)
        rule = RULES.get(str(kind))
        if rule is None:
            raise CannotBeCut(f"the plan has a {kind} node")
        return rule(self, node, body)

    def add(self, plan: Node, tasks: int, outputs: int) -> int:
        """One more stage; its place."""
        if tasks * outputs > OUTPUTS_MAX:
            raise CannotBeCut(f"{tasks} tasks with {outputs} outputs each are more than {OUTPUTS_MAX}")
        own = Node()
        own.CopyFrom(plan)
        self.stages.append(Stage(own, tasks, outputs))
        return len(self.stages) - 1

    def make_single(self, node: Node, partitions: int) -> None:
        """Gather a node's partitions in one."""
        if partitions > 1:
            self.exchange(node, partitions, 1)
            _wrap_in_merge(node)

    def exchange(self, node: Node, tasks: int, outputs: int) -> None:
        """Make a node a stage, and put what reads its outputs in its place."""
        stage = self.add(node, tasks, outputs)
        node.exchange.CopyFrom(pb.ExchangeNode(stage=stage, outputs=outputs))

    def _hold(self, rows: bytes) -> int:
        place = self._places.setdefault(rows, len(self.held))
        if place == len(self.held):
            self.held.append(rows)
        return place

    # -- one rule for each kind of node ------------------------------------------------------------------

    def parquet_scan(self, node: Node, scan: pb.ParquetScanNode) -> int:
        if scan.base_conf.partitioned_by_file_group:
            raise CannotBeCut("a scan promises that its groups of files are partitions by value")
        if not scan.base_conf.file_groups:
            raise CannotBeCut("a scan without files")
        return len(scan.base_conf.file_groups)

    def memory_scan(self, node: Node, scan: pb.MemoryScanNode) -> int:
        if not scan.partitions:
            raise CannotBeCut("a scan of memory without partitions")
        count = len(scan.partitions)
        if sum(map(len, scan.partitions)) >= HELD_BYTES_MIN:
            scan.held[:] = [self._hold(rows) for rows in scan.partitions]
            del scan.partitions[:]
        return count

    def leaf(self, node: Node, leaf: pb.LeafNode) -> int:
        return max(1, leaf.partitions)

    def series(self, node: Node, series: pb.GenerateSeriesNode) -> int:
        return 1

    def kept(self, node: Node, body: Any) -> int:
        """Each partition by itself, as it comes."""
        return self.partitions(body.input)

    def whole(self, node: Node, body: Any) -> int:
        """All rows in one place."""
        self.make_single(body.input, self.partitions(body.input))
        return 1

    def gathered(self, node: Node, body: Any) -> int:
        """Partitions that become one, in any order or in that of their rows: the node itself reads all outputs."""
        count = self.partitions(body.input)
        if count > 1:
            self.exchange(body.input, count, 1)
        return 1

    def sort(self, node: Node, sort: pb.SortNode) -> int:
        sort.ClearField("dynamic_filter")  # it would leave out rows that another run of the plan has seen
        return self.kept(node, sort) if sort.preserve_partitioning else self.whole(node, sort)

    def window(self, node: Node, window: pb.WindowNode) -> int:
        return self.kept(node, window) if window.partition_keys else self.whole(node, window)

    def aggregate(self, node: Node, aggregate: pb.AggregateNode) -> int:
        if aggregate.mode not in AGGREGATES:
            raise CannotBeCut(f"an aggregate of mode {aggregate.mode}")
        return self.whole(node, aggregate) if aggregate.mode in WHOLE_AGGREGATES else self.kept(node, aggregate)

    def repartition(self, node: Node, repartition: pb.RepartitionNode) -> int:
        count = self.partitions(repartition.input)
        method = repartition.partitioning.WhichOneof("method")
        if method == "round_robin":  # it only spreads work, and the tasks do that
            _become(node, repartition.input)
            return count
        if method != "hash":
            raise CannotBeCut("a repartition of a kind that is not known here")
        if repartition.preserve_order:
            raise CannotBeCut("a repartition that keeps the order of rows")
        outputs = repartition.partitioning.hash.partition_count
        if outputs > 1:
            self.exchange(node, count, outputs)
            _wrap_in_merge(node)
            return outputs
        _become(node, repartition.input)
        self.make_single(node, count)
        return 1

    def partitioned_join(self, node: Node, join: pb.HashJoinNode | pb.SortMergeJoinNode) -> int:
        """Both sides are partitioned by the same keys."""
        left, right = self.partitions(join.left), self.partitions(join.right)
        if left != right:
            raise CannotBeCut(f"a join of {left} partitions with {right}")
        return left

    def hash_join(self, node: Node, join: pb.HashJoinNode) -> int:
        if join.partition_mode == pb.PARTITIONED and not join.null_aware:
            return self.partitioned_join(node, join)
        if join.partition_mode != pb.COLLECT_LEFT:
            raise CannotBeCut(f"a hash join of mode {join.partition_mode}, null aware: {join.null_aware}")
        return self._collected(join, join.join_type in REPLICABLE and not join.null_aware)

    def nested_loop_join(self, node: Node, join: pb.NestedLoopJoinNode) -> int:
        return self._collected(join, join.join_type in REPLICABLE)

    def cross_join(self, node: Node, join: pb.CrossJoinNode) -> int:
        return self._collected(join, is_replicable=True)

    def _collected(self, join: Any, is_replicable: bool) -> int:
        """The left side is collected, and met by each row of the right."""
        left, right = self.partitions(join.left), self.partitions(join.right)
        if not is_replicable:
            self.make_single(join.right, right)
            right = 1
        if right > 1 and left == 1 and not _is_gathered(join.left):
            # Made once and read by all: run in each task, a LIMIT would choose other rows in each of them.
            self.exchange(join.left, 1, 1)
            _wrap_in_merge(join.left)
        self.make_single(join.left, left)
        return right

    def union(self, node: Node, union: pb.UnionNode) -> int:
        return sum(self.partitions(part) for part in union.inputs)

    def interleave(self, node: Node, union: pb.UnionNode) -> int:
        counts = {self.partitions(part) for part in union.inputs}
        if len(counts) != 1:
            raise CannotBeCut(f"interleaved inputs of {sorted(counts)} partitions")
        return counts.pop()


RULES: Final[Mapping[str, Callable[[_Cutter, Node, Any], int]]] = {
    "parquet_scan": _Cutter.parquet_scan,
    "memory_scan": _Cutter.memory_scan,
    "empty": _Cutter.leaf,
    "placeholder_row": _Cutter.leaf,
    "generate_series": _Cutter.series,
    "projection": _Cutter.kept,
    "filter": _Cutter.kept,
    "coalesce_batches": _Cutter.kept,
    "local_limit": _Cutter.kept,
    "unnest": _Cutter.kept,
    "cooperative": _Cutter.kept,
    "global_limit": _Cutter.whole,
    "merge": _Cutter.gathered,
    "sort_preserving_merge": _Cutter.gathered,
    "sort": _Cutter.sort,
    "window": _Cutter.window,
    "aggregate": _Cutter.aggregate,
    "repartition": _Cutter.repartition,
    "hash_join": _Cutter.hash_join,
    "sort_merge_join": _Cutter.partitioned_join,
    "nested_loop_join": _Cutter.nested_loop_join,
    "cross_join": _Cutter.cross_join,
    "union": _Cutter.union,
    "interleave": _Cutter.interleave,
}


def _become(node: Node, other: Node) -> None:
    """Put a part of a node in its own place."""
    own = Node()
    own.CopyFrom(other)
    node.CopyFrom(own)


def _wrap_in_merge(node: Node) -> None:
    merge = Node()
    merge.merge.input.CopyFrom(node)
    node.CopyFrom(merge)


def _is_gathered(node: Node) -> bool:
    """Whether a node only reads outputs that are there already."""
    return node.WhichOneof("kind") == "merge" and node.merge.input.WhichOneof("kind") == "exchange"


def _task(stage: int, number: int, found: Stage) -> Task:
    plan = Node()
    plan.CopyFrom(found.plan)
    _narrow(plan, number)
    nodes = list(walk(plan))
    reads = [(n.exchange.stage, n.exchange.output) for n in nodes if n.WhichOneof("kind") == "exchange"]
    held = [place for n in nodes if n.WhichOneof("kind") == "memory_scan" for place in n.memory_scan.held]
    encoded = plan.SerializeToString()
    return Task(stage, number, encoded, tuple(dict.fromkeys(reads)), tuple(dict.fromkeys(held)), found.outputs)


def _narrow(node: Node, number: int) -> None:
    """Leave of a cut plan what makes its partition ``number``."""
    kind = node.WhichOneof("kind")
    body = _body(node)
    if kind == "parquet_scan":
        _keep_one(body.base_conf.file_groups, number)
    elif kind == "memory_scan":
        _keep_one(body.held or body.partitions, number)
    elif kind == "exchange":
        body.output = number if body.outputs > 1 else 0
    elif kind in LEAVES:
        body.partitions = 1
    elif kind == "union":
        _narrow_union(node, body, number)
    elif kind == "interleave":
        _narrow_interleave(node, body, number)
    elif kind in TWO_INPUTS and not _is_partitioned_join(node):
        _narrow(body.left, 0)
        _narrow(body.right, number)
    else:
        for part in inputs(node):
            _narrow(part, number)


def _keep_one(parts: Any, number: int) -> None:
    del parts[number + 1 :]
    del parts[:number]


def _narrow_union(node: Node, union: pb.UnionNode, number: int) -> None:
    for part in union.inputs:
        count = _count(part)
        if number < count:
            _become(node, part)
            _narrow(node, number)
            return
        number -= count
    raise AssertionError("a union has the partitions of its inputs")


def _narrow_interleave(node: Node, union: pb.UnionNode, number: int) -> None:
    merge = Node()
    for part in union.inputs:
        _narrow(part, number)
        merge.merge.input.union.inputs.append(part)
    node.CopyFrom(merge)


def _is_partitioned_join(node: Node) -> bool:
    kind = node.WhichOneof("kind")
    return kind == "sort_merge_join" or (kind == "hash_join" and node.hash_join.partition_mode == pb.PARTITIONED)


def _count(node: Node) -> int:
    """The partitions of a plan that is cut."""
    kind = node.WhichOneof("kind")
    body: Any = _body(node)
    if kind == "parquet_scan":
        return len(body.base_conf.file_groups)
    if kind == "memory_scan":
        return len(body.held or body.partitions)
    if kind in LEAVES:
        return max(1, int(body.partitions))
    if kind == "exchange":
        return int(body.outputs)
    if kind == "union":
        return sum(_count(part) for part in body.inputs)
    if kind in TWO_INPUTS:
        return _count(body.right)
    if kind == "merge" and body.input.WhichOneof("kind") != "exchange":
        return 1
    if kind == "sort_preserving_merge":
        return 1
    parts = inputs(node)
    return _count(parts[0]) if parts else 1
