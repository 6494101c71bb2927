"""One cluster of docker-compose.yml as a project of its own: bring it up, look at it, hurt it, take it away.

Driven by the tests in this folder. Everything that waits polls a condition with a deadline. Leaving it removes its
containers, networks and volumes, also after a failure, and a failure shows the end of every container's log.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from typing import TYPE_CHECKING, Any, Final, Self

from tests.compose.docker import compose_command, docker, run
from tests.harness.cluster import CLUSTER_PATH, View
from tests.harness.exchange import Reply, ask, query_path, write_path
from tests.harness.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

INGEST: Final = ("ingest-1", "ingest-2", "ingest-3")
QUERIES: Final = ("query-1", "query-2")
GATEWAYS: Final = ("gateway-1", "gateway-2")
NODES: Final = (*INGEST, *QUERIES, *GATEWAYS)
HTTP_PORT: Final = 8181
S3_PORT: Final = 5000
UP_SECONDS_MAX: Final = 300.0
SETTLE_SECONDS_MAX: Final = 120.0
POLL_SECONDS: Final = 0.2


class Stack:
    """Started by ``with``, which only names it; `up` starts its containers."""

    def __init__(self, project: str, **environment: str) -> None:
        self.project = project
        self.ports = {name: free_port() for name in (*GATEWAYS, "prometheus")}
        self.environment = {
            **os.environ,
            "COMPOSE_PROJECT_NAME": project,
            "COMPOSE_HTTP_TIMEOUT": "300",
            "RUNNEL_GATEWAY_1_PORT": str(self.ports["gateway-1"]),
            "RUNNEL_GATEWAY_2_PORT": str(self.ports["gateway-2"]),
            "PROMETHEUS_PORT": str(self.ports["prometheus"]),
            **environment,
        }

    def __enter__(self) -> Self:
        self.remove()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            error.add_note(self.tails())
        self.remove()

    # -- its life ---------------------------------------------------------------------------------------

    def compose(self, *arguments: str, seconds: float = UP_SECONDS_MAX) -> str:
        """A compose command of this project; every profile is known to it."""
        return run(*compose_command(), *arguments, environment=self.environment, seconds=seconds)

    def up(self, *services: str) -> float:
        """Start these services (all without a profile) and what they need, in order of health; seconds taken."""
        begun = time.monotonic()
        try:
            self.compose("up", "-d", "--no-build", *(services or NODES))
        except AssertionError as error:
            error.add_note(self.tails())
            raise
        return time.monotonic() - begun

    def remove(self) -> None:
        """Take away its containers, networks and volumes, however it was left."""
        mine = f"label=com.docker.compose.project={self.project}"
        containers = docker("ps", "-aq", "--filter", mine).split()
        for container in containers:
            docker("unpause", container, is_fine=True)
        if containers:
            docker("rm", "-f", *containers)
        for network in docker("network", "ls", "-q", "--filter", mine).split():
            docker("network", "rm", network)
        for volume in docker("volume", "ls", "-q", "--filter", mine).split():
            docker("volume", "rm", "-f", volume)

    def container(self, service: str) -> str:
        """The id of a service's container, running or not."""
        found = docker(
            "ps", "-aq",
            "--filter", f"label=com.docker.compose.project={self.project}",
            "--filter", f"label=com.docker.compose.service={service}",
        ).split()  # fmt: skip
        assert len(found) == 1, f"{service} has {len(found)} containers"
        return found[0]

    def inspect(self, service: str) -> dict[str, Any]:
        """What Docker knows of a service's container."""
        found: dict[str, Any] = json.loads(docker("inspect", self.container(service)))[0]
        return found

    def state(self, service: str) -> dict[str, Any]:
        found: dict[str, Any] = self.inspect(service)["State"]
        return found

    # -- faults -----------------------------------------------------------------------------------------

    def kill(self, service: str) -> None:
        """kill -9."""
        docker("kill", "-s", "KILL", self.container(service))

    def start(self, service: str) -> None:
        docker("start", self.container(service))

    @contextlib.contextmanager
    def paused(self, service: str) -> Iterator[None]:
        """Frozen while the block runs."""
        container = self.container(service)
        docker("pause", container)
        try:
            yield
        finally:
            docker("unpause", container)

    @contextlib.contextmanager
    def unplugged(self, service: str) -> Iterator[None]:
        """Off the network while the block runs; it comes back with its name."""
        container, network = self.container(service), f"{self.project}_default"
        docker("network", "disconnect", network, container)
        try:
            yield
        finally:
            # Without its alias the service's name would be gone.
            docker("network", "connect", "--alias", service, network, container)

    @contextlib.contextmanager
    def mute(self, service: str, towards: Sequence[str]) -> Iterator[None]:
        """One way: what ``service`` sends to the others is dropped while the block runs; it still hears them."""
        pid = str(self.state(service)["Pid"])
        rules = [("OUTPUT", "-d", self.address(other), "-j", "DROP") for other in towards if other != service]
        try:
            for rule in rules:
                run("nsenter", "-t", pid, "-n", "iptables", "-w", "-A", *rule)
            yield
        finally:
            for rule in rules:
                run("nsenter", "-t", pid, "-n", "iptables", "-w", "-D", *rule, is_fine=True)

    # -- looking ----------------------------------------------------------------------------------------

    def address(self, service: str) -> str:
        """Its address on the project's network."""
        networks = self.inspect(service)["NetworkSettings"]["Networks"]
        return str(networks[f"{self.project}_default"]["IPAddress"])

    def place(self, service: str) -> tuple[str, int]:
        """Where this machine reaches its HTTP: published for gateways, on the bridge for the others."""
        if service in self.ports:
            return ("127.0.0.1", self.ports[service])
        return (self.address(service), S3_PORT if service == "s3" else HTTP_PORT)

    def ask(self, service: str, method: str, path: str, body: bytes | None = None, seconds: float = 30.0) -> Reply:
        host, port = self.place(service)
        is_json = body is not None and body.startswith(b"{")
        headers = {"Content-Type": "application/json"} if is_json else {}
        return ask(host, port, method, path, body, headers, seconds=seconds)

    def write(self, gateway: str, lines: str, database: str = "db", seconds: float = 60.0) -> Reply:
        """Line protocol, with times in nanoseconds."""
        return self.ask(gateway, "POST", write_path(database), lines.encode(), seconds)

    def query(self, gateway: str, statement: str, database: str = "db", seconds: float = 60.0) -> list[dict[str, Any]]:
        """Rows; anything but 200 is an AssertionError."""
        reply = self.ask(gateway, "GET", query_path(statement, database), seconds=seconds)
        assert reply.status == 200, (gateway, statement, reply.status, reply.text[:800])
        rows: list[dict[str, Any]] = reply.json
        return rows

    def view(self, service: str) -> View | None:
        """What a node says of the cluster; None when it does not say."""
        reply = self.ask(service, "GET", CLUSTER_PATH, seconds=5)
        return View.of(reply.json) if reply.status == 200 else None

    def owners(self, service: str) -> Mapping[int, str]:
        """Shard -> owner, as this node sees it; nothing when it does not say."""
        view = self.view(service)
        return view.owners if view is not None else {}

    def wait(self, condition: Callable[[], str], what: str, seconds: float = SETTLE_SECONDS_MAX) -> float:
        """Poll until ``condition`` answers "" (nothing is missing); seconds waited, or an AssertionError."""
        begun = time.monotonic()
        while missing := condition():
            assert time.monotonic() - begun < seconds, f"not in {seconds:.0f} s: {what}: {missing}\n{self.tails()}"
            time.sleep(POLL_SECONDS)
        return time.monotonic() - begun

    def wait_settled(self, without: Sequence[str] = (), seconds: float = SETTLE_SECONDS_MAX) -> float:
        """Wait until all nodes but these are ready and agree who is there and who owns what."""
        return self.wait(lambda: self.unsettled(without), f"settled without {without}", seconds)

    def unsettled(self, without: Sequence[str] = ()) -> str:
        """What is missing to a settled cluster; "" when nothing is."""
        up = [name for name in NODES if name not in without]
        views: dict[str, View] = {}
        for name in up:
            if self.state(name)["Status"] != "running":
                return f"{name} is {self.state(name)['Status']}"
            ready = self.ask(name, "GET", "/health/ready", seconds=5)
            view = self.view(name) if ready.status == 200 else None
            if view is None:
                return f"{name} is not ready: {ready.status} {ready.text[:200]}"
            views[name] = view
        if len({view.placement for view in views.values()}) > 1:
            return f"placements differ: { {name: view.placement for name, view in views.items()} }"
        return next(filter(None, (_unsettled(name, view, up) for name, view in views.items())), "")

    def metrics(self, service: str) -> str:
        return self.ask(service, "GET", "/metrics").ok().text

    def log(self, service: str, lines: str = "all") -> str:
        """What its container wrote."""
        return run("sh", "-c", f"docker logs --tail {lines} {self.container(service)} 2>&1", seconds=60, is_fine=True)

    def lines(self, service: str) -> Iterator[dict[str, Any]]:
        """Its log lines that are JSON, of all its starts."""
        for line in self.log(service).splitlines():
            with contextlib.suppress(ValueError):
                found = json.loads(line)
                if isinstance(found, dict):
                    yield found

    def tails(self) -> str:
        """The end of every container's log."""
        parts = []
        for service in ("init", *NODES):
            with contextlib.suppress(AssertionError):
                parts.append(f"--- {service}\n{self.log(service, '15')[-3000:]}")
        return "\n".join(parts)


def _unsettled(name: str, view: View, up: Sequence[str]) -> str:
    """What is missing in one node's view."""
    ingest = [each for each in up if each in INGEST]
    if view.controller not in ingest:
        return f"{name} says that the controller is {view.controller!r}"
    strange = {shard: owner for shard, owner in view.owners.items() if owner not in ingest}
    if strange or not view.owners:
        return f"{name} says that shards are owned by {strange or 'nobody'}"
    for each in NODES:
        state = view.states.get(each, "unknown")
        if (each in up) != (state == "alive"):
            return f"{name} says that {each} is {state}"
    return ""
