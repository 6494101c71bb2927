# mypy: disallow-untyped-calls=false
"""InfluxData's own Python client, unchanged, against a real node: every way it has to write."""

from __future__ import annotations

import warnings
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from tests.harness.node import RunningNode

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import pandas as pd
    from influxdb_client_3 import InfluxDBClient3, Point, WriteOptions, write_client_options
    from influxdb_client_3.exceptions.exceptions import InfluxDBError
    from influxdb_client_3.write_client.client.write_api import SYNCHRONOUS

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    with RunningNode(tmp_path_factory.mktemp("node") / "data") as node:
        yield node
        assert node.stop() == 0
        assert node.alarms() == []


def client(node: RunningNode, database: str, **options: object) -> InfluxDBClient3:
    settings = write_client_options(write_options=SYNCHRONOUS)
    return InfluxDBClient3(
        host=node.url, token="any-token", database=database, write_client_options=settings, **options
    )


def test_points_lines_and_dictionaries_arrive(node: RunningNode) -> None:
    with client(node, "points") as influx:
        influx.write(Point("home").tag("room", "kitchen").field("t", 21.5).time(datetime(2026, 1, 1, tzinfo=UTC)))
        influx.write("home,room=bath t=19.5,wet=true 1767225601000000000")
        influx.write(
            [
                {
                    "measurement": "home",
                    "tags": {"room": "hall"},
                    "fields": {"t": 18.0, "n": 3},
                    "time": 1767225602000000000,
                }
            ]
        )
    rows = node.query("SELECT room, t, wet, n FROM home ORDER BY time", "points")
    assert rows == [
        {"room": "kitchen", "t": 21.5},
        {"room": "bath", "t": 19.5, "wet": True},
        {"room": "hall", "t": 18.0, "n": 3},
    ]


def test_a_data_frame_arrives(node: RunningNode) -> None:
    times = pd.date_range("2026-01-01", periods=500, freq="s", tz="UTC")
    frame = pd.DataFrame({"host": ["a", "b"] * 250, "load": range(500)}, index=times)
    with client(node, "frames") as influx:
        influx.write(frame, data_frame_measurement_name="cpu", data_frame_tag_columns=["host"])
    (row,) = node.query("SELECT count(*) AS n, sum(load) AS s FROM cpu WHERE host = 'a'", "frames")
    assert row == {"n": 250, "s": sum(range(0, 500, 2))}


def test_gzip_and_the_v3_endpoint_arrive(node: RunningNode) -> None:
    with client(node, "zipped", enable_gzip=True, write_use_v2_api=False) as influx:
        influx.write([f"m,k=k{i % 5} v={i}i {i}" for i in range(2000)])
    assert node.query("SELECT count(*) AS n FROM m", "zipped") == [{"n": 2000}]


def test_the_client_understands_our_errors(node: RunningNode) -> None:
    with client(node, "errors") as influx:
        influx.write("m v=1 1")
        with pytest.raises(InfluxDBError) as caught:
            influx.write('m v="text" 2')
    assert "invalid column type for column 'v'" in str(caught.value)
    assert node.query("SELECT count(*) AS n FROM m", "errors") == [{"n": 1}]


def test_batching_in_the_background_arrives(node: RunningNode) -> None:
    options = write_client_options(write_options=WriteOptions(batch_size=100, flush_interval=50))
    with InfluxDBClient3(host=node.url, token="t", database="batches", write_client_options=options) as influx:
        for i in range(1000):
            influx.write(f"m v={i}i {i}")
    assert node.query("SELECT count(*) AS n FROM m", "batches") == [{"n": 1000}]
