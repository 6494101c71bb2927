"""The benchmarks' arithmetic: what is read from /proc, how values are summed up, how goals are judged and shown."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks import accounting, goals, ingest, lines, packages, queries, report, run, startup
from benchmarks.client import build
from benchmarks.ingest import Ingested, Load
from benchmarks.queries import Asked
from benchmarks.servers import SERVERS, InfluxDB, Runnel, VictoriaMetrics
from benchmarks.startup import Recovered, Started

if TYPE_CHECKING:
    from pathlib import Path

STAT = "{pid} ({name}) S 1 2 3 0 -1 4194304 100 200 0 0 {utime} {stime} {cutime} {cstime} 20 0 9 0 777 8 9\n"
MACHINE = {"cpu": "AMD EPYC", "cores": 2}


class FakeProc:
    """A /proc folder with the files that the accounting reads."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(self, pid: int, ticks: tuple[int, int, int, int], children: str = "", name: str = "server") -> None:
        folder = self.root / str(pid)
        (folder / "task" / str(pid)).mkdir(parents=True)
        utime, stime, cutime, cstime = ticks
        stat = STAT.format(pid=pid, name=name, utime=utime, stime=stime, cutime=cutime, cstime=cstime)
        (folder / "stat").write_text(stat)
        (folder / "status").write_text(f"Name:\t{name}\nVmHWM:\t  300 kB\nVmRSS:\t  200 kB\nThreads:\t9\n")
        (folder / "task" / str(pid) / "children").write_text(children)


@pytest.fixture
def proc(tmp_path: Path) -> FakeProc:
    return FakeProc(tmp_path)


class TestAccounting:
    def test_ticks_are_fields_14_to_17(self) -> None:
        assert accounting.cpu_ticks(STAT.format(pid=7, name="x", utime=1, stime=20, cutime=300, cstime=4000)) == 4321

    def test_a_name_may_hold_blanks_and_brackets(self) -> None:
        stat = STAT.format(pid=7, name="a) S 9 9 (b", utime=1, stime=2, cutime=3, cstime=4)
        assert accounting.cpu_ticks(stat) == 10

    def test_cpu_counts_living_children_and_dead_ones(self, proc: FakeProc) -> None:
        proc.add(10, (100, 50, 25, 25), children="11 12 ")
        proc.add(11, (10, 5, 0, 0), children="13")
        proc.add(12, (1, 1, 0, 0))
        proc.add(13, (3, 0, 0, 0))
        assert accounting.tree(10, proc.root) == [10, 11, 12, 13]
        assert accounting.cpu_seconds(10, proc.root) == 220 / accounting.TICKS_PER_SECOND

    def test_a_child_of_a_thread_that_is_not_the_first_counts(self, proc: FakeProc) -> None:
        proc.add(10, (1, 0, 0, 0))
        proc.add(30, (5, 0, 0, 0))
        (proc.root / "10/task/15").mkdir()
        (proc.root / "10/task/15/children").write_text("30 ")
        assert accounting.cpu_seconds(10, proc.root) == 6 / accounting.TICKS_PER_SECOND

    def test_a_child_that_has_gone_meanwhile_is_nothing(self, proc: FakeProc) -> None:
        proc.add(10, (4, 0, 0, 0), children="99")
        assert accounting.cpu_seconds(10, proc.root) == 4 / accounting.TICKS_PER_SECOND

    def test_memory_is_summed_over_the_tree_in_bytes(self, proc: FakeProc) -> None:
        proc.add(10, (0, 0, 0, 0), children="11")
        proc.add(11, (0, 0, 0, 0))
        assert accounting.memory(10, proc.root) == accounting.Memory(2 * 200 * 1024, 2 * 300 * 1024)

    def test_this_process_can_be_read_from_the_real_proc(self) -> None:
        assert accounting.cpu_seconds(os.getpid()) > 0
        now = accounting.memory(os.getpid())
        assert 1 << 20 < now.now_bytes <= now.peak_bytes

    @pytest.mark.parametrize(
        ("count", "share", "wanted"),
        [(1, 0.99, 1), (100, 0.50, 50), (100, 0.99, 99), (101, 0.99, 100), (4, 0.5, 2), (10, 0.0, 1), (10, 1.0, 10)],
    )
    def test_percentile_is_the_nearest_rank(self, count: int, share: float, wanted: float) -> None:
        assert accounting.percentile([float(value) for value in range(1, count + 1)], share) == wanted

    def test_median(self) -> None:
        assert accounting.median([9, 1, 5]) == 5
        assert accounting.median([1, 9, 5, 3]) == 4

    def test_nothing_has_neither_percentile_nor_median(self) -> None:
        with pytest.raises(ValueError, match="no values"):
            accounting.percentile([], 0.5)
        with pytest.raises(ValueError, match="no values"):
            accounting.median([])

    def test_per_million(self) -> None:
        assert accounting.per_million(0.8, 500_000) == pytest.approx(1.6)


