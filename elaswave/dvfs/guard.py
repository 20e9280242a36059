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
        self._undo, self._owner = undo, os.getpid()
        self._orders: dict[object, Order] = {}
        self._watchdog: Watchdog | None = None
        try:
            self._start()
        except OSError as error:
            told = f"clocks could not be put back after a crash: {error}; use 'simulated' or 'off'"
            raise ConfigError("dvfs.backend", backend, told) from error

    def before(self, key: object, order: Order) -> None:
        """Call before something is set: how to undo it. The first order for a key holds until all has been undone.

        Raises:
            OSError: there is no watchdog to take it; set nothing then.
        """
        watchdog = self._start()
        if key not in self._orders:
            watchdog.tell([*self._orders.values(), order])
            self._orders[key] = order

    def close(self) -> None:
        """All has been undone; calling it again does nothing."""
        atexit.unregister(self._at_exit)
        self._orders.clear()
        if self._watchdog is not None:
            self._watchdog.close()
            self._watchdog = None

    def _start(self) -> Watchdog:
        if os.getpid() != self._owner:
            raise OSError("clocks are set by the process that opened the back end, not by a fork of it")
        if self._watchdog is None:
            self._watchdog = Watchdog()
            atexit.register(self._at_exit)
        return self._watchdog

    def _at_exit(self) -> None:
        if os.getpid() == self._owner:
            self._undo()
