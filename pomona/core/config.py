"""Configuration is frozen nested dataclasses: JSON in and out, fingerprints, differences, checked changes.

Nothing here knows what is configured. A config type is a frozen dataclass whose fields are numbers, strings,
booleans, `None`, tuples and further config types; a union of config types is told apart by a `kind` field.
"""

import dataclasses
import difflib
import hashlib
import json
import types
import typing
from typing import Any, TypeVar

from pomona.core.errors import UserError

C = TypeVar("C")


def to_json(config: Any) -> Any:
    """The plain JSON value of a config: dicts, lists, numbers, strings."""
    if dataclasses.is_dataclass(config):
        values = {field.name: (getattr(config, field.name), field.type) for field in dataclasses.fields(config)}
        # A float field may hold an int in a recipe; written as a float, it reads back to the same fingerprint.
        return {
            name: float(value) if kind is float and type(value) is int else to_json(value)
            for name, (value, kind) in values.items()
        }
    if isinstance(config, (tuple, list)):
        return [to_json(item) for item in config]
    assert config is None or isinstance(config, (bool, int, float, str)), f"not a config value: {config!r}"
    return config


def from_json(kind: Any, value: Any, path: str = "config") -> Any:
    """Builds a config of type `kind` from what `to_json` gave.

    Raises:
        UserError: an unknown or missing field, or a value of the wrong type; the message names its path.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _dataclass_from_json(kind, value, path)
    if origin in (types.UnionType, typing.Union):
        return _union_from_json(arguments, value, path)
    if origin is tuple and isinstance(value, list):
        item_kinds = [arguments[0]] * len(value) if arguments[-1] is ... else arguments
        return tuple(from_json(k, item, f"{path}.{i}") for i, (k, item) in enumerate(zip(item_kinds, value)))
    if origin is typing.Literal:
        if value not in arguments:
            raise _wrong(path, value, "one of " + ", ".join(map(repr, arguments)))
        return value
    if kind is float and type(value) in (int, float):
        return float(value)
    if (kind is types.NoneType and value is None) or (isinstance(kind, type) and type(value) is kind):
        return value
    raise _wrong(path, value, getattr(kind, "__name__", str(kind)))


def fingerprint(config: Any) -> str:
    """Twelve hex digits that differ whenever any field does."""
    text = json.dumps(to_json(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every leaf by its dotted path: `{"optimizer.learning_rate": 0.01, "stages.0.steps": 100, ...}`."""
    if dataclasses.is_dataclass(config):
        items = [(field.name, getattr(config, field.name)) for field in dataclasses.fields(config)]
    elif isinstance(config, tuple) and any(dataclasses.is_dataclass(item) for item in config):
        items = [(str(index), item) for index, item in enumerate(config)]
    else:
        return {prefix: config}
    leaves: dict[str, Any] = {}
    for name, item in items:
        leaves |= flatten(item, f"{prefix}.{name}" if prefix else name)
    return leaves


def differences(old: Any, new: Any) -> list[str]:
    """One line per leaf that differs, `path: old -> new`, in path order."""
    a, b = flatten(old), flatten(new)
    return [
        f"{path}: {a.get(path, '(absent)')} -> {b.get(path, '(absent)')}"
        for path in sorted(a.keys() | b.keys())
        if a.get(path, ...) != b.get(path, ...)
    ]


def did_you_mean(name: str, known: typing.Iterable[str]) -> str:
    """A sentence that offers the nearest known names, for the last part of a `UserError`."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"one of: {', '.join(known)}."


def _dataclass_from_json(kind: type, value: Any, path: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(path, value, kind.__name__)
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in value.keys() - fields.keys():
        raise UserError(
            f"{path}.{name} is not a field of {kind.__name__}.",
            "a config holds exactly the fields this version of Pomona knows.",
            did_you_mean(name, fields),
        )
    for name, field in fields.items():
        has_default = (field.default, field.default_factory) != (dataclasses.MISSING, dataclasses.MISSING)
        if name not in value and not has_default:
            raise UserError(f"{path}.{name} is missing.", f"{kind.__name__} needs it.", "add the field.")
    return kind(**{name: from_json(hints[name], value[name], f"{path}.{name}") for name in value})


def _union_from_json(kinds: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and types.NoneType in kinds:
        return None
    for kind in kinds:
        tag = getattr(kind, "kind", None)  # the class attribute is the default of the `kind` field
        if tag is not None and (not isinstance(value, dict) or value.get("kind") != tag):
            continue
        if kind is not types.NoneType:
            return from_json(kind, value, path)
    raise _wrong(path, value, " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds))


def _wrong(path: str, value: Any, expected: str) -> UserError:
    return UserError(f"{path} is {value!r}.", f"it has to be {expected}.", f"give {path} another value.")
