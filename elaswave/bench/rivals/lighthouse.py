"""torchft's lighthouse in a process of its own, started through `tied`."""

import argparse
import os
import signal
from pathlib import Path

from torchft.coordination import LighthouseServer


def main() -> None:
    """Serve until killed; the address goes into a file, whole or not at all."""
    parser = argparse.ArgumentParser()
    for name in ("join-timeout-ms", "quorum-tick-ms", "heartbeat-timeout-ms"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--address-file", type=Path, required=True)
    arguments = parser.parse_args()
    server = LighthouseServer(
        bind="[::]:0",
        min_replicas=1,
        join_timeout_ms=arguments.join_timeout_ms,
        quorum_tick_ms=arguments.quorum_tick_ms,
        heartbeat_timeout_ms=arguments.heartbeat_timeout_ms,
    )
    aside = arguments.address_file.with_suffix(f".{os.getpid()}")
    aside.write_text(server.address())
    aside.replace(arguments.address_file)
    signal.pause()


if __name__ == "__main__":
    main()
