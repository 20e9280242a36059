"""From signs to suspicion."""

import pytest

from elaswave.coordination.detector import (
    Evidence,
    NodeSigns,
    Standing,
    WorkerSigns,
    examine_node,
    examine_worker,
)
from elaswave.coordination.timeouts import Timeouts
from elaswave.errors import ConfigError

TIMEOUTS = Timeouts(heartbeat_s=0.2, suspicion_s=2.0, start_timeout_s=60)


@pytest.mark.parametrize(
    ("signs", "evidence"),
    [
        ({}, None),
        ({"abandoned": True, "exited": True}, Evidence.MUTEX),
        ({"exited": True, "hung_up": True}, Evidence.EXIT),
        ({"reaped": True}, Evidence.LAUNCHER),
        ({"hung_up": True}, Evidence.HANGUP),
        ({"stopped": True}, None),
        ({"stopped": True, "silence_s": 0.9}, None),
        ({"stopped": True, "silence_s": 1.0}, Evidence.STOPPED),
        ({"stopped": True, "silence_s": 0.4, "suspected": True}, Evidence.STOPPED),
        ({"silence_s": 3.9}, None),
        ({"silence_s": 3.9, "suspected": True}, None),
        ({"silence_s": 4.0}, Evidence.LEASE),
        ({"silence_s": 50, "joined": False}, None),
        ({"silence_s": 50, "age_s": 60, "joined": False}, Evidence.NEVER_JOINED),
        ({"silence_s": 50, "stopped": True, "joined": False}, Evidence.STOPPED),
    ],
)
def test_signs_of_workers(signs, evidence):
    suspicion = examine_worker(WorkerSigns(**signs), TIMEOUTS)
    assert (None if suspicion is None else suspicion.evidence) == evidence


def test_only_an_ended_process_needs_no_kill():
    certain = [
        examine_worker(WorkerSigns(**{sign: True}), TIMEOUTS).certain
        for sign in ("abandoned", "hung_up", "exited", "reaped")
    ]
    assert certain == [False, False, True, True]


@pytest.mark.parametrize(
    ("signs", "standing"),
    [
        ({}, Standing.LIVE),
        ({"silence_s": 1.9}, Standing.LIVE),
        ({"silence_s": 2.0}, Standing.UNKNOWN),
        ({"disconnected_s": 0.4, "patience_s": 0.5}, Standing.PENDING),
        ({"disconnected_s": 0.5, "patience_s": 0.5}, Standing.UNKNOWN),
        ({"disconnected_s": 9, "gone": True}, Standing.GONE),
    ],
)
def test_signs_of_nodes(signs, standing):
    assert examine_node(NodeSigns(**signs), TIMEOUTS) is standing


def test_the_lease_must_cover_two_heartbeats():
    with pytest.raises(ConfigError, match=r"at most half of elasticity\.suspicion_s"):
        Timeouts(heartbeat_s=0.6, suspicion_s=1.0)
