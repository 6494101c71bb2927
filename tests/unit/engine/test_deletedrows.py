"""Range deletes of one file as conditions, or as tables to be joined against (LOG L26)."""

from __future__ import annotations

import pyarrow as pa
from datafusion import SessionContext

from engine.deletedrows import CONDITIONS_MAX, KEYS_MAX, divided, without_deleted
from engine.stoppable import joins
from storage.deletes import RangeDelete, TagValues
from tests.harness.queries import make_table

HOST, RACK = 1, 2


def host(*values: str | None, low: int = 0, high: int = 9) -> RangeDelete:
    return RangeDelete(low, high, (TagValues(HOST, values),))


def test_a_few_are_conditions() -> None:
    deletes = [host("a", None), RangeDelete(1, 2)] * (CONDITIONS_MAX // 2)
    found = divided(deletes)
    assert (found.conditions, found.tables) == (deletes, [])


def test_many_are_tables_by_the_tags_that_have_a_value() -> None:
    one = RangeDelete(3, 4, (TagValues(RACK, ("r", None)), TagValues(HOST, ("x", "y"))))
    found = divided([host(f"h{n}", high=n) for n in range(CONDITIONS_MAX)] + [one])
    assert found.conditions == []
    hosts, both, absent = sorted(found.tables, key=lambda keys: (keys.absent, len(keys.valued)))
    assert (hosts.valued, hosts.absent, hosts.rows.num_rows) == ((HOST,), (), CONDITIONS_MAX)
    assert hosts.rows.column("_runnel_key_1").to_pylist() == [f"h{n}" for n in range(CONDITIONS_MAX)]
    assert hosts.rows.column("_runnel_high").cast("int64").to_pylist() == list(range(CONDITIONS_MAX))
    assert (both.valued, both.absent) == ((HOST, RACK), ())
    assert both.rows.column("_runnel_key_2").to_pylist() == ["r", "r"]
    assert (absent.valued, absent.absent) == ((HOST,), (RACK,))
    assert absent.rows.column("_runnel_key_1").to_pylist() == ["x", "y"]


def test_one_with_many_values_is_a_table() -> None:
    ((keys),) = divided([host(*(f"h{n}" for n in range(CONDITIONS_MAX**2 + 1)))]).tables
    assert keys.rows.num_rows == CONDITIONS_MAX**2 + 1


def test_there_is_an_end_to_the_keys_of_all_of_them() -> None:
    tags = tuple(TagValues(tag, tuple(f"v{n}" for n in range(300))) for tag in (HOST, RACK))
    found = divided([RangeDelete(n, n, tags) for n in range(20)])
    assert sum(keys.rows.num_rows for keys in found.tables) <= KEYS_MAX
    assert len(found.conditions) == 20 - KEYS_MAX // 300**2


def test_with_too_many_combinations_they_stay_conditions() -> None:
    many = tuple(f"v{n}" for n in range(int(KEYS_MAX**0.5) + 1))
    stays = RangeDelete(tags=(TagValues(HOST, many), TagValues(RACK, many)))
    found = divided([RangeDelete(1, 2), host(None), stays, *(host(f"h{n}") for n in range(CONDITIONS_MAX))])
    assert found.conditions == [stays]
    shapes = {(keys.valued, keys.absent): keys.rows.num_rows for keys in found.tables}
    assert shapes == {((), ()): 1, ((), (HOST,)): 1, ((HOST,), ()): CONDITIONS_MAX}


def test_they_are_no_joins_of_the_statement() -> None:
    """One that joins is written down and read again to be stoppable; these make no rows."""
    context = SessionContext()
    rows = pa.RecordBatch.from_pydict(
        {
            "time": pa.array([1, 5, 1], pa.timestamp("ns")),
            "c1": pa.array(["h1", "h1", None], pa.string_view()),
            "c2": pa.array([None, "r", "r"], pa.string_view()),
        }
    )
    deletes = [RangeDelete(0, 3, (TagValues(HOST, (f"h{n}",)), TagValues(RACK, (None,)))) for n in range(20)]
    table = make_table(tags=("host", "rack"))
    frame = without_deleted(context, table, context.read_batch(rows), divided([*deletes, host("h2")]))
    assert frame.select("time").to_pydict()["time"] == pa.array([5, 1], pa.timestamp("ns")).to_pylist()
    assert "Join" in frame.logical_plan().display_indent()
    assert not joins(frame)