class TestLines:
    @pytest.mark.parametrize("kind", ["cpu", "cpuf", "narrow", "messy"])
    def test_lines_are_the_same_however_they_are_cut(self, kind: str) -> None:
        assert b"".join(lines.bodies(kind, 250, 7)) == b"".join(lines.bodies(kind, 250, 250))

    def test_sizes_of_bodies(self) -> None:
        found = lines.bodies("cpu", 25, 10)
        assert [body.count(b"\n") for body in found] == [10, 10, 5]

    @pytest.mark.parametrize(("kind", "size"), [("cpu", 345), ("cpuf", 486), ("narrow", 60)])
    def test_lines_are_as_long_as_said(self, kind: str, size: int) -> None:
        assert len(b"".join(lines.bodies(kind, 10_000, 10_000))) / 10_000 == pytest.approx(size, abs=2)

    def test_a_cpu_line_has_ten_tags_and_ten_values(self) -> None:
        key, fields, stamp = lines.bodies("cpu", 1, 1)[0].decode().split()
        assert key.count(",") == 10
        assert len(fields.split(",")) == lines.VALUES_PER_LINE["cpu"]
        assert int(stamp) == lines.START_NS


class TestRequests:
    def test_a_request_is_ready_to_go_out(self) -> None:
        request = build("POST", "/write?db=b", b"abc", {"Content-Encoding": "gzip"})
        assert request.head == (
            b"POST /write?db=b HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 3\r\nContent-Encoding: gzip\r\n\r\n"
        )
        assert request.body == b"abc"

    def test_each_server_has_its_own_write_path(self, tmp_path: Path) -> None:
        def path(kind: str) -> bytes:
            (request,) = ingest.write_requests(SERVERS[kind](tmp_path), "b", [b"x"], compressed=False)
            return request.head.split()[1]

        assert path("runnel") == b"/api/v3/write_lp?db=b&precision=nanosecond"
        assert path("influxdb") == b"/write?db=b&precision=ns"
        assert path("victoria-metrics") == b"/write?precision=ns"

    def test_only_compressed_bodies_say_so(self, tmp_path: Path) -> None:
        (plain,) = ingest.write_requests(Runnel(tmp_path), "b", [b"x"], compressed=False)
        (small,) = ingest.write_requests(Runnel(tmp_path), "b", [b"x"], compressed=True)
        assert b"Content-Encoding" not in plain.head
        assert b"Content-Encoding: gzip" in small.head

    def test_statements_are_escaped(self, tmp_path: Path) -> None:
        path = Runnel(tmp_path).query_path("b", "SELECT 'a b' & c")
        assert path == "/api/v3/query_sql?db=b&q=SELECT+%27a+b%27+%26+c&format=json"

    def test_runnel_is_started_as_a_user_would(self, tmp_path: Path) -> None:
        server = Runnel(tmp_path)
        server.port = 4242
        command = server.command()
        assert command[1:] == ["start", "--data", str(tmp_path / "data"), "--http", "127.0.0.1:4242"]
        assert command[0].endswith("/runnel")

    def test_disk_of_influxdb_is_its_tsm_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        compacted = []
        monkeypatch.setattr(InfluxDB, "wait_quiet", lambda _, also: compacted.append(also()))
        shard = tmp_path / "data/data/b/autogen/1"
        shard.mkdir(parents=True)
        (shard / "1.tsm").write_bytes(b"1" * 10)
        (shard / "2.tsm").write_bytes(b"1" * 5)
        (shard / "index.tsi").write_bytes(b"1" * 100)
        assert InfluxDB(tmp_path).disk_bytes("b", "cpu") == 15
        (shard / "2.tsm").unlink()
        assert InfluxDB(tmp_path).disk_bytes("b", "cpu") == 10
        assert compacted == [False, True]
        assert VictoriaMetrics(tmp_path).rows("b", "cpu") is None


