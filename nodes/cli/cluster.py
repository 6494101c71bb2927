"""`runnel cluster init|up|down|ps|logs|restart`: a whole cluster as processes of one machine.

Says what happens; `nodes.cli.localcluster` does it.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from cluster.members import Kind
from nodes.cli import localcluster
from nodes.cli.localcluster import LocalCluster, Sight, is_free, is_running, tail
from nodes.cli.localplan import HOST, Folder, LocalNode, Shape, Tls, plan, stop_order
from nodes.exitcodes import CommandFailed, ExitCode
from nodes.units import show_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from rich.table import Table

FOLDER_DEFAULT: Final = "runnel-cluster"
TAIL_LINES: Final = 20
FOLLOW_SECONDS: Final = 0.2
FOLLOW_BYTES: Final = 1 << 20


def init(folder: str, hosts: str) -> ExitCode:
    """Make the secret and the certificates that are not there yet, and say what to write into settings."""
    place = Folder(Path(folder).expanduser().absolute())
    made = _make_secret(place)
    from cluster.certificates import make_certificates

    files = make_certificates(place.tls, [host.strip() for host in hosts.split(",") if host.strip()])
    authority_key = files.ca.with_suffix(".key")
    sys.stdout.write(
        f"{'made' if made else 'kept'}   {place.secret}: the cluster's secret\n"
        f"ready  {files.ca}: the certificate authority; {authority_key.name} beside it signs more\n"
        f"ready  {files.cert}: a certificate for every node, and {files.key.name}\n\n"
        f"What each node needs ({authority_key.name} can stay here):\n\n"
        f'[cluster]\nsecret_file = "{place.secret}"\n\n'
        f'[tls]\nca = "{files.ca}"\ncert = "{files.cert}"\nkey = "{files.key}"\n'
    )
    return ExitCode.OK


def up(folder: str, given: Mapping[str, int | None], seconds: float) -> ExitCode:
    """Start what is down and wait until it is ready. 1 if something did not come up; the rest stays up then."""
    with LocalCluster(Path(folder), localcluster.MODULE) as cluster:
        names = _plan(cluster, given)
        tls = _prepare(cluster.folder)
        started = time.monotonic()
        for name in names:
            cluster.start(name, tls)
        with _progress(len(names)) as on_look:
            failed = cluster.wait_ready(names, seconds, on_look)
        if failed:
            _complain(cluster, failed, folder)
            return ExitCode.FAILURE
        sys.stdout.write(f"{_count(names)} up in {time.monotonic() - started:.1f} s\n")
        sys.stdout.write(_what_to_paste(cluster.nodes, folder))
    return ExitCode.OK


def down(folder: str, seconds: float) -> ExitCode:
    """Stop queries, gateways, then the ingest nodes one by one, so that each hands its shards to those that stay."""
    with LocalCluster(Path(folder)) as cluster:
        if not cluster.nodes:
            raise CommandFailed(cluster.missing)
        running = cluster.running()
        started = time.monotonic()
        for group in stop_order(running):
            names = " and ".join(node.name for node in group)
            _say(f"stopping {names}")
            for name in cluster.stop(group, seconds):
                _say(f"warning: {name} did not stop within {seconds:g} s and was killed; nothing acknowledged is lost")
    if not running:
        sys.stdout.write(f"nothing runs in {cluster.folder.root}\n")
        return ExitCode.OK
    took = time.monotonic() - started
    sys.stdout.write(f"{_count(running)} stopped after {took:.1f} s; the data stays in {cluster.folder.root}\n")
    return ExitCode.OK


def restart(folder: str, name: str, seconds: float) -> ExitCode:
    """Stop one node cleanly, if it runs, and start it again."""
    with LocalCluster(Path(folder), localcluster.MODULE) as cluster:
        node = cluster.node(name)
        if cluster.stop([node], seconds):
            _say(f"warning: {name} did not stop within {seconds:g} s and was killed; nothing acknowledged is lost")
        started = time.monotonic()
        cluster.start(name, _prepare(cluster.folder))
        with _progress(1) as on_look:
            failed = cluster.wait_ready([name], seconds, on_look)
        if failed:
            _complain(cluster, failed, folder)
            return ExitCode.FAILURE
    sys.stdout.write(f"{name} is up again after {time.monotonic() - started:.1f} s\n")
    return ExitCode.OK


def ps(folder: str, *, is_json: bool) -> ExitCode:
    """Every node: whether its process is there, whether it is ready, where it listens."""
    cluster = LocalCluster(Path(folder))
    sights = cluster.look()
    if is_json:
        rows = [_as_json(sight, cluster.folder) for sight in sights]
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return ExitCode.OK
    if not sights:
        raise CommandFailed(cluster.missing)
    from rich.console import Console

    Console(highlight=False).print(_table(sights))
    return ExitCode.OK


def logs(folder: str, name: str, lines: int, *, follow: bool) -> ExitCode:
    """The end of a node's log; with ``follow`` what it writes from now on, until Ctrl-C."""
    cluster = LocalCluster(Path(folder))
    path = cluster.folder.log(cluster.node(name).name)
    if not path.exists():
        raise CommandFailed(f"{name} has not been started yet")
    text, at = tail(path, lines)
    _raw(text)
    with contextlib.suppress(KeyboardInterrupt):
        while follow:
            with path.open("rb") as file:
                file.seek(at)
                text = file.read(FOLLOW_BYTES)
            at += len(text)
            _raw(text)
            if not text:
                time.sleep(FOLLOW_SECONDS)
    return ExitCode.OK


