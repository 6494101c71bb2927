"""How long a crash takes to be known, and what an idle member sends: ``python -m tests.sim.swim_figures``.

Virtual time, so the figures do not depend on the machine.
"""

from __future__ import annotations

import argparse
import time

from cluster.members import MemberState
from cluster.swimconfig import FAST, SwimConfig
from tests.sim.swimcluster import VirtualCluster

CONFIGS = {"defaults": SwimConfig(), "fast": FAST}
BOUND_SECONDS = 60.0


def detection_seconds(seed: int, size: int, config: SwimConfig, loss: float) -> tuple[float, float, float]:
    """From a crash until the first knows it, until everybody does; and packets per second of an idle member."""
    cluster = VirtualCluster(seed, size, config, loss=loss).formed(10.0)
    quiet = cluster.packets
    cluster.run(10.0)
    sent = (cluster.packets - quiet) / 10.0 / size
    victim = cluster.rng.choice(list(cluster.nodes))
    crashed_at = cluster.now
    cluster.crash(victim)
    known = cluster.run(BOUND_SECONDS, lambda: cluster.state_of(victim) == {MemberState.DEAD})
    everybody = cluster.now - crashed_at if known else float("inf")
    first = min((at for at, _, who in cluster.deaths if who == victim), default=float("inf"))
    return first - crashed_at, everybody, sent


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def line(size: int, label: str, loss: float, seeds: int) -> str:
    began = time.process_time()
    runs = [detection_seconds(seed, size, CONFIGS[label], loss) for seed in range(seeds)]
    first, everybody, sent = ([run[part] for run in runs] for part in range(3))
    return (
        f"{size:3} members, {label}, {loss:.0%} loss, {seeds} crashes: first knows p50 {quantile(first, 0.5):.1f} s; "
        f"all know p50 {quantile(everybody, 0.5):.1f} p99 {quantile(everybody, 0.99):.1f} max {max(everybody):.1f} s; "
        f"{sum(sent) / seeds:.1f} packets/s a member; {time.process_time() - began:.0f} s CPU"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--sizes", type=int, nargs="+", default=[3, 5, 10, 30])
    arguments = parser.parse_args()
    for size in arguments.sizes:
        for label, loss in (("defaults", 0.0), ("defaults", 0.1), ("fast", 0.0)):
            print(line(size, label, loss, arguments.seeds), flush=True)


if __name__ == "__main__":
    main()
