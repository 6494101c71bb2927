"""docker-compose.yml, deploy/ and the Dockerfile say only what the code knows: settings, flags, metrics, files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

import pytest
import typer
import yaml  # type: ignore[import-untyped]

from nodes.cli.app import app
from nodes.settings import FIELDS
from nodes.settings_kinds import SIZE
from nodes.settings_model import Settings
from tests.unit.deploy.dashboards import ROOT, expressions, metric_names, panels

NODE_KINDS: Final = ("gateway", "ingest", "query")
CHECKPOINT_SECONDS_MAX: Final = 60
"""`nodes.node`: how long the last checkpoints may take after the drain."""
VARIABLES: Final = {field.variable: field for field in FIELDS.values()}


def document(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text())


COMPOSE: Final = document("docker-compose.yml")
SERVICES: Final[dict[str, dict[str, Any]]] = COMPOSE["services"]
NODES: Final = {name: service for name, service in SERVICES.items() if service.get("command", [""])[0] in NODE_KINDS}


def default_of(text: str) -> str:
    """What compose makes of ``${NAME:-default}`` when NAME is not set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def environment(service: dict[str, Any]) -> dict[str, str]:
    return {name: default_of(str(value)) for name, value in service.get("environment", {}).items()}


def test_there_are_three_ingest_nodes_two_gateways_and_two_queries() -> None:
    assert (
        sorted(service["command"][0] for service in NODES.values()) == ["gateway"] * 2 + ["ingest"] * 3 + ["query"] * 2
    )


@pytest.mark.parametrize("name", NODES)
def test_every_setting_is_known_and_its_value_can_be_read(name: str) -> None:
    given = environment(NODES[name])
    assert {variable for variable in given if "__" in variable} <= set(VARIABLES)
    for variable, value in given.items():
        VARIABLES[variable].kind.read(value)


@pytest.mark.parametrize("name", NODES)
def test_a_node_is_called_like_its_service_and_reached_by_that_name(name: str) -> None:
    service, given = NODES[name], environment(NODES[name])
    assert service["command"][1:] == ["--name", name]
    assert given["RUNNEL_CLUSTER__ADVERTISE"] == name
    assert given["RUNNEL_AUTH__MODE"] == "off", "must be written out beyond loopback"
    own = {f"{name}={name}:7947"}
    votes = own <= set(given["RUNNEL_RAFT__VOTERS"].split(","))
    assert votes == (service["command"][0] == "ingest")


@pytest.mark.parametrize("name", [name for name, service in SERVICES.items() if "command" in service])
def test_every_command_and_flag_exists(name: str) -> None:
    words = SERVICES[name]["command"]
    if name == "prometheus":
        return
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        assert words[0] in command.commands, f"no command {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


def test_ports_are_published_on_loopback_only() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published
    assert all(str(port).startswith("127.0.0.1:") for port in published)


@pytest.mark.parametrize("name", NODES)
def test_a_node_has_time_to_drain_and_limits(name: str) -> None:
    service = NODES[name]
    drain = VARIABLES["RUNNEL_NODE__DRAIN_SECONDS"].kind.read(environment(service)["RUNNEL_NODE__DRAIN_SECONDS"])
    assert int(service["stop_grace_period"].removesuffix("s")) > drain + CHECKPOINT_SECONDS_MAX
    assert service["init"] is True
    assert service["restart"] == "unless-stopped"
    memory = default_of(service["mem_limit"])
    assert SIZE.read({"g": "1 GiB"}[memory[-1]]) * int(memory[:-1]) >= 512 * 2**20
    assert service["healthcheck"]["test"][:3] == ["CMD", "runnel", "health"]


def test_nodes_start_in_order_of_health() -> None:
    for service in NODES.values():
        needs = {name: need["condition"] for name, need in service["depends_on"].items()}
        assert needs.pop("init") == "service_completed_successfully"
        assert set(needs.values()) <= {"service_healthy"}
        kinds = {NODES[name]["command"][0] for name in needs}
        assert kinds == {"ingest": set(), "query": {"ingest"}, "gateway": {"ingest", "query"}}[service["command"][0]]


def test_every_volume_that_is_used_is_declared_and_each_node_has_its_own() -> None:
    used = [volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])]
    named = {name for name in used if not name.startswith(".")}
    assert named == set(COMPOSE["volumes"])
    for name in named - {"store", "trust"}:
        assert used.count(name) == 1
    for path in set(used) - named:
        assert (ROOT / path).exists(), path


