"""Rounds of faults against a whole cluster under load, each followed by every check there is.

``python -m tests.chaos.cluster_rounds --rounds 20 --seed 7`` (``make chaos``). In each round clients write, rewrite and
read through all gateways, a seeded nemesis strikes, everything heals and settles, and `tests.chaos.checkers` judge.
It prints its seed, a summary, and the command that does the same again; the exit code is 1 when something did not
hold, and the folder with every log and the store is kept.
"""

from __future__ import annotations

import argparse
import random
import shlex
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.chaos import checkers, clients, deleter
from tests.chaos.clients import Client, Pulser, Reader, SchemaClient, Watcher, Writer, seconds_until_pulse
from tests.chaos.deleter import Deleter
from tests.chaos.eager_node import merges
from tests.chaos.history import UNCERTAIN, Found, History, KeyState, Outcome, Row, Sent
from tests.chaos.logobjects import LogArchive
from tests.chaos.nemesis import Nemesis, chosen_faults
from tests.harness.cluster import Cluster
from tests.harness.logscan import UNDER_FAULTS, summary
from tests.harness.netns import NetnsNetwork, unavailable
from tests.harness.networks import Loopback, Network

if TYPE_CHECKING:
    from collections.abc import Sequence

WRITERS: Final = 3
READERS: Final = 2
SCHEMA_CLIENTS: Final = 2
ROUNDS_PER_DATABASE: Final = 10
"""Then a new one, so that checks do not grow for ever."""
DELETER_BATCHES: Final = 10_000
"""More than a client makes in a round: each of them begins with a batch of its own."""
CLIENT_SECONDS_MAX: Final = 60.0
SERVES_SECONDS_MAX: Final = 60.0
FAULTY_MODULE: Final = "tests.chaos.faulty_cluster_node"
EAGER_MODULE: Final = "tests.chaos.eager_node"
ENVIRONMENT: Final = {
    "RUNNEL_LOG__CHECKPOINT_OBJECTS": "60",
    "RUNNEL_LOG__CHECKPOINT_AGE": "5s",
    "RUNNEL_LOG__COLLECT_GRACE": "20s",
    "RUNNEL_QUERY__TIMEOUT": "15s",
    "RUNNEL_VIEWS__REFRESH_EVERY": "1s",
}


@dataclass(slots=True)
class Plan:
    """What the command line asked for. ``module`` runs the nodes; None: the one that the faults need."""

    rounds: int
    seed: int
    seconds: float
    faults: Sequence[str]
    namespaces: bool = False
    fast: bool = True
    secure: bool = False
    ingest: int = 3
    gateways: int = 2
    queries: int = 2
    module: str | None = None

    @property
    def hurts_store(self) -> bool:
        return any(fault.startswith("store") for fault in self.faults)

    def replay(self) -> str:
        """The command that does the same again."""
        words = [sys.executable, "-m", "tests.chaos.cluster_rounds", "--rounds", str(self.rounds), "--seed"]
        words += [str(self.seed), "--seconds-per-round", f"{self.seconds:g}"]
        words += ["--network", "netns" if self.namespaces else "none", "--faults", ",".join(self.faults)]
        words += ["--secure"] * self.secure + ["--slow-probes"] * (not self.fast)
        return shlex.join(words)


@dataclass(slots=True)
class Findings:
    """What a run found. ``fail_overs``: seconds until all shards acknowledged again, by fault."""

    violations: list[str] = field(default_factory=list)
    fired: Counter[str] = field(default_factory=Counter)
    fail_overs: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    answers: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    read_backs: int = 0
    changes: int = 0
    views: int = 0
    schema_calls: int = 0
    objects: int = 0
    rounds: int = 0
    alarms: list[str] = field(default_factory=list)
    merges: int = 0

    def table(self) -> str:
        """The summary."""
        rows = [
            ("rounds", str(self.rounds)),
            ("rows standing", str(self.rows)),
            *((outcome.value, str(self.outcomes[outcome])) for outcome in Outcome),
            ("writes read back", str(self.read_backs)),
            ("deletes and updates", str(self.changes)),
            ("answers of a view", str(self.views)),
            ("schema calls", str(self.schema_calls)),
            ("Log objects read", str(self.objects)),
            ("merges of files", str(self.merges)),
            ("faults", ", ".join(f"{kind} {count}" for kind, count in sorted(self.fired.items())) or "none"),
        ]
        for kind, seconds in sorted(self.fail_overs.items()):
            ordered = sorted(seconds)
            told = f"p50 {ordered[len(ordered) // 2]:.1f} s, max {ordered[-1]:.1f} s of {len(ordered)}"
            rows.append((f"fail-over, {kind}", told))
        rows.append(("answers", ", ".join(f"{what}: {count}" for what, count in sorted(self.answers.items()))))
        rows += [("alarm", alarm) for alarm in self.alarms[:20]]
        rows += [("VIOLATION", violation) for violation in self.violations]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows)


