"""Keeps the promise that clocks are given back: at exit in this process, at its death by the watchdog."""

import atexit
import os
from collections.abc import Callable

from elaswave.dvfs.watchdog import Order, Watchdog
from elaswave.errors import ConfigError


class Guard:
    """Knows how to undo what was set.

    Args:
        backend: its name, for the error.
        undo: called at exit, but not in forks of this process; must not raise.

    Raises:
        ConfigError: no watchdog can be started, so nothing may be set.
    """

    def __init__(self, backend: str, undo: Callable[[], None]) -> None:
        try:
            self._watchdog = Watchdog()
        except OSError as error:
            told = f"clocks could not be put back after a crash: {error}; use 'simulated' or 'off'"
            raise ConfigError("dvfs.backend", backend, told) from error
        self._orders: dict[object, Order] = {}
        self._undo, self._owner = undo, os.getpid()
        atexit.register(self._at_exit)

    def before(self, key: object, order: Order) -> None:
        """Call before something is set for the first time: how to undo it.

        Raises:
            OSError: the watchdog is gone.
        """
        if key not in self._orders:
            self._orders[key] = order
            self._watchdog.tell(list(self._orders.values()))

    def close(self) -> None:
        """All has been undone; calling it again does nothing."""
        atexit.unregister(self._at_exit)
        self._watchdog.close()

    def _at_exit(self) -> None:
        if os.getpid() == self._owner:
            self._undo()