class TestLoads:
    def test_quick_keeps_every_connection_busy(self) -> None:
        for load in ingest.loads(quick=True):
            assert load.lines >= load.batch * load.connections
        assert sum(load.lines for load in ingest.loads(quick=True)) < sum(load.lines for load in ingest.LOADS) / 5

    def test_a_load_is_asked_for_by_name(self) -> None:
        assert len({load.name for load in ingest.LOADS}) == len(ingest.LOADS)
        assert {load.kind for load in ingest.LOADS} <= set(ingest.TABLES) & set(lines.VALUES_PER_LINE)

    def test_scaling_changes_lines_only(self) -> None:
        load = Load("x", "cpu", 1000, 10, 4, compressed=True, disk=True)
        assert load.scaled(5) == Load("x", "cpu", 200, 10, 4, compressed=True, disk=True)
        assert load.scaled(1000).lines == 40

    def test_rounds_become_medians(self) -> None:
        rows = [
            _ingested(cpu_at_rest=value, disk_bytes_per_value=disk) for value, disk in ((3, None), (1, 2.0), (2, 4.0))
        ]
        assert ingest.middle(rows).cpu_at_rest == 2
        assert ingest.middle(rows).disk_bytes_per_value == 3
        assert ingest.middle(rows[:1]).disk_bytes_per_value is None


class TestAnswers:
    COLUMNS = ("time", "hostname", "value")

    def test_both_shapes_become_the_same_rows(self) -> None:
        influx: dict[str, Any] = {
            "results": [
                {
                    "series": [
                        {"tags": {"hostname": "b"}, "columns": ["time", "value"], "values": [[1_500_000_000, 2]]},
                        {"tags": {"hostname": "a"}, "columns": ["time", "value"], "values": [[1_500_000_000, 1.5]]},
                    ]
                }
            ]
        }
        sql = [
            {"time": "1970-01-01T00:00:01.500", "hostname": "b", "value": 2.0},
            {"time": "1970-01-01T00:00:01.500", "hostname": "a", "value": 1.5},
        ]
        first, second = queries.influx_rows(influx, self.COLUMNS), queries.sql_rows(sql, self.COLUMNS)
        assert len(first) == 2
        queries.compare("q", sorted(first, key=str), sorted(second, key=str))

    def test_an_empty_answer_has_no_rows(self) -> None:
        assert queries.influx_rows({"results": [{"statement_id": 0}]}, self.COLUMNS) == []
        assert queries.sql_rows([], self.COLUMNS) == []

    def test_an_error_inside_a_200_is_an_error(self) -> None:
        with pytest.raises(RuntimeError, match="no such field"):
            queries.influx_rows({"results": [{"error": "no such field"}]}, self.COLUMNS)

    def test_different_answers_are_not_compared_by_time(self) -> None:
        with pytest.raises(queries.AnswersDiffer, match="1 rows against 2"):
            queries.compare("q", [(1, "a", 1.0)], [(1, "a", 1.0), (2, "a", 1.0)])
        with pytest.raises(queries.AnswersDiffer, match="against"):
            queries.compare("q", [(1, "a", 1.0)], [(1, "a", 1.1)])

    @pytest.mark.parametrize(
        ("value", "other", "equal"),
        [(1, 1.0, True), (0.1 + 0.2, 0.3, True), (1, 2, False), ("a", "a", True), ("1", 1, False), (None, None, True)],
    )
    def test_same(self, value: queries.Value, other: queries.Value, equal: bool) -> None:
        assert queries.same(value, other) is equal

    @pytest.mark.parametrize(
        ("text", "wanted"),
        [
            ("1970-01-01T00:00:00", 0),
            ("1970-01-01T00:00:01Z", 1_000_000_000),
            ("1970-01-01T00:00:01.000000001", 1_000_000_001),
            ("2025-11-20T00:00:00.5", lines.START_NS + 500_000_000),
        ],
    )
    def test_nanoseconds(self, text: str, wanted: int) -> None:
        assert queries.nanoseconds(text) == wanted

    def test_windows_lie_within_the_data(self) -> None:
        for count in (queries.LINES, queries.LINES_QUICK):
            hour, wide, end = queries.windows(count)
            last = lines.START_SECONDS + count // lines.HOSTS * lines.CPU_STEP_SECONDS
            assert hour[1] - hour[0] == 3600
            for first, after in (hour, wide):
                assert lines.START_SECONDS <= first < after <= last
            assert end < last
        assert queries.windows(queries.LINES)[1][1] - queries.windows(queries.LINES)[1][0] == 12 * 3600

    def test_the_suite_asks_both_sides_the_same_names(self) -> None:
        suite = queries.suite(queries.LINES)
        assert [query.name for query in suite] == [
            "single-groupby-1-1-1", "double-groupby-1", "high-cpu-all", "groupby-orderby-limit", "lastpoint",
        ]  # fmt: skip
        for query in suite:
            assert query.influxql.count("2025-11-2") == query.sql.count("2025-11-2")