class Run:
    """One cluster, many rounds."""

    def __init__(self, plan: Plan, folder: Path, cluster: Cluster) -> None:
        self.plan, self.folder, self.cluster = plan, folder, cluster
        self.random = random.Random(plan.seed)
        self.nemesis = Nemesis(cluster, self.random, folder / "control.json", folder / "reports")
        self.findings = Findings()
        self.history = History()
        self.archive = LogArchive(folder / "store")
        self.stood: set[Row] = set()
        self.revisions: list[tuple[str, int]] = []
        self.at = [0] * WRITERS
        self.deck: list[str] = []

    def rounds(self) -> Findings:
        """All rounds, until one finds a violation."""
        for number in range(self.plan.rounds):
            if number % ROUNDS_PER_DATABASE == 0:
                self._close_history()
                self.history, self.stood = History(), set()
            self.findings.rounds = number + 1
            begun = time.monotonic()
            self._round(number)
            self._judge(number)
            print(f"round {number + 1}: {time.monotonic() - begun:.1f} s, {len(self.stood)} rows stand", flush=True)
            if self.findings.violations:
                break
        self._close_history()
        self._judge_run()
        return self.findings

    def _round(self, number: int) -> None:
        working = self._clients(number)
        for client in working:
            client.start()
        try:
            self._wait_busy(working)
            for _ in range(self.random.choice((1, 1, 2))):
                self.nemesis.strike(self._next_fault())
                time.sleep(self.random.uniform(0.0, self.plan.seconds / 4))
            time.sleep(self.plan.seconds / 4)
            self.nemesis.heal()
            self.cluster.wait_settled()
            self._wait_serves()
        finally:
            for client in working:
                client.stopping.set()
            for client in working:
                client.join(CLIENT_SECONDS_MAX)
        stuck = [client.name for client in working if client.is_alive()]
        self.history.violated([f"client {name} is stuck" for name in stuck])
        self.at = [client.next for client in working if isinstance(client, Writer)]

    def _next_fault(self) -> str:
        """Every fault once, in random order, before any comes again."""
        if not self.deck:
            self.deck = list(self.plan.faults)
            self.random.shuffle(self.deck)
        return self.deck.pop()

    @property
    def database(self) -> str:
        return f"db{(self.findings.rounds - 1) // ROUNDS_PER_DATABASE}"

    def _clients(self, number: int) -> list[Client]:
        seed, common = self.plan.seed * 10_000 + number, (self.cluster, self.history, self.database)
        found: list[Client] = [Writer(i, *common, seed, self.at[i]) for i in range(WRITERS)]
        found += [Reader(number * 100 + 10 + i, *common, seed) for i in range(READERS)]
        found += [SchemaClient(20 + i, *common, seed) for i in range(SCHEMA_CLIENTS)]
        found.append(Deleter(40, *common, seed, start=number * DELETER_BATCHES))
        return [*found, Watcher(30, *common, seed), Pulser(31, *common, seed)]

    def _wait_busy(self, working: Sequence[Client]) -> None:
        """Faults before the first acknowledgements would show nothing."""
        writers = [client for client in working if isinstance(client, Writer)]
        self.cluster.wait(lambda: "" if all(w.done > 3 for w in writers) else "writers wait", "clients are busy", 30)
        begun = len(self.history.pulses)
        self.cluster.wait(lambda: "" if len(self.history.pulses) > begun else "no pulse", "a pulse came through", 30)

    def _wait_serves(self) -> None:
        """After healing, a body for all shards must be acknowledged in time."""
        healed = time.monotonic()
        self.cluster.wait(
            lambda: "" if seconds_until_pulse(list(self.history.pulses), healed) else "no pulse is acknowledged",
            "all shards acknowledge again",
            SERVES_SECONDS_MAX,
        )
        for strike in self.nemesis.strikes:
            seconds = seconds_until_pulse(self.history.pulses, strike.at)
            if strike.is_fail_over and seconds is not None:
                self.findings.fail_overs[strike.kind].append(seconds)
        self.nemesis.strikes.clear()

    # -- judging ----------------------------------------------------------------------------------------

    def _judge(self, number: int) -> None:
        found = self._read_rows()
        self.history.violated(checkers.rows_exactly_once(self.history.rows, found))
        standing = {each.row for each in found}
        self.history.violated(checkers.stands_for_ever(self.stood, standing))
        for row in standing:  # it stood once, so it must stand for ever
            self.history.rows[row] = Sent(self.history.rows[row].value, Outcome.ACKNOWLEDGED)
        self.stood = standing
        self.history.violated(checkers.keys_newest(self.history.keys, self._read_keys()))
        self.history.violated(checkers.changes_hold(self.history.deletes, self._read_changed()))
        self.history.violated(self._judge_view())
        self.history.violated(checkers.never_back(self.history.seen))
        self.revisions += self.history.revisions
        self.history.violated(checkers.revisions_never_back(self.revisions))
        self.history.violated(checkers.schema_linearizable(self.history.schema))
        self.findings.objects = self.archive.gather()
        self.history.violated(checkers.epochs_never_interleave(self.archive.facts.values()))
        self.history.violated(checkers.offsets_without_gap(self.archive.all_entries()))
        self.history.violated(checkers.write_ids_once(self.archive.all_entries()))
        self.findings.violations += self.history.violations + self.nemesis.violations
        self.findings.schema_calls += sum(len(calls) for calls in self.history.schema.values())
        self._begin_anew()

    def _begin_anew(self) -> None:
        """What a round's end has settled is not judged again."""
        self.history.violations, self.nemesis.violations = [], []
        self.history.seen.clear()
        self.history.revisions.clear()
        self.history.pulses.clear()
        self.revisions = list({node: (node, revision) for node, revision in self.revisions}.values())
        self.history.schema = {}

    def _read_rows(self) -> list[Found]:
        """Every row that stands, table by table, through gateways in turn."""
        gateways = self.cluster.names("gateway")
        tables = sorted({row.table for row in self.history.rows})
        found: list[Found] = []
        for place, table in enumerate(tables):
            try:
                rows = self.cluster.query(
                    gateways[place % len(gateways)], f'SELECT client, n, v FROM "{table}"', self.database
                )
            except AssertionError as error:
                if "not found" not in str(error):
                    raise
                continue  # it has no rows: those that were acknowledged are missing, which the checkers say
            found += [Found(Row(table, int(row["client"][1:]), row["n"]), row["v"]) for row in rows]
        return found

    def _read_keys(self) -> list[KeyState]:
        """Every rewritten key; the table is there once a rewrite was acknowledged."""
        if all(key.acknowledged < 0 for key in self.history.keys.values()):
            return []
        gateway = self.random.choice(self.cluster.names("gateway"))
        rows = self.cluster.query(gateway, f"SELECT * FROM {clients.KEYS_TABLE}", self.database)
        return [clients.key_state(row) for row in rows]

    def _read_changed(self) -> list[Found]:
        """Every row of the table that rows are deleted from; it is there once a row was acknowledged."""
        if all(value == UNCERTAIN for value in self.history.deletes.values()):
            return []
        gateway = self.random.choice(self.cluster.names("gateway"))
        rows = self.cluster.query(gateway, f"SELECT client, n, v FROM {deleter.TABLE}", self.database)
        return [checkers.found_of(deleter.TABLE, row) for row in rows]

    def _judge_view(self) -> list[str]:
        """A materialized view says what its SELECT says; it is there once its client has made it."""
        if self.plan.module is not None:  # a stand-in for nodes has none
            return []
        gateway = self.random.choice(self.cluster.names("gateway"))
        if not self.cluster.query(gateway, "SHOW MATERIALIZED VIEWS", self.database):
            return []
        order = "ORDER BY time, half"
        found = self.cluster.query(
            gateway, f"SELECT time, half, rows, total FROM {deleter.VIEW} {order}", self.database
        )
        asked = f"SELECT time, half, rows, total FROM ({deleter.VIEW_TEXT}) AS computed {order}"
        wanted = self.cluster.query(gateway, asked, self.database)
        self.history.views += 1
        wrong = [pair for pair in zip(found, wanted, strict=False) if pair[0] != pair[1]]
        return (
            [] if found == wanted else [f"a view of {len(found)} rows where its SELECT has {len(wanted)}: {wrong[:3]}"]
        )

    def _close_history(self) -> None:
        """Add a database's figures to the run's."""
        self.findings.rows += len(self.stood)
        self.findings.outcomes.update(self.history.outcomes)
        self.findings.answers.update(self.history.answers)
        self.findings.read_backs += self.history.read_backs
        self.findings.changes += self.history.changes
        self.findings.views += self.history.views

    def _judge_run(self) -> None:
        findings, plan = self.findings, self.plan
        findings.fired = self.nemesis.fired
        wanted = plan.faults if findings.rounds >= 2 * len(plan.faults) else ()
        findings.violations += checkers.faults_fired(findings.fired, wanted)
        acknowledged = findings.outcomes[Outcome.ACKNOWLEDGED]
        views = findings.views if plan.module is None else findings.rounds  # a stand-in has none
        findings.violations += checkers.enough_was_done(
            acknowledged, findings.read_backs, findings.changes, views, findings.rounds
        )
        if plan.module is None and not findings.objects:
            findings.violations.append("no object of a Log was read: the checks of the Logs have shown nothing")
        findings.merges = merges(self.cluster.lines())
        alarms = self.cluster.alarms(UNDER_FAULTS)
        findings.alarms = summary(alarms)
        errors = [alarm for alarm in alarms if alarm.get("level") in ("error", "critical")]
        findings.violations += [f"unexpected log line: {text}" for text in summary(errors)]