def _plan(cluster: LocalCluster, given: Mapping[str, int | None]) -> list[str]:
    """The names of the nodes to start. CommandFailed if all run already, or others than were asked for."""
    wanted = {key: value for key, value in given.items() if value is not None}
    old = cluster.shape or Shape()
    shape = msgspec.structs.replace(old, **wanted)
    running = cluster.running()
    if not running:
        cluster.adopt(shape, plan(shape, is_free))
        return [node.name for node in cluster.nodes]
    if shape != old:
        changed = ", ".join(f"--{key.replace('_', '-')}" for key in wanted if getattr(old, key) != wanted[key])
        raise CommandFailed(f"{_count(running)} up with another {changed}; stop them first: `runnel cluster down`")
    missing = [node.name for node in cluster.nodes if not is_running(node)]
    if not missing:
        raise CommandFailed(f"all {_count(running)} up already in {cluster.folder.root}; see `runnel cluster ps`")
    _say(f"{_count(running)} up already; starting {', '.join(missing)}")
    return missing


def _prepare(folder: Folder) -> Tls | None:
    """The secret, and the certificates if `init` made them: then the nodes of this cluster use TLS too."""
    _make_secret(folder)
    if not folder.tls.exists():
        return None
    from cluster.certificates import make_certificates

    files = make_certificates(folder.tls)
    return Tls(str(files.ca), str(files.cert), str(files.key))


def _make_secret(folder: Folder) -> bool:
    """True if it was not there. One that is there is checked."""
    from cluster.secret import make_secret, read_secret

    folder.root.mkdir(parents=True, exist_ok=True)
    if folder.secret.exists():
        read_secret(folder.secret)
        return False
    make_secret(folder.secret)
    return True


@contextlib.contextmanager
def _progress(count: int) -> Iterator[Callable[[dict[str, str]], None]]:
    """On a terminal: how many are ready, and what the first of the others says of itself."""
    if not sys.stderr.isatty():
        yield lambda _waiting: None
        return
    from rich.console import Console

    with Console(stderr=True, highlight=False).status("starting") as status:

        def show(waiting: dict[str, str]) -> None:
            if waiting:
                name, reason = next(iter(waiting.items()))
                status.update(f"{count - len(waiting)} of {count} ready; {name}: {reason[:60]}")

        yield show


