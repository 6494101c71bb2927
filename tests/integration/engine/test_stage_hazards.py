"""What goes wrong when a part of a DataFusion plan runs alone: each hazard that was found once, by its number in the
notes on the query engine, and those that were found since."""

from __future__ import annotations

import asyncio
import contextlib
import math
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine import dfplan_pb2 as pb
from engine.batches import BatchSource
from engine.distribution import cut_frame, planning_for
from engine.ladder import OPTIONS, Rung
from engine.session import new_context, set_option
from engine.stages import HELD_BYTES_MIN, CannotBeCut, Node, cut, inputs, walk
from engine.tasks import TaskContext, TaskInputs
from tests.harness.stages import POOL_BYTES, gather, rows_of, task_context

if TYPE_CHECKING:
    from pathlib import Path

    from datafusion import DataFrame, SessionContext
    from datafusion.plan import ExecutionPlan

    from engine.stages import Stages
    from engine.tasks import Blob

ROWS = 400
FILES = 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Tables `t` (several files), `u` (one) and `empty`."""
    for name in "t", "u", "empty":
        (tmp_path / name).mkdir()
    for number in range(FILES):
        values = range(number * ROWS // FILES, (number + 1) * ROWS // FILES)
        keys = [f"a key that is longer than twelve {v % 7}" for v in values]
        pq.write_table(pa.table({"k": keys, "v": list(values)}), tmp_path / "t" / f"{number}.parquet")
    others = pa.table({"k": [f"a key that is longer than twelve {v}" for v in range(9)], "n": list(range(9))})
    pq.write_table(others, tmp_path / "u" / "0.parquet")
    pq.write_table(others.slice(0, 0), tmp_path / "empty" / "0.parquet")
    return tmp_path


@pytest.fixture
def context(folder: Path) -> SessionContext:
    return make_context(folder)


def make_context(folder: Path, partitions: int = 4) -> SessionContext:
    context = new_context(POOL_BYTES, None, partitions, 8_192, 0)
    set_option(context, "optimizer.repartition_file_min_size", "1")
    for name in "t", "u", "empty":
        context.register_parquet(name, str(folder / name))
    return context


def planned(context: SessionContext, statement: str, rung: Rung = Rung.FULL_SHUFFLE) -> DataFrame:
    with planning_for(context, rung):
        return context.sql(statement)


def stages_of(context: SessionContext, statement: str, rung: Rung = Rung.FULL_SHUFFLE) -> Stages:
    return cut_frame(context, planned(context, statement, rung))


def answer(context: SessionContext, statement: str, rung: Rung = Rung.FULL_SHUFFLE) -> list[dict[str, Any]]:
    return asyncio.run(rows_of(stages_of(context, statement, rung), task_context()))


def kinds(node: Node) -> set[str]:
    return {str(part.WhichOneof("kind")) for part in walk(node)}


def encoded(**fields: Any) -> bytes:
    return Node(**fields).SerializeToString()


LEAF = Node(placeholder_row=pb.LeafNode())
TWO = Node(empty=pb.LeafNode(partitions=2))
COOPERATIVE, COALESCE_PARTITIONS = 32, 13
"""Kinds of nodes, by their fields in the encoding."""


def field(number: int, content: bytes) -> bytes:
    """A field of a protobuf message with a length."""
    sizes = [len(content) & 0x7F | 0x80, len(content) >> 7] if len(content) > 0x7F else [len(content)]
    head = number << 3 | 2
    return bytes([head & 0x7F | 0x80, head >> 7] if head > 0x7F else [head]) + bytes(sizes) + content


def test_hazard_1_one_task_reads_its_own_files_only(context: SessionContext) -> None:
    """Partitions of one scan steal files from each other, also where only one of them is run."""
    stages = stages_of(context, "SELECT k, v FROM t WHERE v >= 0")
    assert stages.stages[0].tasks == FILES
    gathered = asyncio.run(gather(stages, task_context()))
    assert [figure.rows for figure in gathered.figures] == [ROWS // FILES] * FILES


def test_hazard_1_the_workers_context_steals_no_work_either(folder: Path, context: SessionContext) -> None:
    """Even a plan that was not narrowed gives each row once, its partitions run one at a time."""
    written = planned(context, "SELECT v FROM t").execution_plan().to_bytes(context)

    async def count() -> int:
        from datafusion.plan import ExecutionPlan

        tasks = task_context()
        plan = ExecutionPlan.from_bytes(tasks.context, written)
        rows = 0
        for number in range(plan.partition_count):
            source = BatchSource(tasks.context.execute(plan, number))
            while (batch := await source.next()) is not None:
                rows += batch.num_rows
        return rows

    assert asyncio.run(count()) == ROWS


def test_hazard_2_a_join_that_waits_for_a_filter_of_all_partitions_is_not_cut(context: SessionContext) -> None:
    statement = "SELECT count(*) AS n FROM t JOIN t AS s ON t.v = s.v"
    set_option(context, "optimizer.hash_join_single_partition_threshold", "1")
    set_option(context, "optimizer.hash_join_single_partition_threshold_rows", "1")
    assert answer(context, statement) == [{"n": ROWS}]
    with pytest.raises(CannotBeCut, match="field 11"):
        cut_frame(context, context.sql(statement))


@pytest.mark.parametrize(
    "kind", ["LEFT", "FULL", "RIGHT", "INNER", "LEFT SEMI", "LEFT ANTI", "RIGHT SEMI", "RIGHT ANTI"]
)
def test_hazard_3_a_collected_side_is_copied_only_where_that_says_nothing_about_it(
    context: SessionContext, kind: str
) -> None:
    """Each task would give the left rows that met nothing in its own part of the right side."""
    statement = f"SELECT * FROM u {kind} JOIN t ON u.k = t.k AND t.v < 300 ORDER BY 1, 2"
    wanted = context.sql(statement).to_pylist()
    got = answer(context, statement, Rung.PARTIAL_FINAL)
    assert sorted(map(str, got)) == sorted(map(str, wanted))


def test_hazard_3_a_null_aware_anti_join_sees_every_row(context: SessionContext) -> None:
    statement = "SELECT count(*) AS n FROM t WHERE k NOT IN (SELECT CASE WHEN n = 8 THEN NULL ELSE k END FROM u)"
    stages = stages_of(context, statement)
    joins = [part for stage in stages.stages for part in walk(stage.plan) if part.WhichOneof("kind") == "hash_join"]
    assert any(join.hash_join.null_aware for join in joins)
    assert asyncio.run(rows_of(stages, task_context())) == [{"n": 0}]


@pytest.mark.parametrize(
    ("statement", "rows"),
    [
        ("SELECT k, count(*) OVER (PARTITION BY v % 97) AS n FROM t", ROWS),
        ("SELECT k FROM t WHERE v % 100 = 3", ROWS // 100),
        ("SELECT k, v FROM t ORDER BY v LIMIT 2", 2),
    ],
)
def test_hazard_4_an_output_has_the_text_of_its_own_rows_only(folder: Path, statement: str, rows: int) -> None:
    """A string view refers to a buffer with the text of all rows that were read together."""
    (folder / "t" / "0.parquet").unlink()
    table = pa.table({"k": [f"{v:0500}" for v in range(ROWS)], "v": list(range(ROWS))})
    pq.write_table(table, folder / "t" / "0.parquet")
    stages = stages_of(make_context(folder), statement)

    async def sizes() -> list[int]:
        _, blobs = await task_context().run(stages.tasks(0)[0], TaskInputs({}, {}), "here")
        schema = pa.ipc.open_stream(blobs[0][1]).schema
        assert any(map(pa.types.is_string_view, schema.types))
        return [data.size for _, data in blobs]

    assert sum(asyncio.run(sizes())) < 2 * rows * 500 + 4_096


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT k, sum(v) AS s FROM t WHERE v < -1 GROUP BY k",
        "SELECT t.k, n FROM t JOIN empty ON t.k = empty.k",
        "SELECT count(*) AS c, sum(v) AS s, max(k) AS m FROM t WHERE v < -1",
        "SELECT k, row_number() OVER (PARTITION BY k ORDER BY v) AS r FROM t WHERE v < -1",
    ],
)
def test_hazard_5_a_task_without_a_row_still_has_a_schema(context: SessionContext, statement: str) -> None:
    for rung in Rung.PARTIAL_FINAL, Rung.FULL_SHUFFLE:
        assert answer(context, statement, rung) == context.sql(statement).to_pylist()


def test_hazard_6_states_of_one_name_and_rows_without_columns(context: SessionContext) -> None:
    twice = "SELECT k, avg(v) AS a, avg(v) + 1 AS b, count(v) AS c, sum(v) AS s FROM t GROUP BY k ORDER BY k"
    assert answer(context, twice) == context.sql(twice).to_pylist()
    assert answer(context, "SELECT count(*) AS n FROM t CROSS JOIN u") == [{"n": ROWS * 9}]


def test_hazard_7_a_scalar_subquery_is_a_join(context: SessionContext) -> None:
    statement = "SELECT count(*) AS n FROM t WHERE v > (SELECT avg(v) FROM t)"
    assert answer(context, statement) == [{"n": ROWS // 2}]
    with pytest.raises(CannotBeCut):
        cut_frame(context, context.sql(statement))


@pytest.mark.parametrize(
    "statement",
    ["WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 9) SELECT n FROM r", "EXPLAIN SELECT 1"],
)
def test_hazard_8_what_cannot_be_shipped_is_refused(context: SessionContext, statement: str) -> None:
    with pytest.raises(CannotBeCut):
        stages_of(context, statement)


def test_hazard_8_a_repartition_that_keeps_order_is_refused() -> None:
    repartition = pb.RepartitionNode(
        input=LEAF, preserve_order=True, partitioning=pb.Partitioning(hash=pb.HashPartitioning(partition_count=2))
    )
    with pytest.raises(CannotBeCut, match="keeps the order"):
        cut(encoded(repartition=repartition))


def test_hazard_9_files_are_those_of_the_plan(folder: Path, context: SessionContext) -> None:
    """A file that comes while a statement runs is no part of it: tasks read lists, never folders."""
    stages = stages_of(context, "SELECT count(*) AS n FROM t WHERE v >= 0")
    pq.write_table(pa.table({"k": ["new"], "v": [1]}), folder / "t" / "new.parquet")
    assert asyncio.run(rows_of(stages, task_context())) == [{"n": ROWS}]


def test_hazard_10_approximate_answers_are_close(context: SessionContext) -> None:
    statement = "SELECT approx_percentile_cont(0.9) WITHIN GROUP (ORDER BY v) AS p, approx_distinct(k) AS d FROM t"
    (got,), (wanted,) = answer(context, statement), context.sql(statement).to_pylist()
    assert got["d"] == wanted["d"]
    assert math.isclose(got["p"], wanted["p"], rel_tol=0.05)


def test_hazard_11_nothing_of_python_is_called_by_a_plan(context: SessionContext) -> None:
    """A table that Python code has to give would call it within DataFusion's runtime, which panics; it is refused."""
    from datafusion.catalog import Table
    from pyarrow import dataset

    rows = pa.table({"k": ["a"], "v": [1]})
    context.catalog("public").schema("iox").register_table("py", Table(dataset.dataset(rows)))
    with pytest.raises(CannotBeCut, match="cannot be written down"):
        stages_of(context, "SELECT k, sum(v) FROM py GROUP BY k")