def run(plan: Plan, folder: Path) -> Findings:
    """Start the cluster, do the rounds, and say what was found. Raises when the cluster does not come back."""
    environment = dict(ENVIRONMENT)
    if plan.hurts_store:
        environment |= {
            "FAULT_CONTROL": str(folder / "control.json"),
            "FAULT_REPORTS": str(folder / "reports"),
            "FAULT_SEED": str(plan.seed),
        }
    module = plan.module or (FAULTY_MODULE if plan.hurts_store else EAGER_MODULE)
    with ExitStack() as stack:
        network: Network = stack.enter_context(NetnsNetwork()) if plan.namespaces else Loopback()
        cluster = Cluster(
            folder, plan.ingest, plan.gateways, plan.queries, secure=plan.secure, fast=plan.fast,
            environment=environment, network=network, module=module,
        )  # fmt: skip
        stack.enter_context(cluster)
        return Run(plan, folder, cluster).rounds()


def parse(arguments: Sequence[str] | None) -> Plan:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.cluster_rounds", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    parser.add_argument("--seconds-per-round", type=float, default=8.0)
    parser.add_argument("--network", choices=("netns", "none", "auto"), default="auto", help="auto: netns if it works")
    parser.add_argument("--faults", default="kill,pause,term,cut,loss,store", help="groups or single faults")
    parser.add_argument("--secure", action="store_true", help="TLS and a secret between the nodes")
    parser.add_argument("--slow-probes", dest="fast", action="store_false", help="gossip as by default")
    options = parser.parse_args(arguments)
    reason = unavailable() if options.network != "none" else "not asked for"
    if options.network == "netns" and reason:
        parser.error(f"no namespaces: {reason}")
    try:
        faults = chosen_faults(options.faults.split(","), namespaces=not reason)
    except ValueError as error:
        parser.error(str(error))
    if not faults:
        parser.error("none of these faults can be had here")
    return Plan(
        options.rounds, options.seed, options.seconds_per_round, faults, not reason, options.fast, options.secure
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: 0 when everything held."""
    plan = parse(arguments)
    print(f"seed {plan.seed}, {plan.rounds} rounds, faults {', '.join(plan.faults)}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="runnel-chaos-"))
    try:
        findings = run(plan, folder)
    except BaseException:
        print(f"FAILED; logs and store are in {folder}\nreplay: {plan.replay()}", file=sys.stderr, flush=True)
        raise
    print(findings.table())
    print(f"replay: {plan.replay()}")
    if findings.violations:
        print(f"FAILED; logs and store are in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
