"""What an agent is told about the job: the seeds and timeouts on torchrun's command line and in the environment."""

import contextlib
import json
import secrets
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from elaswave.config import Elasticity, from_mapping, load_command
from elaswave.errors import ConfigError

DEFAULT_PORT = 29400
EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
DEFAULT_EPHEMERAL = 32768
PORTS = 12_000
PORT_TRIES = 100
SETTINGS = "ELASWAVE_ELASTICITY"
"""A JSON object of `[elasticity]` settings; those of `--rdzv-conf` win over it."""
SPARES = "ELASWAVE_SPARES"
"""Warm spares per node; wins over both."""
GRACE = "ELASWAVE_GRACE_S"
"""Seconds the first node waits for a primary that may be there already; short where there can be none."""
TRAINER = "elaswave.train"
"""The module that trains what a config says."""
FOLLOWED = "ELASWAVE_FOLLOWED"
"""Set to 1 when somebody shows the run's events: agents and workers then leave that to them."""
TORCH_CONF_KEYS = frozenset(
    {
        "timeout",
        "join_timeout",
        "last_call_timeout",
        "close_timeout",
        "heartbeat_timeout",
        "keep_alive_interval",
        "keep_alive_max_attempt",
        "read_timeout",
        "is_host",
        "use_libuv",
        "shutdown_timeout",
        "rank",
    }
)
"""Keys of `--rdzv-conf` that torchrun itself adds, or that other backends take."""


def seeds_of(endpoint: str, max_nodes: int = 1) -> list[tuple[str, int]]:
    """`host:port,host:port` as pairs; the port may be left out.

    Raises:
        ConfigError: empty although there are several nodes, or a port is not a number.
    """
    words = [word.strip() for word in endpoint.split(",") if word.strip()]
    if not words:
        if max_nodes == 1:
            return [("127.0.0.1", 0)]
        raise ConfigError("--rdzv-endpoint", endpoint, "name one or more nodes as host:port,host:port")
    return [_seed_of(word) for word in words]


def _seed_of(word: str) -> tuple[str, int]:
    host, colon, port = word.rpartition(":")
    if not colon or word.endswith("]"):
        host, port = word, str(DEFAULT_PORT)
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError("--rdzv-endpoint", word, f"write it as host:port, such as 10.0.0.1:{DEFAULT_PORT}")
    return host.strip("[]"), int(port)


def free_port() -> int:
    """A loopback port that nobody uses right now, and that the kernel gives to nobody who does not ask for it."""
    for _ in range(PORT_TRIES):
        port = _first_ephemeral() - 1 - secrets.randbelow(PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _first_ephemeral() -> int:
    """From here on up the kernel hands out ports for connections and for listeners that name none."""
    try:
        first = int(EPHEMERAL.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return DEFAULT_EPHEMERAL
    return max(first, PORTS + 1025)


def settings_of(conf: Mapping[str, Any], environ: Mapping[str, str], command: Sequence[str] = ()) -> Elasticity:
    """The elasticity settings of an agent, checked like those of a config file.

    Args:
        conf: torchrun's `--rdzv-conf`; wins over the environment.
        environ: environment variables; win over the command.
        command: module and arguments of the workers; the config that it names is read when it is the trainer.

    Raises:
        ConfigError: a key is unknown, or a value is out of range.
    """
    given: dict[str, Any] = {}
    if command and command[0] == TRAINER:
        given.update(load_command(command[1:], TRAINER).elasticity.model_dump(exclude_unset=True))
    if environ.get(SETTINGS):
        try:
            given.update(json.loads(environ[SETTINGS]))
        except (TypeError, ValueError) as error:
            raise ConfigError(SETTINGS, environ[SETTINGS], f"must be a JSON object: {error}") from None
    for key, value in conf.items():
        if key in Elasticity.model_fields:
            given[key] = value
        elif key not in TORCH_CONF_KEYS:
            known = ", ".join(sorted(Elasticity.model_fields))
            raise ConfigError(f"--rdzv-conf {key}", value, f"unknown key; known are {known}")
    if environ.get(SPARES):
        given["spares"] = environ[SPARES]
    # batch sizes are the workers' business: here they only have to be large enough for any number of workers
    training = {"train_batch_size": 2**30, "micro_batch_size": 1}
    return from_mapping({"elasticity": given, "training": training}).elasticity
