"""Range deletes of one file as conditions, or as tables to be joined against (LOG L26)."""

from __future__ import annotations

from engine.deletedrows import CONDITIONS_MAX, KEYS_MAX, divided
from storage.deletes import RangeDelete, TagValues

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


def test_without_a_value_or_with_too_many_combinations_they_stay_conditions() -> None:
    many = tuple(f"v{n}" for n in range(int(KEYS_MAX**0.5) + 1))
    stay = [RangeDelete(1, 2), host(None), RangeDelete(tags=(TagValues(HOST, many), TagValues(RACK, many)))]
    found = divided([*stay, *(host(f"h{n}") for n in range(CONDITIONS_MAX))])
    assert found.conditions == stay
    assert [keys.rows.num_rows for keys in found.tables] == [CONDITIONS_MAX]
