"""`elaswave simulate CONFIG --ranks N`: weeks of a large job among failures in minutes, by policy; starts nothing."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from statistics import mean
from typing import TYPE_CHECKING

from elaswave import config as settings
from elaswave.cli.forecast import profile_of
from elaswave.config import Config
from elaswave.errors import ConfigError
from elaswave.planner.profile import Profile
from elaswave.planner.scheduler import check_stages
from elaswave.simulator.failures import HOUR_S, Cluster

if TYPE_CHECKING:
    from rich.table import Table

    from elaswave.simulator.goodput import Account

WIDTH = 120
EPILOG = """\
A worker is lost with any of its --devices-per-worker, and fails that much more often. Every setting of the config can
be given on the command line; the batch is as large as --per-pipeline says, whatever the config does:
  elaswave simulate configs/train/gpt_tiny.toml --ranks 98304 --devices-per-worker 8 --parallelism.stages 6

goodput is what was done and kept, over what the full grid would have done in the time: losses of throughput and of
time. The same seed is the same run. Times of a change are assumed: see elaswave/simulator/goodput.py."""


def run(argv: Sequence[str]) -> int:
    """Simulate and print; returns 0.

    Raises:
        ConfigError: a setting or an argument is wrong.
    """
    arguments, overrides = _parser().parse_known_args(argv)
    config = settings.load(arguments.config, overrides)
    profile = profile_of(config)
    check_stages(config.parallelism, profile.num_layers)
    cluster = _cluster(arguments)
    if cluster.ranks < config.parallelism.stages:
        raise ConfigError("--ranks", arguments.ranks, f"give at least {config.parallelism.stages} workers, one a stage")
    for name in ("days", "seeds", "per_pipeline", "step_s", "checkpoint_s"):
        if not getattr(arguments, name) > 0:
            raise ConfigError(f"--{name.replace('_', '-')}", getattr(arguments, name), "give a positive number")
    found = [_lived(arguments, config, profile, cluster, seed) for seed in range(arguments.seeds)]
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else WIDTH).print(_table(found, cluster, arguments.days))
    return 0


def _lived(
    arguments: argparse.Namespace, config: Config, profile: Profile, cluster: Cluster, seed: int
) -> "dict[str, Account]":
    """One seed."""
    import numpy as np

    from elaswave.coordination.timeouts import Timeouts
    from elaswave.simulator.failures import failures
    from elaswave.simulator.goodput import Job, live
    from elaswave.simulator.workload import Workload

    stages, hours = config.parallelism.stages, 24 * arguments.days
    work = Workload(
        profile=profile,
        stages=stages,
        micro_batches=cluster.ranks // stages * arguments.per_pipeline,
        schedule=config.parallelism.schedule,
    )
    job = Job(
        work=work,
        step_s=arguments.step_s,
        checkpoint_s=arguments.checkpoint_s,
        copies=config.snapshot.copies,
        min_workers=config.elasticity.min_workers,
    )
    drawn = failures(cluster, hours, np.random.default_rng(seed))
    return live(cluster, job, drawn, hours, Timeouts.from_settings(config.elasticity))


def _cluster(arguments: argparse.Namespace) -> Cluster:
    """Workers instead of devices: one fails as often as all its devices together."""
    each = arguments.devices_per_worker
    if each < 1 or arguments.per_node % each:
        raise ConfigError("--devices-per-worker", each, f"must divide --per-node = {arguments.per_node}")
    values = {each.name: getattr(arguments, each.name) for each in fields(Cluster)}
    values |= {"ranks": arguments.ranks // each, "per_node": arguments.per_node // each}
    values |= {"mtbf_h": arguments.mtbf_h / each, "slow_mtbf_h": arguments.slow_mtbf_h / each}
    return Cluster(**values)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="elaswave simulate",
        description="Let a large job live among failures under a virtual clock, once for every policy.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("config", metavar="CONFIG", help="TOML file, such as configs/train/gpt_tiny.toml")
    add("--ranks", type=int, required=True, metavar="N", help="devices of the job")
    add("--devices-per-worker", type=int, default=1, metavar="N", help="1; more for tensor-parallel groups")
    add("--days", type=float, default=30.0, help="to simulate (30)")
    add("--seeds", type=int, default=1, metavar="K", help="runs with other failures, seeds 0 .. K - 1 (1)")
    add("--per-pipeline", type=int, default=32, metavar="N", help="micro-batches per step and pipeline (32)")
    add("--step-s", type=float, default=10.0, metavar="S", help="of the full grid (10)")
    add("--checkpoint-s", type=float, default=1800.0, metavar="S", help="between checkpoints (1800)")
    add("--per-node", type=int, default=8, metavar="N", help="devices of a node (8)")
    add("--nodes-per-rack", type=int, default=8, metavar="N", help="that fail together with their rack (8)")
    add("--mtbf-h", type=float, default=50_000.0, metavar="H", help="hours between failures of a device (50000)")
    add("--hang-share", type=float, default=0.1, metavar="X", help="of failures that only a lease tells (0.1)")
    add("--rack-mtbf-h", type=float, default=0.0, metavar="H", help="hours between failures of a rack (0: never)")
    add("--slow-mtbf-h", type=float, default=0.0, metavar="H", help="hours between slow phases of a device (0: none)")
    add("--slowdown", type=float, default=1.3, metavar="X", help="times as long a slow device takes (1.3)")
    add("--slow-h", type=float, default=4.0, metavar="H", help="hours of a slow phase, in the mean (4)")
    add("--repair-h", type=float, default=6.0, metavar="H", help="hours until a device is back, in the mean (6)")
    return parser


def _table(found: "list[dict[str, Account]]", cluster: Cluster, days: float) -> "Table":
    from rich.table import Table

    title = f"{cluster.ranks} workers, {days:g} days, {len(found)} seed{'s' if len(found) > 1 else ''}"
    table = Table(title=title, title_justify="left")
    table.add_column("policy")
    for column in ("goodput %", "computed again %", "stopped %", "losses", "to a checkpoint"):
        table.add_column(column, justify="right")
    wall_s = days * 24 * HOUR_S
    for name in sorted(found[0], key=lambda name: -mean(each[name].done_s for each in found)):
        accounts = [each[name] for each in found]
        shares = [100 * account.done_s / wall_s for account in accounts]
        spread = f" [{min(shares):.2f} .. {max(shares):.2f}]" if len(shares) > 1 else ""
        table.add_row(
            name,
            f"{mean(shares):.2f}{spread}",
            f"{100 * mean(account.again_s for account in accounts) / wall_s:.3f}",
            f"{100 * mean(account.stopped_s for account in accounts) / wall_s:.3f}",
            f"{mean(account.losses for account in accounts):.0f}",
            f"{mean(account.fallbacks for account in accounts):.0f}",
        )
    return table
