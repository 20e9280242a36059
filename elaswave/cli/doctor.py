"""`elaswave doctor`: what this machine lacks for a job, and how to mend it; 0 can run, 1 cannot."""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from elaswave.cli.machine import Machine, look
from elaswave.errors import ConfigError

OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 13)
OPEN_FILES_MIN = 256
"""Below, not even a job of some dozen workers can link all of them."""
OPEN_FILES_GOOD = 4096
SPACE_BYTES = 256 << 20
FAST_CLOCKS = ("tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page")
PORT_MAX = 65535


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"  # works, with less speed or comfort
    FAILURE = "failure"  # a job cannot run


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: in a word or two.
        level: how bad it is.
        found: what there is.
        remedy: what to do about it; empty when all is well.
    """

    what: str
    level: Level
    found: str
    remedy: str = ""


def judge(machine: Machine) -> tuple[Finding, ...]:
    """What the facts mean for a job."""
    return (*_software(machine), *_kernel(machine), *_network(machine), *_room(machine))


def _software(machine: Machine) -> Iterator[Finding]:
    version = ".".join(map(str, machine.python))
    if OLDEST_PYTHON <= machine.python <= NEWEST_PYTHON:
        yield Finding("python", Level.OK, version)
    else:
        level = Level.FAILURE if machine.python < OLDEST_PYTHON else Level.WARNING
        yield Finding("python", level, f"{version}, not tested", "use Python 3.11, 3.12 or 3.13")
    if machine.torch is None:
        yield Finding("torch", Level.FAILURE, "cannot be imported", "pip install torch==2.13.0")
        return
    if machine.torch_too_old is not None:
        yield Finding("torch", Level.FAILURE, machine.torch, machine.torch_too_old)
        return
    yield Finding("torch", Level.OK, machine.torch)
    if "elaswave" in machine.handlers:
        yield Finding("torchrun plug-in", Level.OK, "--rdzv-backend=elaswave")
    else:
        remedy = "pip install elaswave into the environment of torchrun"
        yield Finding("torchrun plug-in", Level.FAILURE, "torchrun does not find it", remedy)
    if machine.torch_lacks:
        remedy = "nothing has to be done: every worker gets a supervisor process instead"
        yield Finding("torchrun's agent", Level.WARNING, "; ".join(machine.torch_lacks), remedy)
    else:
        yield Finding("torchrun's agent", Level.OK, "restarts single workers")
    missing = "not in this torch; only benches and rivals use it"
    yield (
        Finding("gloo", Level.OK, "there, for benches") if machine.has_gloo else Finding("gloo", Level.WARNING, missing)
    )
    yield Finding("NCCL", Level.OK, "there; never run with it" if machine.has_nccl else "not in this torch; not needed")


def _kernel(machine: Machine) -> Iterator[Finding]:
    if not machine.platform.startswith("linux"):
        yield Finding("system", Level.FAILURE, machine.platform, "use Linux: deaths are found by pidfd")
        return
    yield (
        Finding("pidfd", Level.OK, "deaths are seen at once")
        if machine.pidfd
        else Finding("pidfd", Level.FAILURE, "pidfd_open fails", "use Linux 5.3 or newer, and allow it in seccomp")
    )
    yield (
        Finding("shared memory", Level.OK, "memfd")
        if machine.memfd
        else Finding("shared memory", Level.WARNING, "memfd_create fails", "set elasticity.transport = 'tcp'")
    )
    if machine.huge_pages in ("always", "madvise"):
        yield Finding("huge pages", Level.OK, machine.huge_pages)
    else:
        remedy = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled: large workers take long to die without"
        yield Finding("huge pages", Level.WARNING, machine.huge_pages or "unknown", remedy)
    if machine.clock_source is None or machine.clock_source in FAST_CLOCKS:
        yield Finding("clock", Level.OK, machine.clock_source or "the system does not tell which")
    else:
        yield Finding(
            "clock", Level.WARNING, machine.clock_source, f"slow to read; use {FAST_CLOCKS[0]} if it is there"
        )
    if machine.synchronized is False:
        remedy = "run chrony or ntpd when hosts are several: their events are put in order by the wall clock"
        yield Finding("wall clock", Level.WARNING, "not synchronized", remedy)
    else:
        yield Finding("wall clock", Level.OK, "synchronized" if machine.synchronized else "the system does not tell")


def _network(machine: Machine) -> Iterator[Finding]:
    if machine.loopback:
        yield Finding("loopback", Level.FAILURE, machine.loopback, "ip link set lo up; let a firewall pass 127.0.0.1")
    else:
        yield Finding("loopback", Level.OK, "127.0.0.1 answers")
    if machine.address:
        remedy = "add it to /etc/hosts, or name an address in --rdzv-endpoint, when hosts are several"
        yield Finding("host name", Level.WARNING, machine.address, remedy)
    else:
        yield Finding("host name", Level.OK, "has an address")
    if machine.port is not None:
        yield (
            Finding(f"port {machine.port}", Level.FAILURE, machine.port_problem, "choose another in --rdzv-endpoint")
            if machine.port_problem
            else Finding(f"port {machine.port}", Level.OK, "free")
        )


def _room(machine: Machine) -> Iterator[Finding]:
    if machine.open_files >= OPEN_FILES_GOOD:
        yield Finding("open files", Level.OK, f"{machine.open_files:,}")
    else:
        level = Level.FAILURE if machine.open_files < OPEN_FILES_MIN else Level.WARNING
        remedy = f"ulimit -n {OPEN_FILES_GOOD}: each worker has a link to each other"
        yield Finding("open files", level, f"{machine.open_files:,}", remedy)
    yield Finding("cores", Level.OK, f"{machine.cores}")
    where = f"{machine.folder}/"
    if machine.free_bytes is None:
        yield Finding("run folder", Level.FAILURE, f"{where} cannot be written", "name another place in run.folder")
    elif machine.free_bytes < SPACE_BYTES:
        remedy = f"have {SPACE_BYTES >> 20} MiB free, or name another place in run.folder"
        yield Finding("run folder", Level.WARNING, f"{machine.free_bytes >> 20} MiB free for {where}", remedy)
    else:
        yield Finding("run folder", Level.OK, f"{machine.free_bytes / 2**30:,.1f} GiB free for {where}")


def run(argv: Sequence[str]) -> int:
    """Look, judge and tell.

    Raises:
        ConfigError: the port is none.
    """
    parser = argparse.ArgumentParser(prog="elaswave doctor", description=__doc__)
    parser.add_argument("--port", type=int, help="also see whether a coordinator could listen on this port")
    parser.add_argument("--runs", default="runs", metavar="FOLDER", help="parent of all run folders (default: runs)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(list(argv))
    if args.port is not None and not 0 < args.port <= PORT_MAX:
        raise ConfigError("--port", args.port, f"give a number from 1 to {PORT_MAX}")
    findings = judge(look(Path(args.runs).absolute(), args.port))
    failed = any(one.level is Level.FAILURE for one in findings)
    if args.json:
        print(json.dumps({"ok": not failed, "findings": [asdict(one) for one in findings]}))
    else:
        _show(findings)
    return 1 if failed else 0


def _show(findings: Sequence[Finding]) -> None:
    width = max(len(one.what) for one in findings)
    for one in findings:
        print(f"{one.level:<7}  {one.what:<{width}}  {one.found}")
        if one.remedy:
            print(f"{'':<7}  {'':<{width}}  -> {one.remedy}")
    worst = [sum(one.level is level for one in findings) for level in (Level.FAILURE, Level.WARNING)]
    print()
    print("jobs can run here" if not worst[0] else f"no job can run here before {worst[0]} of these are mended", end="")
    print(f"; warnings: {worst[1]}" if worst[1] else "")
