"""Settings: which source wins, what is refused and how, what never prints."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from nodes.exitcodes import ExitCode
from nodes.settings import FIELDS, Origin, Settings, SettingsError, environment_without, load
from nodes.settings_docs import markdown, shown, shown_json
from nodes.settings_kinds import Address, Secret, Voter

ROOT = Path(__file__).parents[3]


def toml(folder: Path, text: str) -> Path:
    path = folder / "runnel.toml"
    path.write_text(text)
    return path


def problems(
    config: Path | None = None, flags: dict[str, object] | None = None, environment: dict[str, str] | None = None
) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        load(config, flags, environment or {})
    assert caught.value.exit_code is ExitCode.CONFIG
    return caught.value.problems


def test_defaults() -> None:
    loaded = load(environment={})
    assert loaded.settings == Settings()
    assert loaded.origins == {}
    assert loaded.settings.http.listen == Address("127.0.0.1", 8181)
    assert loaded.settings.http.request_bytes_max == 10485760
    assert loaded.settings.query.timeout == 300
    assert loaded.settings.log.shards == 8
    assert loaded.settings.limits.tables_max is None


def test_flag_over_environment_over_file_over_default(tmp_path: Path) -> None:
    file = toml(
        tmp_path, '[http]\nlisten = "127.0.0.1:1"\nbody_seconds = 5\n[query]\ntimeout = "1 min"\n[log]\nshards = 3\n'
    )
    environment = {"RUNNEL_HTTP__LISTEN": "127.0.0.1:2", "RUNNEL_QUERY__TIMEOUT": "2 min"}
    loaded = load(file, {"http.listen": "127.0.0.1:3", "node.name": None}, environment)
    assert loaded.settings.http.listen.port == 3
    assert loaded.settings.query.timeout == 120
    assert loaded.settings.http.body_seconds == 5
    assert loaded.settings.log.shards == 3
    origins = {
        name: loaded.origin(FIELDS[name]) for name in ("http.listen", "query.timeout", "log.shards", "node.name")
    }
    assert origins == {
        "http.listen": Origin.FLAG,
        "query.timeout": Origin.ENVIRONMENT,
        "log.shards": Origin.FILE,
        "node.name": Origin.DEFAULT,
    }


def test_the_file_may_be_named_by_the_environment(tmp_path: Path) -> None:
    file = toml(tmp_path, "[log]\nshards = 2\n")
    assert load(environment={"RUNNEL_CONFIG": str(file)}).settings.log.shards == 2


@pytest.mark.parametrize("field", list(FIELDS.values()), ids=list(FIELDS))
def test_every_default_reads_back_as_it_is_shown(field: object) -> None:
    assert field in FIELDS.values()
    item = next(f for f in FIELDS.values() if f is field)
    if not item.is_secret:
        assert item.kind.read(item.kind.show(item.default)) == item.default


@pytest.mark.parametrize("field", list(FIELDS.values()), ids=list(FIELDS))
def test_every_field_is_declared_whole(field: object) -> None:
    item = next(f for f in FIELDS.values() if f is field)
    assert item.doc.endswith((".", "503", "504", "422")), "the meaning is a sentence"
    assert item.variable == f"RUNNEL_{item.section.upper()}__{item.key.upper()}"
    annotation = next(f for f in dataclasses.fields(getattr(Settings(), item.section)) if f.name == item.key)
    assert annotation.metadata["kind"] is item.kind


@pytest.mark.parametrize(
    ("name", "written", "value"),
    [
        ("http.request_bytes_max", "1 MB", 1_000_000),
        ("http.request_bytes_max", "2048", 2048),
        ("memory.budget", "auto", None),
        ("memory.budget", "1 GiB", 2**30),
        ("limits.tables_max", "none", None),
        ("limits.tables_max", "2000", 2000),
        ("log.group_min_interval", "0", 0),
        ("logs.level", "DEBUG", "debug"),
        ("memory.query_share", "0.25", 0.25),
        ("http.listen", "[::1]:0", Address("::1", 0)),
        ("http.listen", "localhost:99", Address("localhost", 99)),
        ("grpc.listen", "none", None),
        ("grpc.listen", "127.0.0.1:0", Address("127.0.0.1", 0)),
        ("cluster.join", "", ()),
        ("cluster.join", "none", ()),
        ("cluster.join", "a:1, [::1]:2", (Address("a", 1), Address("::1", 2))),
        ("raft.voters", "i1=a:1", (Voter("i1", Address("a", 1)),)),
        ("cluster.partitions_default", "auto", None),
        ("gossip.probe_timeout", "20ms", 0.02),
    ],
)
def test_values_in_the_environment(name: str, written: str, value: object) -> None:
    loaded = load(environment={FIELDS[name].variable: written})
    assert loaded.value(FIELDS[name]) == value


@pytest.mark.parametrize(
    ("name", "written", "says"),
    [
        ("http.request_bytes_max", "ten", "such as"),
        ("http.request_bytes_max", "1 B", "at least 1 KiB"),
        ("query.timeout", "soon", '"5 min"'),
        ("query.timeout", "0", "at least 1s"),
        ("log.shards", "0", "at least 1"),
        ("log.shards", "-2", "whole number"),
        ("log.shards", "2.5", "whole number"),
        ("logs.level", "chatty", '"debug", "info", "warning", "error"'),
        ("memory.query_share", "1.5", "between 0 and 1"),
        ("memory.query_share", "nan", "between 0 and 1"),
        ("http.listen", "8181", "HOST:PORT"),
        ("http.listen", ":8181", "HOST:PORT"),
        ("http.listen", "127.0.0.1:70000", "65535"),
        ("http.listen", "::1:80", "brackets"),
        ("auth.mode", "on", '"off"'),
        ("limits.tables_max", "many", '"none"'),
        ("cluster.join", "a:1,,b:2", "several with commas between"),
        ("cluster.join", "a:0", "port 0 reaches nobody"),
        ("raft.voters", "a:1", "NAME=HOST:PORT"),
        ("raft.voters", "=a:1", "the node's name is missing"),
        ("gossip.probe_interval", "1ms", "at least 10ms"),
    ],
)
def test_a_wrong_value_says_what_is_allowed(name: str, written: str, says: str) -> None:
    (problem,) = problems(environment={FIELDS[name].variable: written})
    assert problem.startswith(f"{name} = {written!r} in {FIELDS[name].variable}: ")
    assert says in problem


@pytest.mark.parametrize("written", ["true", "[1]", "1979-05-27"])
def test_toml_values_of_the_wrong_type(tmp_path: Path, written: str) -> None:
    (problem,) = problems(toml(tmp_path, f"[log]\nshards = {written}\n"))
    assert "log.shards" in problem
    assert "runnel.toml" in problem


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [
        ("RUNNEL_HTTP__LISTN", "http.listen"),
        ("RUNNEL_QUERRY__TIMEOUT", "query.timeout"),
        ("RUNNEL_HTTPS__LISTEN", "http.listen"),
        ("RUNNEL_STORE__BODY_SECONDS", "http.body_seconds"),
    ],
)
def test_an_unknown_name_is_an_error_with_the_nearest(variable: str, nearest: str) -> None:
    (problem,) = problems(environment={variable: "x"})
    assert "unknown setting" in problem
    assert variable in problem
    assert f"did you mean {nearest}?" in problem


def test_unknown_names_in_the_file(tmp_path: Path) -> None:
    found = problems(toml(tmp_path, 'listen = "x"\n[http]\nlisen = "127.0.0.1:1"\n'))
    assert len(found) == 2
    assert "outside a section" in found[0]
    assert "did you mean http.listen?" in found[1]


def test_lists_may_be_arrays_in_the_file(tmp_path: Path) -> None:
    file = toml(tmp_path, '[cluster]\njoin = ["a:1", "b:2"]\n[raft]\nvoters = ["i=a:1"]\n')
    loaded = load(file, environment={})
    assert [str(address) for address in loaded.settings.cluster.join] == ["a:1", "b:2"]
    assert shown_json(loaded)["raft.voters"] == {"value": ["i=a:1"], "origin": "file"}
    assert "cluster.join" in problems(toml(tmp_path, "[cluster]\njoin = [1]\n"))[0]


def test_all_problems_are_named_at_once(tmp_path: Path) -> None:
    file = toml(tmp_path, '[log]\nshards = "x"\nsharts = 1\n')
    assert len(problems(file, {"http.listen": "nowhere"}, {"RUNNEL_LOGS__LEVEL": "loud"})) == 4


def test_variables_that_are_no_settings_are_left_alone() -> None:
    environment = {"RUNNEL_PORT": "tcp://10.0.0.1:8181", "RUNNEL_SERVICE_HOST": "10.0.0.1", "PATH": "/bin"}
    assert load(environment=environment).origins == {}


def test_a_childs_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNEL_HTTP__LISTEN", "127.0.0.1:1")
    monkeypatch.setenv("RUNNEL_LOGS__LEVEL", "debug")
    environment = environment_without(["http.listen", "data.dir"])
    assert "RUNNEL_HTTP__LISTEN" not in environment
    assert environment["RUNNEL_LOGS__LEVEL"] == "debug"


def test_one_underscore_too_few_is_noticed() -> None:
    (problem,) = problems(environment={"RUNNEL_HTTP_LISTEN": "127.0.0.1:1"})
    assert "write RUNNEL_HTTP__LISTEN" in problem


def test_a_file_that_is_missing_or_broken(tmp_path: Path) -> None:
    assert "cannot read" in problems(tmp_path / "none.toml")[0]
    assert "not valid TOML" in problems(toml(tmp_path, "[http\n"))[0]
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    assert "not valid TOML" in problems(tmp_path / "binary.toml")[0]


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "[::]", "example.org"])
def test_listening_beyond_loopback_needs_the_word(host: str) -> None:
    (problem,) = problems(flags={"http.listen": f"{host}:8181"})
    assert 'auth.mode = "off"' in problem
    assert load(flags={"http.listen": f"{host}:8181"}, environment={"RUNNEL_AUTH__MODE": "off"}).origins


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "[::1]", "localhost"])
def test_loopback_needs_no_word(host: str) -> None:
    assert load(flags={"http.listen": f"{host}:0"}, environment={}).settings.http.listen.is_loopback


def test_values_that_contradict_each_other() -> None:
    assert "more than 0.9" in problems(environment={"RUNNEL_MEMORY__QUERY_SHARE": "0.6"})[0]
    assert "longer than query.timeout" in problems(environment={"RUNNEL_QUERY__TIMEOUT": "1h"})[0]
    assert "given together" in problems(environment={"RUNNEL_STORE__S3_ACCESS_KEY": "id"})[0]


SECRETS = {"RUNNEL_STORE__S3_ACCESS_KEY": "AKIAxyz", "RUNNEL_STORE__S3_SECRET_KEY": "hunter2-hunter2"}


def test_secrets_never_print() -> None:
    loaded = load(environment=SECRETS)
    assert loaded.settings.store.s3_secret_key.reveal() == "hunter2-hunter2"
    prints = [
        repr(loaded),
        str(loaded.settings),
        f"{loaded.settings.store.s3_secret_key}",
        json.dumps(shown_json(loaded)),
        " ".join(" ".join((field.name, value, origin)) for field, value, origin in shown(loaded)),
    ]
    assert not [text for text in prints if "hunter2" in text or "AKIA" in text]
    assert "********" in prints[2]


def test_a_secret_of_the_wrong_type_does_not_print_either(tmp_path: Path) -> None:
    (problem,) = problems(toml(tmp_path, "[store]\ns3_secret_key = 12345678\n"))
    assert "12345678" not in problem
    assert "store.s3_secret_key" in problem


def test_secrets_from_files(tmp_path: Path) -> None:
    for name, text in (("id", "AKIAxyz\n"), ("key", "hunter2\n")):
        (tmp_path / name).write_text(text)
    file = toml(tmp_path, f'[store]\ns3_access_key_file = "{tmp_path}/id"\n')
    loaded = load(file, environment={"RUNNEL_STORE__S3_SECRET_KEY_FILE": str(tmp_path / "key")})
    assert loaded.settings.store.s3_access_key == Secret("AKIAxyz")
    assert loaded.settings.store.s3_secret_key == Secret("hunter2")
    assert loaded.origin(FIELDS["store.s3_access_key"]) is Origin.FILE


def test_what_is_wrong_with_secret_files(tmp_path: Path) -> None:
    variable = "RUNNEL_STORE__S3_SECRET_KEY_FILE"
    assert "cannot read" in problems(environment={variable: str(tmp_path / "none")})[0]
    (tmp_path / "key").write_text("x")
    both = {variable: str(tmp_path / "key"), "RUNNEL_STORE__S3_SECRET_KEY": "y"}
    assert "given twice" in problems(environment=both)[0]
    assert "unknown setting" in problems(environment={"RUNNEL_HTTP__LISTEN_FILE": str(tmp_path / "key")})[0]


def test_a_weaker_source_gives_way_even_in_another_form(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from-file")
    file = toml(tmp_path, f'[store]\ns3_access_key = "a"\ns3_secret_key_file = "{tmp_path}/key"\n')
    loaded = load(file, environment={"RUNNEL_STORE__S3_SECRET_KEY": "from-env"})
    assert loaded.settings.store.s3_secret_key == Secret("from-env")


def test_derived_values(tmp_path: Path) -> None:
    settings = load(flags={"data.dir": str(tmp_path), "memory.budget": "100 MB"}, environment={}).settings
    assert settings.data_dir == tmp_path
    assert settings.store_url == str(tmp_path / "store")
    assert settings.spill_dir == tmp_path / "spill"
    assert settings.node_name
    budgets = settings.budgets()
    assert budgets.total_bytes == 100_000_000
    assert (budgets.memtable_bytes, budgets.query_bytes, budgets.waiting_bytes) == (40_000_000, 40_000_000, 10_000_000)
    assert load(flags={"store.url": "s3://b/p"}, environment={}).settings.store_url == "s3://b/p"


def test_the_budget_follows_what_the_machine_allows() -> None:
    assert Settings().budgets(limit_bytes=10 * 2**30).total_bytes == 3489660928
    assert Settings().budgets(limit_bytes=1).total_bytes == 96 * 2**20


def test_the_document_matches_the_code() -> None:
    written = (ROOT / "docs" / "settings.md").read_text()
    assert written == markdown(), "run: python -m nodes.settings --markdown > docs/settings.md"
    assert [name for name in FIELDS if f"`{name.partition('.')[2]}`" not in written] == []


def test_nothing_else_reads_the_environment() -> None:
    """Setting a variable for a native library (`os.environ.setdefault`) is not reading one."""
    reads = re.compile(r"os\.environ(?!\.setdefault\()|getenv\(")
    readers = [
        str(path.relative_to(ROOT))
        for package in ("cluster", "engine", "nodes", "storage", "wire")
        for path in (ROOT / package).rglob("*.py")
        if reads.search(path.read_text())
    ]
    assert readers == ["nodes/settings.py"]