# -- found since -----------------------------------------------------------------------------------------


def test_a_side_that_is_copied_is_made_once(context: SessionContext) -> None:
    """Each task would choose its own five rows, and all of them together more than five."""
    limited = "(SELECT v FROM u JOIN (SELECT v FROM t LIMIT 200) ON n = v % 3 LIMIT 5)"
    statement = f"SELECT count(DISTINCT s.v) AS n, count(*) AS c FROM {limited} AS s JOIN t ON t.v >= s.v - 10000"
    stages = stages_of(context, statement)
    for stage in stages.stages:
        if stage.tasks > 1:
            for part in walk(stage.plan):
                if part.WhichOneof("kind") == "nested_loop_join":
                    assert kinds(part.nested_loop_join.left) <= {"merge", "exchange"}
    (row,) = asyncio.run(rows_of(stages, task_context()))
    assert row["n"] <= 5
    assert row["c"] == 5 * ROWS


def test_what_a_sort_has_learnt_from_its_rows_does_not_travel(context: SessionContext) -> None:
    """A plan that has run knows that only greater values are wanted: run again, it would leave out some."""
    frame = planned(context, "SELECT v FROM t ORDER BY v DESC LIMIT 3")
    plan = frame.execution_plan()
    list(context.execute(plan, 0))
    stages = cut(plan.to_bytes(context))
    sorts = [part for stage in stages.stages for part in walk(stage.plan) if part.WhichOneof("kind") == "sort"]
    assert sorts
    assert not any(part.sort.HasField("dynamic_filter") for part in sorts)
    assert asyncio.run(rows_of(stages, task_context())) == [{"v": ROWS - 1}, {"v": ROWS - 2}, {"v": ROWS - 3}]


