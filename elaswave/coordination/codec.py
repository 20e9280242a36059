"""JSON to frozen dataclasses and back, checked field by field, for everything that comes from a socket."""

import math
import types
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from elaswave.errors import ProtocolError

INTEGER_MAX = 2**63 - 1

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """Plain JSON values for a dataclass: tuples and sets become lists, dataclasses objects."""
    if is_dataclass(value):
        return {f.name: to_json(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    return value


def from_json(kind: type[T], value: object) -> T:
    """Build `kind` from JSON values; nothing is converted silently, nothing unknown is ignored.

    Raises:
        ProtocolError: names the field that is missing, unknown or of another type.
    """
    return _reader(kind)(value, kind.__name__)


_Reader = Callable[[object, str], Any]


@cache
def _reader(kind: Any) -> _Reader:
    """The function that checks and builds one type."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _optional(kind)
    if origin is tuple:
        return _tuple(get_args(kind))
    if origin is frozenset:
        return _frozenset(get_args(kind)[0])
    if origin is not None and issubclass(origin, Mapping):
        return _mapping(get_args(kind)[1])
    if kind is object:
        return lambda value, path: value
    if is_dataclass(kind):
        return _dataclass(kind)
    if issubclass(kind, StrEnum):
        return _enumeration(kind)
    return _scalar(kind)


def _scalar(kind: type) -> _Reader:
    def read(value: object, path: str) -> object:
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise ProtocolError(f"{path}: expected {kind.__name__}, got {type(value).__name__}")
        if isinstance(value, int) and abs(value) > INTEGER_MAX:
            raise ProtocolError(f"{path}: integer out of range")
        if isinstance(value, float) and not math.isfinite(value):
            raise ProtocolError(f"{path}: not a finite number")
        return value

    return read


def _enumeration(kind: type[StrEnum]) -> _Reader:
    def read(value: object, path: str) -> StrEnum:
        if not isinstance(value, str) or value not in set(kind):
            raise ProtocolError(f"{path}: expected one of {', '.join(kind)}")
        return kind(value)

    return read


def _optional(kind: Any) -> _Reader:
    inner = _reader(next(part for part in get_args(kind) if part is not types.NoneType))
    return lambda value, path: None if value is None else inner(value, path)


def _items(value: object, path: str) -> list[Any]:
    if not isinstance(value, list):
        raise ProtocolError(f"{path}: expected a list, got {type(value).__name__}")
    return value


def _tuple(parts: tuple[Any, ...]) -> _Reader:
    if len(parts) == 2 and parts[1] is Ellipsis:
        each = _reader(parts[0])
        return lambda value, path: tuple(each(item, f"{path}[{i}]") for i, item in enumerate(_items(value, path)))
    readers = [_reader(part) for part in parts]

    def read(value: object, path: str) -> tuple[Any, ...]:
        items = _items(value, path)
        if len(items) != len(readers):
            raise ProtocolError(f"{path}: expected {len(readers)} items, got {len(items)}")
        return tuple(reader(item, f"{path}[{i}]") for i, (reader, item) in enumerate(zip(readers, items, strict=True)))

    return read


def _frozenset(part: Any) -> _Reader:
    each = _reader(part)
    return lambda value, path: frozenset(each(item, f"{path}[{i}]") for i, item in enumerate(_items(value, path)))


def _object(value: object, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ProtocolError(f"{path}: expected an object, got {type(value).__name__}")
    return value


def _mapping(part: Any) -> _Reader:
    each = _reader(part)
    return lambda value, path: {key: each(item, f"{path}.{key}") for key, item in _object(value, path).items()}


def _dataclass(kind: Any) -> _Reader:
    hints = get_type_hints(kind)
    readers = {f.name: _reader(hints[f.name]) for f in fields(kind)}

    def read(value: object, path: str) -> Any:
        given = _object(value, path)
        if given.keys() != readers.keys():
            wrong = sorted(given.keys() ^ readers.keys())
            raise ProtocolError(f"{path}: missing or unknown field {wrong[0][:40]!r}")
        return kind(**{name: reader(given[name], f"{path}.{name}") for name, reader in readers.items()})

    return read
