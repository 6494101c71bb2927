"""Soft delete of tables and databases: gone at once, the name free at once, and nothing of it ever comes back."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from tests.integration.whole.probing import (
    ask,
    ask_sql,
    checkpoint,
    clean_node,
    configure,
    end_clean,
    goes_on,
    post_lines,
    rows_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.node import RunningNode


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    with clean_node(tmp_path_factory.mktemp("dropping"), LOG__SHARDS="2") as node:
        yield node


def restart(node: RunningNode) -> None:
    assert node.alarms() == []
    node.kill()
    node.start()


@pytest.mark.parametrize("in_files", [False, True], ids=["in_memory", "in_files"])
def test_a_dropped_table_s_rows_do_not_come_back(node: RunningNode, in_files: bool) -> None:
    database = f"d{int(in_files)}"
    node.write("old,k=a v=1i 1\nold,k=b v=2i 2\nother v=1i 1", database)
    if in_files:
        checkpoint(node)
    node.write("old,k=a v=3i 3", database)
    assert ask(node, "DELETE", f"/api/v3/configure/table?db={database}&table=old").status == 200
    reply = ask_sql(node, "SELECT * FROM old", database)
    assert (reply.status, "old" in reply.text) == (400, True)
    assert ask(node, "DELETE", f"/api/v3/configure/table?db={database}&table=old").status == 404
    node.write("old,k=a,j=x v=true 1", database)  # other tags, another type: it is another table
    for _ in range(2):
        assert node.query("SELECT k, j, v FROM old", database) == [{"k": "a", "j": "x", "v": True}]
        assert rows_of(node, "other", database) == 1
        restart(node)
    checkpoint(node)
    assert node.query("SELECT k, j, v FROM old", database) == [{"k": "a", "j": "x", "v": True}]
    files = node.query("SELECT table_name, row_count FROM system.parquet_files ORDER BY table_name", database)
    assert files == [{"table_name": "old", "row_count": 1}, {"table_name": "other", "row_count": 1}]
    goes_on(node)


def test_a_dropped_database_s_rows_do_not_come_back(node: RunningNode) -> None:
    node.write("m,k=a v=1i 1\nn v=1i 1", "gone")
    checkpoint(node)
    node.write("m,k=a v=2i 2", "gone")
    assert ask(node, "DELETE", "/api/v3/configure/database?db=gone").status == 200
    reply = ask_sql(node, "SELECT * FROM m", "gone")
    assert (reply.status, reply.json) == (404, {"error": "query error: database not found: gone"})
    assert ask(node, "DELETE", "/api/v3/configure/database?db=gone").status == 404
    node.write("m v=true 7", "gone")
    for _ in range(2):
        assert node.query("SELECT * FROM m", "gone") == [{"time": "1970-01-01T00:00:07", "v": True}]
        assert ask_sql(node, "SELECT * FROM n", "gone").status == 400
        restart(node)
    listed = ask(node, "GET", "/api/v3/configure/database?format=json&show_deleted=true").json
    deleted = [row for row in listed if row["deleted"]]
    assert [row["iox::database"].startswith("gone-") for row in deleted] == [True]
    assert {"iox::database": "gone", "deleted": False} in listed
    assert configure(node, "POST", "database", db="gone").status == 409
    goes_on(node)


def test_a_drop_among_writes(node: RunningNode) -> None:
    """Writers never see an error that is not theirs, and after the last drop the table starts anew."""
    stopping = threading.Event()
    statuses: set[int] = set()

    def write(number: int) -> None:
        at = 0
        while not stopping.is_set():
            at += 1
            statuses.add(post_lines(node, f"t,w=w{number} v={at}i {at}", "busy").status)

    writers = [threading.Thread(target=write, args=(n,)) for n in range(3)]
    node.write("t,w=w0 v=1i 1", "busy")
    for writer in writers:
        writer.start()
    try:
        drops = [ask(node, "DELETE", "/api/v3/configure/table?db=busy&table=t").status for _ in range(20)]
    finally:
        stopping.set()
        for writer in writers:
            writer.join(30)
    assert statuses <= {204, 503}, statuses
    assert set(drops) <= {200, 404}
    assert 200 in drops
    ask(node, "DELETE", "/api/v3/configure/table?db=busy&table=t")
    node.write("t,w=new v=5i 1", "busy")
    assert node.query("SELECT w, v FROM t", "busy") == [{"w": "new", "v": 5}]
    checkpoint(node)
    restart(node)
    assert node.query("SELECT w, v FROM t", "busy") == [{"w": "new", "v": 5}]
    goes_on(node)
    end_clean(node)
    node.start()
    assert node.query("SELECT w, v FROM t", "busy") == [{"w": "new", "v": 5}]