class TestGoals:
    CPU = goals.GOALS[0]

    def judge(self, ours: float | None, influx: float | None, victoria: float | None) -> bool | None:
        names = {"runnel": ours, "influxdb": influx, "victoria-metrics": victoria}
        measured = {self.CPU.figure.format(server=name): value for name, value in names.items() if value is not None}
        return goals.judge(self.CPU, measured).met

    def test_all_bounds_must_hold(self) -> None:
        assert self.judge(1.6, 8.0, 4.0) is True
        assert self.judge(1.61, 10.0, 10.0) is False
        assert self.judge(1.6, 7.9, 4.0) is False
        assert self.judge(1.6, 8.0, 3.9) is False

    def test_what_was_not_measured_is_open(self) -> None:
        assert self.judge(None, 8.0, 4.0) is None
        assert self.judge(1.0, None, None) is None
        assert self.judge(2.0, None, None) is False
        assert self.judge(1.0, 4.9, None) is False

    def test_a_rate_is_bounded_from_below(self) -> None:
        goal = goals.Goal("x", "x/{server}", "MB/s", 300, at_least=True)
        assert goals.judge(goal, {"x/runnel": 301}).met is True
        assert goals.judge(goal, {"x/runnel": 299}).met is False

    def test_a_goal_without_bounds_is_reported_only(self) -> None:
        assert goals.judge(goals.Goal("x", "x/{server}", "B", None), {"x/runnel": 1}).met is None

    def test_ratio_says_how_many_times_ours_a_peer_takes(self) -> None:
        verdict = goals.judge(goals.Goal("x", "x/{server}", "s", 1), {"x/runnel": 2, "x/influxdb": 9})
        assert verdict.ratio("influxdb") == 4.5
        assert verdict.ratio("victoria-metrics") is None

    def test_queries_must_take_at_most_four_tenths(self) -> None:
        (goal,) = [each for each in goals.GOALS if each.load == "high-cpu-all"]
        influx = {goal.figure.format(server="influxdb"): 100.0}
        assert goals.judge(goal, influx | {goal.figure.format(server="runnel"): 40.0}).met is True
        assert goals.judge(goal, influx | {goal.figure.format(server="runnel"): 40.1}).met is False

    def test_a_whole_run_has_a_figure_for_every_goal(self) -> None:
        measured = goals.figures(*_everything())
        missing = [goal.load for goal in goals.GOALS if goals.judge(goal, measured).ours is None]
        assert missing == []

    def test_runnel_pays_for_its_files_and_peers_only_until_the_last_answer(self) -> None:
        ours = _ingested(server="runnel", cpu_acknowledged=1.0, cpu_at_rest=1.5)
        theirs = _ingested(server="influxdb", cpu_acknowledged=8.0, cpu_at_rest=9.0)
        measured = goals.figures([ours, theirs], [], None, [])
        assert (measured["ingest/cpu/runnel/cpu"], measured["ingest/cpu/influxdb/cpu"]) == (1.5, 8.0)


