"""Plain JSON values as frozen data again, checked by the types of the fields."""

from __future__ import annotations

import json
import math
import reprlib
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from flopcallback.profile.numbers import LARGEST, is_whole

__all__ = ["loaded", "parsed", "read"]

# A function of a plain value and its place, such as "modules[3].flops".
Reader = Callable[[Any, str], Any]

DEEPEST = 64
"""Levels of lists and objects inside a value of free form. Python itself gives up at some hundred."""


def parsed(text: str | bytes) -> Any:
    """Parse strict JSON.

    Raises:
        ValueError: the text is no JSON, has NaN or an infinity, or is nested too deeply for Python's parser.
    """
    try:
        return loaded(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None


def loaded(text: str | bytes, *, parse_constant: Callable[[str], Any] | None = None) -> Any:
    """Parse JSON, which may have NaN and infinities.

    Args:
        text: the text.
        parse_constant: function of the names of these, in place of floats.

    Raises:
        ValueError: the text is no JSON, or has an integer of more digits than Python reads.
        RecursionError: it is nested too deeply for Python's parser.
    """
    try:
        return json.loads(text, parse_constant=parse_constant)
    except (json.JSONDecodeError, UnicodeDecodeError, _NoJsonError):
        raise
    except ValueError:  # Python's own text tells how to raise the limit, which would not help
        raise ValueError("an integer has too many digits to be a number of a training") from None


class _NoJsonError(ValueError):
    """Error for NaN or an infinity."""


def _refuse_constant(name: str) -> Any:
    raise _NoJsonError(f"{name} is no JSON")


def read(kind: Any, value: Any, place: str = "", optional: tuple[str, ...] = ()) -> Any:
    """Convert a plain value to a type of a profile.

    Such a type is int or float (0 or more), `int | float` (of any sign), bool, str, None, a union of these, a tuple, a
    mapping, or a dataclass of all of them. A value of any other type is of free form.

    Args:
        kind: the type.
        value: the value, as JSON gives it.
        place: place of the value, for errors.
        optional: names of fields, at any depth, that may be missing and then have their defaults.

    Raises:
        ValueError: the value is of another type; the message names its place.
    """
    return _reader_of(kind, optional)(value, place)


@cache
def _reader_of(kind: Any, optional: tuple[str, ...]) -> Reader:
    if is_dataclass(kind) and isinstance(kind, type):
        return _object_reader(kind, optional)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        inner = [_reader_of(each, optional) for each in arguments if each is not types.NoneType]
        if len(inner) == 1 and types.NoneType in arguments:
            return _optional(inner[0])
        if set(arguments) <= {int, float, types.NoneType}:
            return _number if types.NoneType not in arguments else _number_or_none
    if origin is tuple:
        return _tuple_reader(arguments, optional)
    if origin is not None and issubclass(origin, Mapping):
        inner_kind = _reader_of(arguments[1], optional)
        # A number that is not finite is written as null.
        return _mapping_reader(_number_or_none if inner_kind is _number else inner_kind)
    return {int: _count, float: _amount, bool: _bool, str: _text}.get(kind, _free)


def _optional(inner: Reader) -> Reader:
    def read_(value: Any, place: str) -> Any:
        # Half a pair of quartiles is none.
        return None if value is None or (isinstance(value, list) and None in value) else inner(value, place)

    return read_


def _object_reader(kind: type[Any], optional: tuple[str, ...]) -> Reader:
    hints = get_type_hints(kind)
    readers = {item.name: _reader_of(hints[item.name], optional) for item in fields(kind)}
    has_default = {
        item.name for item in fields(kind) if item.default is not MISSING or item.default_factory is not MISSING
    }
    required = [name for name in readers if name not in has_default or name not in optional]

    def read_(value: Any, place: str) -> Any:
        if not isinstance(value, dict):
            raise _wrong(value, place, "an object")
        for name in required:
            if name not in value:
                raise ValueError(f"{_joined(place, name)} is missing")
        for name in value:
            if name not in readers:
                raise ValueError(f"{_joined(place, name)} is no field that this version knows")
        return kind(**{name: readers[name](item, _joined(place, name)) for name, item in value.items()})

    return read_


def _joined(place: str, name: str) -> str:
    # A name may be any text of the file.
    shown = name if name.isidentifier() else reprlib.repr(name)
    return f"{place}.{shown}" if place else shown


def _tuple_reader(arguments: tuple[Any, ...], optional: tuple[str, ...]) -> Reader:
    inner = _reader_of(arguments[0], optional)
    length = None if arguments[-1] is Ellipsis else len(arguments)

    def read_(value: Any, place: str) -> Any:
        if not isinstance(value, list):
            raise _wrong(value, place, "a list")
        if length is not None and len(value) != length:
            raise _wrong(value, place, f"a list of {length}")
        return tuple([inner(item, f"{place}[{index}]") for index, item in enumerate(value)])

    return read_


def _mapping_reader(inner: Reader) -> Reader:
    def read_(value: Any, place: str) -> Any:
        if not isinstance(value, dict):
            raise _wrong(value, place, "an object")
        return {_text(name, place): inner(item, f"{place}[{reprlib.repr(name)}]") for name, item in value.items()}

    return read_


def _count(value: Any, place: str) -> int:
    if not is_whole(value) or value < 0:
        raise _wrong(value, place, "a whole number of 0 or more, and not beyond 1e300")
    return int(value)


def _amount(value: Any, place: str) -> int | float:
    number = _number(value, place)
    if number < 0:
        raise _wrong(value, place, "a number of 0 or more, and not beyond 1e300")
    return number


def _number(value: Any, place: str) -> int | float:
    if is_whole(value) or (isinstance(value, float) and math.isfinite(value) and abs(value) <= LARGEST):
        return value  # type: ignore[no-any-return]
    raise _wrong(value, place, "a number, and not beyond 1e300")


def _number_or_none(value: Any, place: str) -> int | float | None:
    return None if value is None else _number(value, place)


def _bool(value: Any, place: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(value, place, "true or false")
    return value


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise _wrong(value, place, "a text")
    # Half of a pair of code units is JSON, but no file, terminal or tracker can have it.
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise _wrong(value, place, "a text that UTF-8 can hold")
    return value


def _free(value: Any, place: str, depth: int = 0) -> Any:
    """Read a value of free form: any JSON within bounds."""
    if depth > DEEPEST:
        raise ValueError(f"{place} is nested more than {DEEPEST} levels deep")
    if isinstance(value, str):
        return _text(value, place)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Mapping):
        return {_text(name, place): _free(item, place, depth + 1) for name, item in value.items()}
    if isinstance(value, Sequence):
        return [_free(item, place, depth + 1) for item in value]
    if is_whole(value) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise _wrong(value, place, "a number that a float64 can hold")


def _wrong(value: Any, place: str, expected: str) -> ValueError:
    return ValueError(f"{place or 'the whole'} is {reprlib.repr(value)}; it must be {expected}")
