"""Dataclasses to JSON and back. Their annotations are the schema: what does not fit is refused, by field.

No library does it, as `luce-edu gpu` also runs where there are only PyTorch, transformers, cuda-core and matplotlib.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints, is_typeddict

T = TypeVar("T")


@dataclass(frozen=True)
class Check:
    """What a value must be beside its type, in words that follow "expected"."""

    words: str
    holds: Callable[[Any], object]


Positive = Annotated[float, Check("a number above 0", lambda value: value > 0)]
NotNegative = Annotated[float, Check("a number of 0 or more", lambda value: value >= 0)]
Count = Annotated[int, Check("an integer of 0 or more", lambda value: value >= 0)]
Size = Annotated[int, Check("an integer of 1 or more", lambda value: value >= 1)]
Text = Annotated[str, Check("a text that is not empty", bool)]
Day = Annotated[str, Check("a date such as 2026-11-29", re.compile(r"\d{4}-\d\d-\d\d").fullmatch)]
Scalar = bool | int | float | str | None

_PLAIN = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}
_hints = functools.cache(functools.partial(get_type_hints, include_extras=True))


def read(kind: type[T], value: object, where: str = "") -> T:
    """What JSON holds, as an annotation has it: a dataclass, TypedDict, list, tuple, dict, Literal or plain value.

    A number is finite: JSON has no NaN, but Python reads and writes one.
    Raises ValueError that begins with the field, such as "decode/0/source: ", for any other value.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        found, checks = read(inner[0], value, where), inner[1:]
        for check in checks:
            if not check.holds(found):
                raise _refusal(where, check.words, value)
        return found
    if origin is Literal:
        if value not in inner:
            raise _refusal(where, f"one of {', '.join(inner)}", value)
        return value
    if origin in (Union, UnionType):
        if value is None and NoneType in inner:
            return None
        kinds = [one for one in inner if one is not NoneType]
        return read(type(value) if type(value) in kinds else kinds[-1], value, where)
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            raise _refusal(where, "a list", value)
        return origin(read(inner[0], item, _below(where, i)) for i, item in enumerate(value))
    if origin is dict:
        return {name: read(inner[1], item, _below(where, name)) for name, item in _mapping(value, where).items()}
    if is_dataclass(kind) or is_typeddict(kind):
        return _read_fields(kind, _mapping(value, where), where)
    known = isinstance(value, int | float if kind is float else kind) and (kind is bool or not isinstance(value, bool))
    if not known or (isinstance(value, float) and not math.isfinite(value)):
        raise _refusal(where, _PLAIN[kind], value)
    return value


def _read_fields(kind, value: Mapping, where: str):
    hints = _hints(kind)
    for name in value:
        if name not in hints:
            raise ValueError(f"{_below(where, name)}: unknown; expected some of {', '.join(hints)}")
    if is_dataclass(kind):
        for field in fields(kind):
            if field.name not in value and field.default is MISSING:
                raise ValueError(f"{_below(where, field.name)}: it is missing")
    return kind(**{name: read(hints[name], item, _below(where, name)) for name, item in value.items()})


def as_json(value):
    """Lists, dicts and plain values, as `json` writes them. A field that has its default is left out."""
    if is_dataclass(value):
        found = {field.name: (getattr(value, field.name), field.default) for field in fields(value)}
        return {name: as_json(item) for name, (item, default) in found.items() if default is MISSING or item != default}
    if isinstance(value, Mapping):
        return {name: as_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return value


def checked(row: T) -> T:
    """The same row, read back from its JSON; ValueError, as of `read`, for one that could not be stored."""
    return read(type(row), as_json(row))


def _mapping(value: object, where: str) -> Mapping:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise _refusal(where, "an object with named fields", value)
    return value


def _below(where: str, name: object) -> str:
    return f"{where}/{name}" if where else str(name)


def _refusal(where: str, words: str, value: object) -> ValueError:
    return ValueError(f"{where or 'the record'}: expected {words}, got {repr(value)[:100]}")
