"""How the ranks of a contender in turns find one another: a store beside them, and gloo over loopback."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

from elaswave.bench.forked import store_server
from elaswave.bench.rivals import variables

TIMEOUT_S = 120.0


@contextmanager
def store(**variables_beside: str) -> Iterator[Mapping[str, str]]:
    """A store for one contender; yields the environment of its ranks. Call it before this process has threads.

    Args:
        variables_beside: more of that environment.
    """
    with store_server(TIMEOUT_S) as port:
        yield {variables.STORE_PORT: str(port), "GLOO_SOCKET_IFNAME": "lo", **variables_beside}


def connect(rank: int, world: int) -> None:
    """Make the default process group of torch.distributed."""
    import torch.distributed as dist

    timeout = timedelta(seconds=TIMEOUT_S)
    place = dist.TCPStore("127.0.0.1", int(os.environ[variables.STORE_PORT]), None, False, timeout=timeout)
    dist.init_process_group("gloo", store=place, rank=rank, world_size=world, timeout=timeout)