def test_null_of_one_part_of_a_union_is_not_lost_where_another_has_none(context: SessionContext) -> None:
    statement = """SELECT x, count(*) AS n FROM
        (SELECT 1 AS x FROM t UNION ALL SELECT CASE WHEN v > 9 THEN NULL ELSE 1 END FROM t) GROUP BY x ORDER BY x"""
    assert answer(context, statement) == [{"x": 1, "n": ROWS + 10}, {"x": None, "n": ROWS - 10}]


def test_columns_of_different_types_are_not_read_as_one(context: SessionContext) -> None:
    def blob(values: list[Any]) -> Blob:
        sink = pa.BufferOutputStream()
        batch = pa.record_batch({"x": values})
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        return batch.num_rows, sink.getvalue()

    def read(*blobs: Blob) -> BatchSource:
        plan = Node(exchange=pb.ExchangeNode(stage=0, outputs=1)).SerializeToString()
        return TaskContext(context).start(plan, TaskInputs({(0, 0): blobs}, {}))

    read(blob([1]), blob([2]))
    with pytest.raises(CannotBeCut, match="different types"):
        read(blob([1]), blob(["one"]))


def test_a_field_that_nobody_has_looked_at_is_refused() -> None:
    known = encoded(global_limit=pb.GlobalLimitNode(input=LEAF, fetch=1))
    assert cut(known).stages
    body = pb.GlobalLimitNode(input=LEAF, fetch=1).SerializeToString() + bytes([15 << 3, 1])
    with pytest.raises(CannotBeCut, match="GlobalLimitNode has a field 15"):
        cut(bytes([6 << 3 | 2, len(body)]) + body)


