"""The only place that reads the time, so that tests and simulations can put another clock in its stead."""

import time
from typing import Protocol


class Clock(Protocol):
    """A source of time; decisions take its readings as arguments."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary start; never goes back."""
        ...

    def wall(self) -> float:
        """Seconds since 1970, comparable between the processes of one machine."""
        ...


class SystemClock:
    """The machine's clock."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()


SYSTEM = SystemClock()


class Deadline:
    """A point in time after which a wait must end.

    Args:
        timeout_s: seconds from now.
        clock: where "now" comes from.
    """

    __slots__ = ("_clock", "_end", "timeout_s")

    def __init__(self, timeout_s: float, clock: Clock = SYSTEM) -> None:
        self.timeout_s = timeout_s
        self._clock = clock
        self._end = clock.monotonic() + timeout_s

    def left_s(self) -> float:
        """Seconds that remain, never below zero."""
        return max(0.0, self._end - self._clock.monotonic())

    def passed(self) -> bool:
        return self._clock.monotonic() >= self._end