def test_the_store_of_profile_s3_is_known_settings() -> None:
    lines = [line for line in (ROOT / "deploy/s3.env").read_text().splitlines() if line and not line.startswith("#")]
    names = {line.split("=")[0] for line in lines}
    assert names <= set(VARIABLES)
    assert names <= set(environment(NODES["ingest-1"])), "compose passes them on"


def test_the_image_has_what_a_role_needs() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert "USER runnel" in dockerfile
    assert 'ENTRYPOINT ["runnel"]' in dockerfile
    assert "STOPSIGNAL SIGTERM" in dockerfile
    # The legacy builder knows neither of these.
    assert "--mount" not in dockerfile
    assert "<<EOF" not in dockerfile
    for variable in re.findall(r"\bRUNNEL_\w+__\w+", dockerfile):
        assert variable in VARIABLES
    packages = re.search(r"packages = \[(.*)\]", (ROOT / "pyproject.toml").read_text())
    assert packages is not None
    for package in re.findall(r'"(\w+)"', packages[1]):
        assert f"COPY {package} {package}" in dockerfile, f"{package} is not in the image"


def test_everything_that_is_copied_is_in_the_build_context() -> None:
    kept = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"}
    for dockerfile in (ROOT / "Dockerfile", ROOT / "deploy/prometheus.Dockerfile"):
        for copied in re.findall(r"^COPY (?!--from)(.*) \S+$", dockerfile.read_text(), re.MULTILINE):
            for path in copied.split():
                assert (ROOT / path).exists()
                assert path.split("/")[0] in kept, f"{path} is left out by .dockerignore"


def test_prometheus_scrapes_every_node() -> None:
    jobs = document("deploy/prometheus.yml")["scrape_configs"]
    found = {
        target: group["labels"]["kind"]
        for job in jobs
        for group in job["static_configs"]
        for target in group["targets"]
    }
    port = Settings().http.listen.port
    assert found == {f"{name}:{port}": service["command"][0] for name, service in NODES.items()}


def test_the_dashboard_is_provisioned_and_well_formed() -> None:
    ids = [panel["id"] for panel in panels()]
    assert len(ids) == len(set(ids))
    source = document("deploy/grafana/datasources/prometheus.yml")["datasources"][0]
    assert {panel["datasource"]["uid"] for panel in panels()} == {source["uid"]}
    folder = document("deploy/grafana/dashboards.yml")["providers"][0]["options"]["path"]
    mounted = [volume.split(":")[1] for volume in SERVICES["grafana"]["volumes"]]
    assert folder in mounted
    assert all(expression.strip() for expression in expressions())


def test_the_dashboard_asks_for_metrics_that_docs_know() -> None:
    known = set(re.findall(r"^\| `(\w+)`", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE))
    histograms = {f"{name}{suffix}" for name in known for suffix in ("_bucket", "_sum", "_count")}
    assert metric_names() - {"up"} <= known | histograms


def test_json_is_written_as_it_is_kept() -> None:
    text = (ROOT / "deploy/grafana/dashboards/runnel.json").read_text()
    assert json.dumps(json.loads(text), indent=2) + "\n" == text


def test_nothing_names_a_machine_or_a_registry() -> None:
    paths = [ROOT / "Dockerfile", ROOT / "docker-compose.yml", ROOT / ".dockerignore"]
    paths += [path for path in (ROOT / "deploy").rglob("*") if path.is_file() and path.suffix != ".crt"]
    for path in paths:
        hosts = re.findall(r"https?://([\w.-]+)", path.read_text())
        assert set(hosts) <= {"127.0.0.1", "gateway-1", "prometheus", "s3"}, (path, hosts)


def test_scripts_can_be_run() -> None:
    for path in (Path(ROOT / "deploy/base-image.sh"),):
        assert path.stat().st_mode & 0o100


def test_the_settings_of_workers_are_known_and_their_values_can_be_read() -> None:
    services = document("docker-compose.ray.yml")["services"]
    for name in ("query-1", "query-2"):
        given = {key: value for key, value in environment(services[name]).items() if key.startswith("RUNNEL_")}
        assert given["RUNNEL_RAY__ADDRESS"] == environment(services[name])["RAY_HEAD"]
        for variable, value in given.items():
            VARIABLES[variable].kind.read(value)


def test_no_port_of_ray_is_published() -> None:
    services = document("docker-compose.ray.yml")["services"]
    assert {"ray-head", "ray-worker-1", "ray-worker-2"} <= set(services)
    assert not [name for name, service in services.items() if "ports" in service]
