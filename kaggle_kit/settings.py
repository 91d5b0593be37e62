"""Turn plain values (YAML, JSON, Hydra) into frozen dataclasses, refusing whatever does not fit.

The dataclasses own names, types, ranges and defaults; files hold values only. `build` reads the annotations:
`int`, `float`, `str`, `bool`, `Literal`, `X | None`, `tuple[X, ...]`, `tuple[X, Y]`, `dict[str, X]` and nested
dataclasses are understood. Ranges are checked by each dataclass's own `__post_init__`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from kaggle_kit.errors import SettingError, did_you_mean

T = TypeVar("T")


def build(cls: type[T], values: object, *, where: str = "") -> T:
    """Make the dataclass `cls` from a mapping of plain values.

    Args:
        cls: A dataclass.
        values: A mapping of its field names to plain values; nested dataclasses are nested mappings.
        where: The dotted key of `values` in its file, for messages.

    Raises:
        SettingError: For an unknown key, a missing one, a wrong type, or a value the dataclass refuses.
    """
    if not isinstance(values, Mapping):
        raise SettingError(f"{_at(where)}expected a mapping of settings, found {_shown(values)}")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in fields:
            dotted = _join(where, str(key))
            raise SettingError(f"`{dotted}` is not a setting{did_you_mean(str(key), fields)}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise SettingError(f"`{_join(where, name)}` is missing; add it (a {_type_name(hints[name])})")
    made = {key: _convert(hints[key], value, _join(where, key)) for key, value in values.items()}
    try:
        return cls(**made)
    except SettingError as error:
        raise SettingError(f"{_at(where)}{error}") from None


def plain(value: object) -> Any:
    """Return `value` as JSON-ready plain values: the inverse of `build`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return value


def fingerprint(value: object) -> str:
    """Return 12 hexadecimal digits that change whenever any setting in `value` does."""
    text = json.dumps(plain(value), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _convert(hint: Any, value: object, where: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(args, value, where)
    if origin is Literal:
        return _checked(value in args and type(value) in {type(arg) for arg in args}, hint, value, where)
    if origin is tuple:
        return _convert_tuple(hint, args, value, where)
    if origin is dict:
        _checked(isinstance(value, Mapping), hint, value, where)
        items = typing.cast("Mapping[str, object]", value).items()
        return {str(key): _convert(args[1], item, _join(where, str(key))) for key, item in items}
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, where=where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is type(None):
        return _checked(value is None, hint, value, where)
    right = isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool)
    return _checked(right, hint, value, where)


def _convert_union(args: tuple[Any, ...], value: object, where: str) -> Any:
    problems = []
    for option in args:
        try:
            return _convert(option, value, where)
        except SettingError as error:
            problems.append(error)
    structured = [p for p, option in zip(problems, args, strict=True) if dataclasses.is_dataclass(option)]
    if structured and isinstance(value, Mapping):
        raise structured[0]
    names = " or ".join(_type_name(option) for option in args)
    raise SettingError(f"`{where}` is {_shown(value)}; expected {names}")


def _convert_tuple(hint: Any, args: tuple[Any, ...], value: object, where: str) -> tuple[Any, ...]:
    _checked(isinstance(value, (list, tuple)), hint, value, where)
    items = list(typing.cast("list[object]", value))
    kinds = [args[0]] * len(items) if args[-1] is Ellipsis else list(args)
    _checked(len(items) == len(kinds), hint, value, where)
    return tuple(
        _convert(kind, item, f"{where}[{index}]") for index, (kind, item) in enumerate(zip(kinds, items, strict=True))
    )


def _checked(right: bool, hint: Any, value: object, where: str) -> Any:
    if not right:
        hint_text = _type_name(hint)
        close = did_you_mean(str(value), get_args(hint)) if get_origin(hint) is Literal else ""
        close = close if "did you mean" in close else ""
        raise SettingError(f"`{where}` is {_shown(value)}; expected {hint_text}{close}")
    return value


def _type_name(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(repr(arg) for arg in args)
    if origin in (Union, types.UnionType):
        return " or ".join(_type_name(arg) for arg in args)
    if origin is tuple:
        inner = _type_name(args[0])
        return f"a list of {inner}" if args[-1] is Ellipsis else f"a list of {len(args)} x {inner}"
    if origin is dict or dataclasses.is_dataclass(hint):
        return "mapping"
    return "null" if hint is type(None) else str(getattr(hint, "__name__", hint))


def _shown(value: object) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _at(where: str) -> str:
    return f"`{where}`: " if where else ""