class TestReport:
    def test_tables_are_aligned_and_figures_stand_right(self) -> None:
        assert report.table(["load", "ms"], [["a", "1.5"], ["long", "-"]]) == (
            "| load |  ms |\n"
            "| ---- | --: |\n"
            "| a    | 1.5 |\n"
            "| long |   - |"
        )  # fmt: skip

    @pytest.mark.parametrize(
        ("value", "text"), [(None, "-"), (0.444, "0.44"), (12.34, "12.3"), (1234.4, "1234"), (0, "0.00")]
    )
    def test_number(self, value: float | None, text: str) -> None:
        assert report.number(value) == text

    def test_host_kind_names_the_kind_and_not_the_host(self) -> None:
        assert report.host_kind(MACHINE) == "2x-amd-epyc"
        intel = {"cpu": "Intel(R) Xeon(R) Platinum 8175M CPU @ 2.50GHz", "cores": 16}
        assert report.host_kind(intel) == "16x-intel-xeon-platinum-8175m"
        assert report.host_kind({"cpu": "AMD Ryzen 9 5950X 16-Core Processor", "cores": 32}) == "32x-amd-ryzen-9-5950x"

    def test_machine_says_what_figures_depend_on(self) -> None:
        about = report.machine()
        assert set(about) == {"cpu", "cores", "memory", "kernel", "python"}
        assert about["cores"] >= 1

    def test_goals_table_says_goal_figures_ratio_and_verdict(self) -> None:
        row = next(line for line in _report().markdown().splitlines() if line.startswith("| cpu, CPU s"))
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[2:] == ["<= 1.6, Influx >= 5x, VM >= 2.5x", "1.00", "8.00", "-", "8.00x", "-", "-"]

    def test_a_missed_goal_is_loud(self) -> None:
        slow = _report()
        slow.ingested = [_ingested(server="runnel", cpu_at_rest=9.0)]
        assert slow.markdown().splitlines().count("") > 3
        assert any(line.startswith("| cpu, CPU s") and " NO " in line for line in slow.markdown().splitlines())

    def test_both_files_are_stored_and_the_json_reads_back(self, tmp_path: Path) -> None:
        page = _report().store(tmp_path)
        assert page.name == "2025-11-20-2x-amd-epyc.md"
        kept = json.loads(page.with_suffix(".json").read_text())
        assert kept["versions"] == {"runnel": "abc"}
        assert len(kept["goals"]) == len(goals.GOALS)
        assert kept["goals"][0]["runnel"] == 1.0
        assert kept["recovery"][0]["megabytes_per_second"] == 300.0

    def test_quick_and_partial_runs_do_not_replace_whole_ones(self, tmp_path: Path) -> None:
        names = set()
        for quick in (False, True):
            for part in (False, True):
                each = _report()
                each.quick, each.partial = quick, part
                names.add(each.store(tmp_path).name)
        assert len(names) == 4

    def test_what_could_not_be_measured_is_named(self) -> None:
        broken = _report()
        broken.failures = ["queries: AnswersDiffer: 1 rows against 2"]
        assert "- queries: AnswersDiffer: 1 rows against 2" in broken.markdown()