def test_a_node_that_nobody_has_looked_at_is_refused() -> None:
    with pytest.raises(CannotBeCut):
        cut(bytes([29 << 3 | 2, 0]))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"aggregate": pb.AggregateNode(input=LEAF, mode=5)}, "mode 5"),  # type: ignore[arg-type]
        ({"parquet_scan": pb.ParquetScanNode()}, "without files"),
        (
            {"parquet_scan": pb.ParquetScanNode(base_conf=pb.FileScanConf(partitioned_by_file_group=True))},
            "partitions by value",
        ),
        (
            {"hash_join": pb.HashJoinNode(left=LEAF, right=LEAF, partition_mode=pb.PARTITIONED, null_aware=True)},
            "null aware: True",
        ),
        ({"memory_scan": pb.MemoryScanNode()}, "without partitions"),
        ({"hash_join": pb.HashJoinNode(left=LEAF, right=LEAF, partition_mode=pb.AUTO)}, "mode 2"),
        ({"repartition": pb.RepartitionNode(input=LEAF)}, "not known here"),
        ({"sort_merge_join": pb.SortMergeJoinNode(left=LEAF, right=TWO)}, "1 partitions"),
        ({"interleave": pb.UnionNode(inputs=[LEAF, TWO])}, "interleaved"),
        ({"exchange": pb.ExchangeNode()}, "exchange"),
    ],
)  # fmt: skip
def test_a_combination_that_nobody_has_looked_at_is_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(CannotBeCut, match=reason):
        cut(encoded(**fields))


def test_a_plan_nested_too_deeply_is_refused() -> None:
    """By the protobuf library when it is read, or later, when a part of it is copied one level down."""
    for depth in range(44, 60):
        node = LEAF.SerializeToString()
        for _ in range(depth):
            node = field(COOPERATIVE, field(1, node))
        with contextlib.suppress(CannotBeCut):
            cut(field(COALESCE_PARTITIONS, field(1, node)))
    with pytest.raises(CannotBeCut, match="too deeply"):
        cut(node)