def _complain(cluster: LocalCluster, failed: Mapping[str, str], folder: str) -> None:
    for name, reason in failed.items():
        end = cluster.log_end(name, TAIL_LINES) or "(it has written nothing yet)"
        _say(f"{name} did not come up: {reason}; the end of {cluster.folder.log(name)}:\n\n{end}\n")
    option = _option(folder)
    _say(f"`runnel cluster up{option}` starts what is down again, `runnel cluster down{option}` stops the rest")


def _what_to_paste(nodes: Sequence[LocalNode], folder: str) -> str:
    from nodes.cli.start import command

    gateways = [node for node in nodes if node.kind == Kind.GATEWAY.value]
    runnel, option = command(), _option(folder)
    ends = "".join(f"  {node.name}  http://{HOST}:{node.http}\n" for node in gateways)
    if not gateways:
        return f"\nThere is no gateway. The processes: {runnel} cluster ps{option}\n"
    first, last = gateways[0].http, gateways[-1].http
    return f"""
{ends}
  write    curl 'http://{HOST}:{first}/api/v3/write_lp?db=home' \\
                --data-binary 'room,name=kitchen celsius=21.5'
  read     curl -G 'http://{HOST}:{last}/api/v3/query_sql' --data-urlencode db=home \\
                --data-urlencode 'q=SELECT * FROM room'
  members  {runnel} cluster status --host http://{HOST}:{first}
  nodes    {runnel} cluster ps{option}
  stop     {runnel} cluster down{option}

"""  # noqa: S608 - text to read


def _option(folder: str) -> str:
    return "" if folder == FOLDER_DEFAULT else f" --dir {folder}"


def _count(nodes: Sequence[object]) -> str:
    return f"{len(nodes)} node{' is' if len(nodes) == 1 else 's are'}"


def _as_json(sight: Sight, folder: Folder) -> dict[str, object]:
    node = sight.node
    ports = {door: f"{HOST}:{port}" for door, port in _ports(node).items()}
    return {
        "name": node.name,
        "kind": node.kind,
        "pid": node.pid if sight.is_up else None,
        "up": sight.is_up,
        "ready": sight.is_ready,
        "reason": sight.reason,
        "addresses": ports,
        "uptime_seconds": sight.uptime_seconds,
        "log": str(folder.log(node.name)),
    }


def _ports(node: LocalNode) -> dict[str, int]:
    ports = {"http": node.http, "grpc": node.grpc, "gossip": node.gossip}
    return ports | ({"raft": node.raft} if node.raft else {})


def _table(sights: Sequence[Sight]) -> Table:
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("name", "kind", "pid", "state", "ready"):
        table.add_column(name, overflow="fold", justify="right" if name == "pid" else "left")
    for name in ("http", "grpc", "gossip", "raft", "uptime"):
        table.add_column(name, justify="right", no_wrap=True)
    for sight in sights:
        node, ports = sight.node, _ports(sight.node)
        state = "[green]up[/green]" if sight.is_up else "[red]down[/red]"
        ready = "yes" if sight.is_ready else (sight.reason if sight.is_up else "no")
        uptime = "" if sight.uptime_seconds is None else _rounded(sight.uptime_seconds)
        pid = str(node.pid) if sight.is_up else ""
        doors = [str(ports.get(door, "")) for door in ("http", "grpc", "gossip", "raft")]
        table.add_row(node.name, node.kind, pid, state, ready.replace("[", "\\["), *doors, uptime)
    return table


def _rounded(seconds: float) -> str:
    """Two units at most: ``42s``, ``3 min``, ``5h``."""
    for step, unit in ((86400, "d"), (3600, "h"), (60, " min")):
        if seconds >= 2 * step:
            return f"{int(seconds // step)}{unit}"
    return show_duration(round(seconds))


def _raw(text: bytes) -> None:
    sys.stdout.buffer.write(text)
    sys.stdout.flush()


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
