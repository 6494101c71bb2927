"""Rewritten points against a model in plain Python: per key and field the newest value that was written (FORMAT F11).

Histories are random but seeded: writes out of order, missing tags and fields, one key many times in one body,
checkpoints and kills in between, so that the same key lies in files, in the memtable and in the replayed Log.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.node import RunningNode
from tests.integration.whole.probing import ask_sql, checkpoint, end_clean

if TYPE_CHECKING:
    from pathlib import Path

Key = tuple[str | None, str | None, int]
Model = dict[Key, dict[str, Any]]
FIELDS = ("f", "i", "u", "s", "b")
TABLES = ("a", "b")


def value_of(chooser: random.Random, name: str) -> tuple[str, Any]:
    """A random value as line protocol and as JSON shows it."""
    if name == "f":
        number = chooser.choice([chooser.uniform(-1e6, 1e6), 0.0, 1.5e300, -2.25])
        return repr(number), number
    if name == "i":
        number = chooser.choice([chooser.randrange(-100, 100), 2**63 - 1, -(2**63)])
        return f"{number}i", number
    if name == "u":
        number = chooser.choice([chooser.randrange(100), 2**64 - 1])
        return f"{number}u", number
    if name == "b":
        truth = chooser.random() < 0.5
        return str(truth).lower(), truth
    text = chooser.choice(["", "x", 'say "hi"', "back\\slash", "two\nlines", "ü🌊"])
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"', text


def body(chooser: random.Random, models: dict[str, Model], lines: int) -> str:
    """Lines of line protocol, applied to the models in their order."""
    found = []
    for _ in range(lines):
        table = chooser.choice(TABLES)
        host = chooser.choice([None, "h1", "h2", "h 3"])
        zone = chooser.choice([None, None, "z1", "z2"])
        time = chooser.randrange(12)
        tags = (f",host={host.replace(' ', chr(92) + ' ')}" if host else "") + (f",zone={zone}" if zone else "")
        names = chooser.sample(FIELDS, chooser.randint(1, 3))
        values = {name: value_of(chooser, name) for name in names}
        text = ",".join(f"{name}={given[0]}" for name, given in values.items())
        found.append(f"{table}{tags} {text} {time}")
        models[table].setdefault((host, zone, time), {}).update({name: given[1] for name, given in values.items()})
    return "\n".join(found)


def shown(node: RunningNode, table: str, condition: str = "") -> Model:
    """The table as SQL shows it; a column nobody has written yet is simply not asked for."""
    columns = node.query(f"SELECT column_name FROM information_schema.columns WHERE table_name = '{table}'")
    names = [row["column_name"] for row in columns if row["column_name"] != "time"]
    items = ", ".join([*names, "CAST(time AS BIGINT) AS t"])
    rows = node.query(f"SELECT {items} FROM {table} {condition}")
    found = {(row.get("host"), row.get("zone"), row["t"]): {n: row[n] for n in FIELDS if n in row} for row in rows}
    assert len(found) == len(rows), "a key stands twice"
    return found


def agree(node: RunningNode, models: dict[str, Model], chooser: random.Random) -> None:
    """Whole tables, a range of times, one tag, an aggregate."""
    for table, model in models.items():
        if not model:
            continue
        assert shown(node, table) == model
        low, high = sorted(chooser.sample(range(13), 2))
        between = f"WHERE time >= to_timestamp_nanos({low}) AND time < to_timestamp_nanos({high})"
        assert shown(node, table, between) == {k: v for k, v in model.items() if low <= k[2] < high}
        if any(host for host, _, _ in model):
            of_one = {k: v for k, v in model.items() if k[0] == "h1"}
            assert shown(node, table, "WHERE host = 'h1'") == of_one
            without = {k: v for k, v in model.items() if k[0] is None}
            assert shown(node, table, "WHERE host IS NULL") == without
        if any("i" in fields for fields in model.values()):
            big = {k: v for k, v in model.items() if v.get("i", 0) > 50}
            assert shown(node, table, "WHERE i > 50") == big, "a condition on a field sees merged rows only"


@pytest.mark.parametrize("seed", [1, 2])
def test_a_random_history(tmp_path: Path, seed: int) -> None:
    chooser = random.Random(seed)
    models: dict[str, Model] = {table: {} for table in TABLES}
    settings = {"RUNNEL_LOG__SHARDS": "2"}
    with RunningNode(tmp_path / "data", environment=settings) as node:
        for step in range(18):
            node.write(body(chooser, models, chooser.choice([1, 3, 40])), precision="ns")
            if chooser.random() < 0.3:
                checkpoint(node)
            if step % 4 == 0:
                agree(node, models, chooser)
            if step == 9:
                assert node.alarms() == []
                node.kill()
                node.start()
                agree(node, models, chooser)
        agree(node, models, chooser)
        checkpoint(node)
        agree(node, models, chooser)
        end_clean(node)


def test_one_key_many_times(tmp_path: Path) -> None:
    """In one body, over bodies, over files and memtable, over a restart; NULL never hides a value."""
    with RunningNode(tmp_path / "data") as node:
        node.write("\n".join(f"m,k=a v={i}i 5" for i in range(100)), precision="ns")
        assert node.query("SELECT k, v FROM m") == [{"k": "a", "v": 99}]
        node.write("m,k=a w=1i 5", precision="ns")
        assert node.query("SELECT k, v, w FROM m") == [{"k": "a", "v": 99, "w": 1}]
        checkpoint(node)
        node.write("m,k=a v=7i 5\nm v=8i 5\nm,k=a v=9i 4", precision="ns")
        expected = [{"v": 8}, {"k": "a", "v": 9}, {"k": "a", "v": 7, "w": 1}]
        statement = "SELECT k, v, w FROM m ORDER BY k NULLS FIRST, time"
        assert node.query(statement) == expected
        for _ in range(8):  # more layers than are joined one by one
            checkpoint(node)
            node.write("m,k=a v=7i 5\nm v=8i 5\nm,k=a v=9i 4", precision="ns")
        assert node.query(statement) == expected
        node.kill()
        node.start()
        assert node.query(statement) == expected
        assert node.query("SELECT count(*) AS n, count(w) AS w, sum(v) AS s FROM m") == [{"n": 3, "w": 1, "s": 24}]
        reply = ask_sql(node, "SELECT * FROM m WHERE w IS NULL ORDER BY v", format="csv")
        assert reply.text.splitlines()[0] == "k,time,v,w"
        assert len(reply.text.splitlines()) == 3
        end_clean(node)