def test_too_many_outputs_are_refused() -> None:
    hash = pb.Partitioning(hash=pb.HashPartitioning(partition_count=600))
    with pytest.raises(CannotBeCut, match="more than 1024"):
        cut(encoded(repartition=pb.RepartitionNode(input=TWO, partitioning=hash)))


def test_a_plan_passes_through_byte_for_byte_in_meaning(context: SessionContext) -> None:
    """What is declared as bytes and what is declared as fields says after a round trip what it said before."""
    from datafusion.plan import ExecutionPlan

    statement = """SELECT t.k, n, sum(v) FILTER (WHERE v > 3) AS s, rank() OVER (ORDER BY n) AS r FROM t LEFT JOIN u
        ON t.k = u.k AND v < n * 50 WHERE v IS NOT NULL GROUP BY t.k, n
        UNION ALL SELECT 'x', 1, 2, 3 ORDER BY 1 LIMIT 7"""
    plan = planned(context, statement).execution_plan()
    written = plan.to_bytes(context)
    again = Node.FromString(written).SerializeToString()
    shown = [ExecutionPlan.from_bytes(context, each).display_indent() for each in (written, again)]
    assert shown[0] == shown[1]


def test_rows_in_memory_travel_once_however_often_they_are_read(context: SessionContext) -> None:
    count = HELD_BYTES_MIN
    batch = pa.record_batch({"x": pa.array(range(count))})
    context.catalog("public").schema("iox").register_table("m", context.read_batches([batch]).into_view())
    statement = "SELECT count(*) AS n FROM m AS a JOIN m AS b ON a.x = b.x JOIN t ON t.v = a.x"
    stages = stages_of(context, statement)
    assert len(stages.held) == 1
    assert all(len(task.plan) < 50_000 for stage in range(len(stages.stages)) for task in stages.tasks(stage))
    assert asyncio.run(rows_of(stages, task_context())) == [{"n": ROWS}]


def test_one_partition_of_several_in_memory_is_its_own(context: SessionContext) -> None:
    parts = [[pa.record_batch({"x": pa.array([at] * HELD_BYTES_MIN)})] for at in range(3)]
    context.catalog("public").schema("iox").register_table("m", context.create_dataframe(parts).into_view())
    stages = stages_of(context, "SELECT x, count(*) AS n FROM m GROUP BY x ORDER BY x")
    assert stages.stages[0].tasks == len(stages.held) == 3
    wanted = [{"x": at, "n": HELD_BYTES_MIN} for at in range(3)]
    assert asyncio.run(rows_of(stages, task_context())) == wanted


def test_inputs_too_large_for_one_message_are_refused(context: SessionContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.tasks.INPUT_BYTES_MAX", 1_000)
    stages = stages_of(context, "SELECT k, v FROM t WHERE v >= 0")
    with pytest.raises(CannotBeCut, match="and may have 1000"):
        asyncio.run(rows_of(stages, task_context()))


def test_a_join_in_a_task_can_be_stopped(context: SessionContext) -> None:
    """See `engine.stoppable`."""
    run: list[Node] = []

    class Watched(TaskContext):
        def _executable(self, node: Node) -> ExecutionPlan:
            run.append(node)
            return super()._executable(node)

    stages = stages_of(context, "SELECT count(*) AS n FROM t JOIN u ON t.k = u.k")
    asyncio.run(gather(stages, Watched(task_context().context)))
    stopped = [part for node in run for part in walk(node) if part.WhichOneof("kind") == "cooperative"]
    joins = [part for node in run for part in walk(node) if part.WhichOneof("kind") == "hash_join"]
    assert joins
    assert [inputs(part)[0] for part in stopped] == joins


def test_the_options_of_a_rung_are_taken_back(context: SessionContext) -> None:
    before = context.sql("SELECT * FROM information_schema.df_settings ORDER BY name").to_pylist()
    for rung in OPTIONS:
        with planning_for(context, rung):
            pass
    assert context.sql("SELECT * FROM information_schema.df_settings ORDER BY name").to_pylist() == before
