"""Canonical keys and routing: the same row goes to the same partition, for ever (LOG L27, FORMAT F21, F22)."""

from __future__ import annotations

import dataclasses
import math
import struct
import subprocess
import sys
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.keys import (
    KeyValue,
    RowSeries,
    SeriesPlaces,
    TypeClass,
    canonical_key,
    encode_value,
    key_hash,
    place_of,
    route,
    row_keys,
    series_hashes,
)
from storage.schema import Column, Partition, Role, Table, TypeKind
from tests.harness.tables import make_rows, make_table

GOLDEN: list[tuple[KeyValue, bool, str, int]] = [
    # value, a timestamp?, the canonical key of column 7 in hex, its hash
    ("", False, "070000000100000000", 0xCE8CE4DFCB1454EF),
    ("a", False, "07000000010100000061", 0x00F251FE8650A06D),
    ("Zürich", False, "0700000001070000005ac3bc72696368", 0x37D1F772F2391890),
    ("\x00", False, "07000000010100000000", 0x62270439F03361E7),
    (0, False, "07000000020100000000", 0xDDF8C9EFD904E24F),
    (1, False, "07000000020100000001", 0xB8BA41330719C325),
    (-1, False, "070000000201000000ff", 0xB7BF618678E08F25),
    (127, False, "0700000002010000007f", 0xA5BCF4C57DB3FDB6),
    (128, False, "0700000002020000008000", 0x556BD69B3E79C0A5),
    (-128, False, "07000000020100000080", 0x9B2189CD234C86D7),
    (-129, False, "0700000002020000007fff", 0x474C7F690982DF70),
    (9223372036854775807, False, "070000000208000000ffffffffffffff7f", 0xB272686FF30C8F35),
    (-9223372036854775808, False, "0700000002080000000000000000000080", 0x3DC4FB25AAF480B6),
    (18446744073709551615, False, "070000000209000000ffffffffffffffff00", 0xE2EF06CC2EDD8C05),
    (0.0, False, "0700000003080000000000000000000000", 0x7CDD92D6D223B357),
    (1.5, False, "070000000308000000000000000000f83f", 0xD9F6A5424F9D3D95),
    (-2.25, False, "07000000030800000000000000000002c0", 0xC05AA79C53E56D45),
    (math.inf, False, "070000000308000000000000000000f07f", 0xE2B1C399E1A3D33C),
    (math.nan, False, "070000000308000000000000000000f87f", 0x89DDEE7FF8F9FB58),
    (True, False, "07000000040100000001", 0x7C1B1AE77807B278),
    (False, False, "07000000040100000000", 0x1AA8FE407FA9B928),
    (1700000000000000000, True, "07000000050800000000002a36fe9c9717", 0x66CB65BAC02E3643),
]


@pytest.mark.parametrize(("value", "timestamp", "key", "digest"), GOLDEN)
def test_f22_golden_keys(value: KeyValue, timestamp: bool, key: str, digest: int) -> None:
    kind, data = encode_value(value, timestamp=timestamp)
    whole = struct.pack("<IBI", 7, kind, len(data)) + data
    assert whole.hex() == key
    assert key_hash(whole) == digest
    if not timestamp:
        assert canonical_key([(7, value)]) == whole


def test_f22_golden_series() -> None:
    assert key_hash(b"") == 0x2D06800538D394C2
    assert canonical_key([(2, "a"), (3, None), (9, "é")]).hex() == "02000000010100000061090000000102000000c3a9"
    assert key_hash(canonical_key([(2, "a"), (9, "é")])) == 0x37BCA7D952F628DA


def test_every_type_class_has_a_golden_value() -> None:
    assert {encode_value(v, timestamp=t)[0] for v, t, _, _ in GOLDEN} == set(TypeClass)


@given(st.integers(-(2**63), 2**64 - 1))
def test_integers_are_shortest_and_come_back(value: int) -> None:
    data = encode_value(value)[1]
    assert int.from_bytes(data, "little", signed=True) == value
    assert len(data) == 1 or int.from_bytes(data[:-1], "little", signed=True) != value


def test_equal_values_have_equal_keys() -> None:
    assert encode_value(-0.0) == encode_value(0.0)
    assert (
        encode_value(math.nan)
        == encode_value(-math.nan)
        == encode_value(struct.unpack("<d", b"\1" * 6 + b"\xf0\x7f")[0])
    )
    assert len({encode_value(v) for v in (1, 1.0, True, "1")}) == 4  # types never mix
    assert len({encode_value(v) for v in (0.0, 5e-324, math.inf, -math.inf, math.nan)}) == 5


Series = list[tuple[int, str | None]]
SERIES = st.lists(st.tuples(st.integers(1, 4), st.text(max_size=3) | st.none()), max_size=4, unique_by=lambda p: p[0])