class TestRun:
    def test_options(self) -> None:
        options = run.parse(["--only", "ingest,startup", "--quick", "--peers", "none", "--loads", "cpu, cpu gzip"])
        assert options.only == ("ingest", "startup")
        assert options.loads == ("cpu", "cpu gzip")
        assert (options.quick, options.peers, options.runnel) == (True, "none", True)

    def test_an_unknown_part_is_a_usage_error(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            run.parse(["--only", "ingest,nonsense"])
        assert ended.value.code == 2
        assert "choose from ingest,queries,startup" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("arguments", "whole"),
        [
            ([], True),
            (["--quick"], True),
            (["--peers", "none"], False),
            (["--loads", "cpu"], False),
            (["--only", "ingest"], False),
        ],
    )
    def test_only_a_whole_run_stands_for_its_commit(self, arguments: list[str], whole: bool) -> None:
        assert run.is_whole(run.parse(arguments)) is whole

    def test_a_part_that_fails_is_kept_and_the_next_one_runs(self, capsys: pytest.CaptureFixture[str]) -> None:
        found, done = _report(), []

        def fails() -> None:
            raise queries.AnswersDiffer("1 rows against 2")

        run.guarded(found, "queries", fails)
        run.guarded(found, "ingest cpu", lambda: done.append(1))
        assert found.failures == ["queries: AnswersDiffer: 1 rows against 2"]
        assert done == [1]
        assert "== ingest cpu" in capsys.readouterr().out

    def test_without_peers_nothing_is_fetched(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(packages, "_run", lambda *_: pytest.fail("something was fetched"))
        assert run.chosen_servers("none", True, _report()) == [Runnel]
        assert run.chosen_servers("none", False, _report()) == []


class TestPackages:
    def test_an_archive_that_is_there_is_unpacked_and_not_fetched(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "debs").mkdir()
        archive = tmp_path / "debs/influxdb_1.6.7_amd64.deb"
        archive.touch()
        asked = []

        def unpack(command: list[str], folder: Path | None = None) -> str:
            asked.append(command)
            program = packages.INFLUXDB.executable(tmp_path)
            program.parent.mkdir(parents=True)
            program.touch()
            return ""

        monkeypatch.setattr(packages, "_run", unpack)
        program = packages.ensure(packages.INFLUXDB, tmp_path)
        assert program == tmp_path / "influxdb/usr/bin/influxd"
        assert asked == [["dpkg", "-x", str(archive), str(tmp_path / "influxdb")]]
        assert packages.ensure(packages.INFLUXDB, tmp_path) == program
        assert len(asked) == 1

    def test_a_missing_tool_says_what_to_do(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(packages.PackageUnavailable, match="--peers none"):
            packages.ensure(packages.VICTORIA_METRICS, tmp_path)


class TestStartup:
    def test_the_longest_log_is_the_one_that_is_replayed(self, tmp_path: Path) -> None:
        for log, sizes in (("1", [10]), ("2", [100, 100, 50]), ("3", [])):
            folder = tmp_path / "store/logs" / log
            folder.mkdir(parents=True)
            for number, size in enumerate(sizes):
                (folder / f"{number:020d}").write_bytes(b"x" * size)
        assert startup.longest_log(tmp_path) == (3, 250)

    def test_rates_are_for_the_replay_alone(self) -> None:
        recovered = Recovered("x", 600, 600_000_000, 1, ready_seconds=4.0, replay_seconds=2.0)
        assert recovered.megabytes_per_second == 300
        assert recovered.objects_per_second == 300


def _ingested(**changes: Any) -> Ingested:
    values: dict[str, Any] = {
        "load": "cpu", "server": "runnel", "lines": 1000, "lines_per_second": 1e6, "cpu_acknowledged": 1.0,
        "cpu_at_rest": 1.0, "p50_ms": 1.0, "p99_ms": 2.0, "rss_bytes": 10**8, "rss_peak_bytes": 10**8,
        "disk_bytes_per_value": 0.4,
    }  # fmt: skip
    return Ingested(**(values | changes))


def _everything() -> tuple[list[Ingested], list[Asked], Started, list[Recovered]]:
    """What a whole run finds for Runnel."""
    asked = [Asked(query.name, "runnel", 1, 1.0, 2.0, 1.0) for query in queries.suite(queries.LINES)]
    recovered = [Recovered(name, 600, 600_000_000, 1, 4.0, 2.0) for name in ("1 MB objects", "small objects")]
    loads = [_ingested(load=load.name) for load in ingest.LOADS]
    return loads, asked, Started(2.0, 2.0, 200_000_000, 300_000_000), recovered


def _report() -> report.Report:
    loads, asked, started, recovered = _everything()
    peer = _ingested(server="influxdb", cpu_acknowledged=8.0)
    return report.Report(
        quick=False,
        machine=MACHINE,
        versions={"runnel": "abc"},
        begun=datetime(2025, 11, 20, 12, tzinfo=UTC),
        ingested=[*loads, peer],
        asked=asked,
        started=started,
        recovered=recovered,
    )
