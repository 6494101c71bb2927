"""The demo's sample: whole, keyed without collisions, encoded exactly; and the queries that people paste."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest

from nodes.demo import lines, paste, sample
from nodes.demo.hostmetrics import HostMetrics
from nodes.demo.sample import SHAPES, Sample, Shape
from nodes.exitcodes import CommandFailed
from wire.lineprotocol import Precision, create_parser

if TYPE_CHECKING:
    from pathlib import Path

ROWS = {"airlines": 16, "airports": 1458, "planes": 3322, "weather": 26115, "flights": 336776}


@pytest.fixture(scope="module")
def samples() -> dict[str, Sample]:
    folder = sample.folder()
    return {shape.name: sample.read(shape, folder) for shape in SHAPES}


def test_the_sample_is_whole(samples: dict[str, Sample]) -> None:
    assert {name: one.rows.num_rows for name, one in samples.items()} == ROWS


@pytest.mark.parametrize("name", list(ROWS))
def test_no_two_rows_share_a_key(samples: dict[str, Sample], name: str) -> None:
    one = samples[name]
    keys = one.rows.group_by([*one.shape.tags, "time"]).aggregate([([], "count_all")])
    assert keys.num_rows == ROWS[name]


@pytest.mark.parametrize("name", list(ROWS))
def test_every_row_has_all_tags_and_some_field(samples: dict[str, Sample], name: str) -> None:
    one = samples[name]
    assert [tag for tag in one.shape.tags if one.rows[tag].null_count] == []
    assert [field for field in one.shape.fields if one.rows[field].null_count == 0] != []


def test_times_are_the_scheduled_departure_in_utc(samples: dict[str, Sample]) -> None:
    first = samples["flights"].rows.slice(0, 1).to_pylist()[0]
    assert (first["carrier"], first["flight"], first["sched_dep_time"]) == ("UA", "1545", 515)
    assert first["time"] == 1_357_035_300, "2013-01-01 05:15 in New York is 10:15 UTC"
    assert samples["weather"].rows["time"][0].as_py() == 1_357_020_000


def test_a_missing_package_or_file_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CommandFailed, match="another version"):
        sample.read(SHAPES[0], tmp_path)
    monkeypatch.setattr(sample, "PACKAGE", "nycflights_that_is_not_there")
    with pytest.raises(CommandFailed, match="pip install"):
        sample.folder()


def test_zipped_files(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "airlines.csv.zip", "w") as archive:
        archive.writestr("airlines.csv", "carrier,name\nXX,NA\nYY,Why\n")
    assert sample.read(SHAPES[0], tmp_path).rows["name"].to_pylist() == [None, "Why"]


def odd_sample() -> Sample:
    rows = pa.table(
        {
            "t": pa.chunked_array([["a b", "c,d"], ["e=f", None, "tail\\x"]]),
            "s": pa.chunked_array([['say "hi"', "back\\slash"], [None, "two\nlines", ""]]),
            "i": pa.chunked_array([pa.array([1, None, -3, 2**62, 5])]),
            "f": pa.chunked_array([pa.array([0.1, 1e300, None, -2.5e-7, 3.0])]),
            "time": pa.array([1, 2, 3, 4, 5]),
        }
    )
    return Sample(Shape("odd name", ("t",), ("s", "i", "f")), rows)


def test_encoding_of_odd_values() -> None:
    assert lines.encode(odd_sample()).to_pylist() == [
        'odd\\ name,t=a\\ b s="say \\"hi\\"",i=1i,f=0.1 1\n',
        'odd\\ name,t=c\\,d s="back\\\\slash",f=1e+300 2\n',
        "odd\\ name,t=e\\=f i=-3i 3\n",
        'odd\\ name s="two\nlines",i=4611686018427387904i,f=-2.5e-7 4\n',
        'odd\\ name,t=tail\\\\x s="",i=5i,f=3 5\n',
    ]


@pytest.mark.parametrize("lines_max", [1, 2, 3, 100])
def test_bodies_hold_every_line_once(lines_max: int) -> None:
    encoded = lines.encode(odd_sample())
    parts = list(lines.bodies(encoded, lines_max))
    assert b"".join(data for _, _, data in parts) == "".join(encoded.to_pylist()).encode()
    assert [first for first, _, _ in parts] == list(range(1, 6, lines_max))
    assert sum(count for _, count, _ in parts) == 5


@pytest.mark.parametrize("name", ["airlines", "airports", "planes"])
def test_the_parser_reads_back_what_was_encoded(samples: dict[str, Sample], name: str) -> None:
    one = samples[name]
    body = "".join(lines.encode(one).to_pylist()).encode()
    parsed = create_parser().parse([body], precision=Precision.SECOND, now_ns=0, known=lambda _: None)
    assert parsed.errors == []
    (table,) = parsed.tables
    assert table.rows == ROWS[name]
    assert (table.time // 10**9).tolist() == one.rows["time"].to_pylist()
    read = {column.name: column.values.cast(pa.string()) for column in table.tags}
    read |= {column.name: column.values for column in table.fields}
    assert set(read) == {*one.shape.tags, *one.shape.fields}
    for column, values in read.items():
        assert values.to_pylist() == one.rows[column].to_pylist(), column


def test_host_metrics_are_lines_with_one_time() -> None:
    metrics = HostMetrics("/")
    text = metrics.lines(1_700_000_000.5).decode()
    tables = {line.partition(",")[0] for line in text.splitlines()}
    assert tables == {"cpu", "mem", "disk", "net", "system"}
    assert {line.rpartition(" ")[2] for line in text.splitlines()} == {"1700000000500000000"}
    assert text.endswith("\n")


def test_pasted_queries_give_the_promised_shape(samples: dict[str, Sample]) -> None:
    from datafusion import SessionContext

    context = SessionContext()
    for name, one in samples.items():
        time = one.rows["time"].cast(pa.timestamp("s")).cast(pa.timestamp("ns"))
        rows = one.rows.set_column(one.rows.column_names.index("time"), "time", time)
        context.register_record_batches(name, [rows.to_batches()])
    for query in paste.QUERIES:
        result = context.sql(query.text).to_arrow_table()
        assert tuple(result.column_names) == query.columns, query.title
        assert result.num_rows == query.rows, query.title


def test_other_clients_name_the_server() -> None:
    assert paste.other_clients("http://h:1").count("http://h:1") == 3