@given(SERIES.map(sorted), SERIES.map(sorted))
def test_different_series_have_different_keys(one: Series, other: Series) -> None:
    """No two sets of tags run together: ids and lengths stand in the key."""
    same = {p for p in one if p[1] is not None} == {p for p in other if p[1] is not None}
    assert (canonical_key(one) == canonical_key(other)) == same


TEXTS = st.lists(st.sampled_from([None, "", "a", "b", "ab", "é", "\0"]) | st.text(max_size=3), min_size=1, max_size=30)


@given(TEXTS, st.booleans(), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_l27_a_hash_depends_on_the_series_alone(hosts: list[str | None], second: bool, random: object) -> None:
    """Not on the form of the batch, nor on the other rows in it."""
    table = make_table()
    rows = make_rows(range(len(hosts)), hosts)
    expected = [key_hash(canonical_key([(2, host)])) for host in hosts]
    plain = pa.RecordBatch.from_pydict({"time": rows.column("time"), "host": pa.array(hosts, pa.string())})
    null = plain.append_column("r_gion_3", pa.nulls(len(hosts), pa.string()))
    repeated = pa.DictionaryArray.from_arrays(pa.array(range(len(hosts)), pa.int32()), pa.array(hosts, pa.string()))
    again = pa.RecordBatch.from_pydict({"host": repeated})
    for batch in (rows, plain, null, again):
        assert series_hashes(table.tags, batch).tolist() == expected
        assert series_hashes(table.tags, batch.slice(1)).tolist() == expected[1:]


@given(
    st.lists(
        st.tuples(st.sampled_from([None, "", "a", "ü"]), st.sampled_from([None, "x", "y"])), min_size=1, max_size=8
    )
)
@settings(deadline=None)
def test_f22_rows_have_the_keys_of_their_series_and_their_hashes(tags: list[tuple[str | None, str | None]]) -> None:
    """In any order: rows that do not stand in it only make more pieces."""
    table = make_table()
    rows = make_rows(range(len(tags)), [host for host, _ in tags])
    regions = pa.array([region for _, region in tags], pa.string()).dictionary_encode()
    rows = rows.append_column("r_gion_3", regions)
    found = row_keys(table, rows, len(tags))
    assert found is not None
    hashes, keys = found
    assert keys.to_pylist() == [canonical_key([(2, host), (3, region)]) for host, region in tags]
    assert hashes.to_pylist() == series_hashes(table.tags, rows).view(np.int64).tolist()


def test_keys_are_not_made_where_they_would_not_help() -> None:
    table, rows = make_table(), make_rows(range(4), ["a", "a", "b", "c"])
    assert row_keys(table, rows, 3) is not None
    assert row_keys(table, rows, 2) is None, "too many series"
    assert row_keys(table, rows.slice(0, 0), 3) is None
    one_tag = dataclasses.replace(table, columns=tuple(c for c in table.columns if c.name != "région"))
    assert row_keys(one_tag, rows, 3) is None, "its tag says as much"
    untagged = row_keys(table, rows.drop_columns(["host"]), 1)
    assert untagged is not None
    assert untagged[1].to_pylist() == [b""] * 4


def test_rows_without_tags_are_one_series() -> None:
    rows = make_rows([1, 2], ["a", "b"]).select(["time", "f"])
    assert series_hashes(make_table().tags, rows).tolist() == [key_hash(b"")] * 2


@given(TEXTS, st.integers(1, 7))
@settings(deadline=None)
def test_f21_routing_is_a_partition_of_the_rows_in_their_order(hosts: list[str | None], partitions: int) -> None:
    table = make_table(partitions=partitions)
    rows = make_rows(range(len(hosts)), hosts)
    hashes = series_hashes(table.tags, rows)
    seen: list[int] = []
    for partition, part in route(table, rows):
        numbers = part.column("time").cast(pa.int64()).to_pylist()
        assert numbers == sorted(numbers)
        assert part.equals(rows.take(pa.array(numbers))) or part.to_pydict() == rows.take(pa.array(numbers)).to_pydict()
        assert all(partition.hash_low <= int(hashes[n]) < partition.hash_high for n in numbers)
        seen.extend(numbers)
    assert sorted(seen) == list(range(len(hosts)))


def test_a_batch_that_goes_to_one_partition_is_not_copied() -> None:
    rows = make_rows([1, 2], ["a", "a"])
    ((_, part),) = route(make_table(partitions=4), rows)
    assert part is rows


def test_l27_another_process_routes_the_same() -> None:
    """Never Python's own hash, which every process salts anew."""
    code = (
        "from tests.harness.tables import make_rows, make_table\n"
        "from storage.keys import series_hashes\n"
        "print(series_hashes(make_table().tags, make_rows(range(3), ['a', 'b', None])).tolist())\n"
    )
    runs = set()
    for salt in ("1", "2"):
        environment = {"PYTHONHASHSEED": salt}
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
        runs.add(run.stdout)
    here = series_hashes(make_table().tags, make_rows(range(3), ["a", "b", None])).tolist()
    assert runs == {f"{here}\n"}


def test_hashes_fill_the_range_evenly() -> None:
    table = make_table(partitions=8)
    hosts = [f"host-{n}" for n in range(4000)]
    sizes = [part.num_rows for _, part in route(table, make_rows(range(4000), hosts))]
    assert len(sizes) == 8
    assert np.ptp(sizes) < 150


# -- by the numbers of series ------------------------------------------------------------------------------

HOSTS = st.lists(st.sampled_from([None, "a", "b", "c", "dd", "é", ""]), max_size=25)


def widened(table: Table, ids: list[int]) -> Table:
    """The table with more tags."""
    more = [Column(i, f"x{i}", f"x{i}", Role.TAG, TypeKind.STRING) for i in ids]
    return dataclasses.replace(table, columns=(*table.columns, *more), version=table.version + 1)


def same_parts(one: list[tuple[Partition, pa.RecordBatch]], other: list[tuple[Partition, pa.RecordBatch]]) -> bool:
    return [p for p, _ in one] == [p for p, _ in other] and all(
        a.to_pydict() == b.to_pydict() for (_, a), (_, b) in zip(one, other, strict=True)
    )


@given(st.lists(st.tuples(HOSTS, st.integers(0, 2)), min_size=1, max_size=6), st.integers(2, 6), st.booleans())
@settings(deadline=None)
def test_l27_routing_by_series_numbers_is_routing_by_canonical_keys(
    batches: list[tuple[list[str | None], int]], partitions: int, share: bool
) -> None:
    """Whatever came before: new series, new tags, a map that changed."""
    places, numbers = SeriesPlaces(), dict[str | None, int]()
    table = make_table(partitions=partitions)
    for index, (hosts, event) in enumerate(batches):
        if event == 1:
            table = widened(table, [100 + index])
        elif event == 2:
            table = dataclasses.replace(table, partitions=make_table(partitions=partitions + index).partitions[::-1])
        rows = make_rows(range(len(hosts)), hosts)
        series = np.array([numbers.setdefault(host, len(numbers)) for host in hosts], np.int32)
        expected = list(route(table, rows))
        assert same_parts(list(route(table, rows, RowSeries(series, places), share=share)), expected)
        assert sum(part.num_rows for _, part in expected) == len(hosts)


def test_each_series_is_hashed_once() -> None:
    table, places = make_table(partitions=3), SeriesPlaces()
    rows = make_rows(range(6), ["a", "b", "a", "c", "b", "a"])
    series = RowSeries(np.array([0, 1, 0, 2, 1, 0], np.int32), places)
    with mock.patch("storage.keys.key_hash", side_effect=key_hash) as hashed:
        for _ in range(3):
            list(route(table, rows, series))
        assert hashed.call_count == 3
        split = dataclasses.replace(table, partitions=make_table(partitions=5).partitions)
        assert same_parts(list(route(split, rows, series)), list(route(split, rows, series)))
        assert hashed.call_count == 3, "a map that changed changes places, not hashes"


def test_a_tag_that_is_another_column_now_is_another_key() -> None:
    """Names may change, ids do not: what was hashed under the old ids is forgotten."""
    table, places = make_table(partitions=4), SeriesPlaces()
    rows = make_rows(range(40), [f"h{n}" for n in range(40)])
    series = RowSeries(np.arange(40, dtype=np.int32), places)
    list(route(table, rows, series))
    columns = tuple(dataclasses.replace(c, id=c.id + 50) if c.role is Role.TAG else c for c in table.columns)
    other = dataclasses.replace(table, columns=columns, version=2)
    assert same_parts(list(route(other, rows, series)), list(route(other, rows)))
    assert not same_parts(list(route(other, rows)), list(route(table, rows)))


def test_f21_every_hash_has_a_place_also_at_the_bounds() -> None:
    for partitions in (1, 2, 3, 7, 64):
        ranges = make_table(partitions=partitions).partitions
        bounds = sorted({h for p in ranges for h in (p.hash_low, p.hash_high - 1)})
        found = place_of(ranges, np.array(bounds, np.uint64)).tolist()
        assert [ranges[at].hash_low <= h < ranges[at].hash_high for at, h in zip(found, bounds, strict=True)]
        assert set(found) == set(range(partitions))


def test_parts_that_share_are_slices_and_others_hold_their_own_rows_only() -> None:
    table = make_table(partitions=4)
    rows = make_rows(range(4000), [f"h{n}" for n in range(4000)])
    whole = sum(part.get_total_buffer_size() for _, part in route(table, rows, share=True))
    own = sum(part.get_total_buffer_size() for _, part in route(table, rows))
    assert whole > 2 * own
    assert same_parts(list(route(table, rows, share=True)), list(route(table, rows)))
