"""Reads values out of events whose writers may have been killed, or be of another version."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Event = Mapping[str, Any]
T = TypeVar("T")


def attempt(read: Callable[[Event], T], event: Event) -> T | None:
    try:
        return read(event)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
