"""What an agent is told: endpoints and settings, and clear words when they are wrong."""

import json
from pathlib import Path

import pytest

from elaswave.coordination.launch_settings import DEFAULT_PORT, SETTINGS, SPARES, free_port, seeds_of, settings_of
from elaswave.errors import ConfigError


@pytest.mark.parametrize(
    ("endpoint", "seeds"),
    [
        ("a:1", [("a", 1)]),
        ("a:1, b:2,", [("a", 1), ("b", 2)]),
        ("a", [("a", DEFAULT_PORT)]),
        ("[::1]:29500", [("::1", 29500)]),
        ("[fe80::1]", [("fe80::1", DEFAULT_PORT)]),
    ],
)
def test_endpoints(endpoint: str, seeds: list[tuple[str, int]]):
    assert seeds_of(endpoint, max_nodes=4) == seeds


def test_one_node_needs_no_endpoint():
    assert seeds_of("", max_nodes=1) == [("127.0.0.1", 0)]


@pytest.mark.parametrize("endpoint", ["", "a:", ":1", "a:b", "a:70000", "a:0"])
def test_wrong_endpoints_are_named(endpoint: str):
    with pytest.raises(ConfigError, match="--rdzv-endpoint"):
        seeds_of(endpoint, max_nodes=2)


def test_the_command_line_wins_over_the_environment():
    environ = {SETTINGS: json.dumps({"suspicion_s": 3.0, "heartbeat_s": 0.5, "spares": 4}), SPARES: "2"}
    settings = settings_of({"timeout": 900, "suspicion_s": "5"}, environ)
    assert (settings.suspicion_s, settings.heartbeat_s, settings.spares) == (5.0, 0.5, 2)


def test_many_workers_may_be_required():
    assert settings_of({"min_workers": "1000"}, {}).min_workers == 1000


@pytest.mark.parametrize(
    ("conf", "environ", "complaint"),
    [
        ({"suspicion": "5"}, {}, "unknown key; known are .*suspicion_s"),
        ({"suspicion_s": "soon"}, {}, "elasticity.suspicion_s"),
        ({"heartbeat_s": "2", "suspicion_s": "1"}, {}, "at most half"),
        ({}, {SETTINGS: "{"}, "must be a JSON object"),
        ({}, {SETTINGS: "[1]"}, "must be a JSON object"),
        ({}, {SPARES: "many"}, "elasticity.spares"),
    ],
)
def test_wrong_settings_are_named(conf: dict[str, str], environ: dict[str, str], complaint: str):
    with pytest.raises(ConfigError, match=complaint):
        settings_of(conf, environ)


def test_the_trainers_own_config_is_read_and_everything_else_wins_over_it(tmp_path: Path):
    config = tmp_path / "config.toml"
    config.write_text("[elasticity]\nmin_workers = 2\nsuspicion_s = 4\nspares = 3\n")
    command = ["elaswave.train", "--config", str(config), "--elasticity.min_workers=3"]
    settings = settings_of({"suspicion_s": "5"}, {SPARES: "0"}, command)
    assert (settings.min_workers, settings.suspicion_s, settings.spares) == (3, 5.0, 0)
    assert settings_of({}, {}, ["another.module", *command[1:]]).min_workers == 1


def test_a_wrong_config_of_the_trainer_is_told_before_anything_starts(tmp_path: Path):
    config = tmp_path / "config.toml"
    config.write_text("[training]\nstepz = 2\n")
    with pytest.raises(ConfigError, match=r"training.stepz = 2: unknown key"):
        settings_of({}, {}, ["elaswave.train", "--config", str(config)])


def test_free_ports_are_not_those_that_the_kernel_hands_out():
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found = {free_port() for _ in range(20)}
    assert all(1024 < port < max(first, 13_025) for port in found)
    assert len(found) > 10
