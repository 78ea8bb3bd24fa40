"""Command lines from types, by tyro, with our three-part errors."""

import contextlib
import dataclasses
import io
import itertools
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, TypeVar, get_args, get_type_hints

import tyro

from pomona.core.config import did_you_mean
from pomona.core.errors import UserError
from pomona.recipes.registry import recipe
from pomona.train.config import Run

T = TypeVar("T")

RULES = {
    "Value error": "a value has the type of its option",
    "Invalid choice": "an option takes one of the values that the help lists",
    "Missing argument": "an option is followed by its value",
    "Required options": "what has no default has to be given",
    "Unrecognized options": "every value follows its option's name; a switch takes no value",
}


def parse(function: Callable[..., T] | type[T], arguments: list[str], verb: str, **options: Any) -> T:
    """What tyro makes of the arguments; `--help` prints and leaves with 0.

    Raises:
        UserError: an argument is unknown, missing or of the wrong type.
    """
    caught = io.StringIO()
    try:
        with contextlib.redirect_stderr(caught):
            return tyro.cli(
                function,
                prog=f"pomona {verb}",
                args=arguments,
                config=(tyro.conf.CascadeSubcommandArgs,),
                **options,
            )
    except SystemExit as leaving:
        if leaving.code in (0, None):
            raise
        raise _error(caught.getvalue(), verb) from None


def take(arguments: list[str], name: str, example: str) -> tuple[str | None, list[str]]:
    """The value of an option that is no field, or None, and the other arguments.

    Raises:
        UserError: the option has no value, or is given twice.
    """
    value: str | None = None
    rest: list[str] = []
    left = iter(arguments)
    for argument in left:
        if argument != name and not argument.startswith(name + "="):
            rest.append(argument)
            continue
        given = next(left, "") if argument == name else argument.split("=", 1)[1]
        if not given or given.startswith("--"):
            raise UserError(f"{name} has no value.", f"{name} is followed by its value.", f"{name} {example}")
        if value is not None:
            raise UserError(f"{name} is given twice.", "an option has one value.", f"{name} {given}")
        value = given
    return value, rest


def take_whole(arguments: list[str], name: str, example: str = "100") -> tuple[int | None, list[str]]:
    """As `take`, for an option that is a whole number from 1 on."""
    value, rest = take(arguments, name, example)
    if value is not None and not (value.isdecimal() and int(value) > 0):
        raise UserError(f"{name} is {value!r}.", f"{name} is a whole number, at least 1.", f"{name} {example}")
    return (None if value is None else int(value)), rest


def take_fields(arguments: list[str], kind: type) -> tuple[list[str], list[str]]:
    """The arguments that are fields of a flat config class, and the others; a verb's options beside a recipe's.

    Raises:
        UserError: an option has no value, or is given twice.
    """
    hints = get_type_hints(kind)
    own: list[str] = []
    for field in dataclasses.fields(kind):
        name = f"--{field.name.replace('_', '-')}"
        if hints[field.name] is bool:
            given = [argument for argument in arguments if argument.split("=")[0] == name]
            own, arguments = own + given[:1], [argument for argument in arguments if argument not in given]
            continue
        value, arguments = take(arguments, name, field.metadata.get("example", "VALUE"))
        own += [name, value] if value is not None else []
    return own, arguments


def kinds_first(config: Any, arguments: list[str]) -> list[str]:
    """The arguments with each `part:kind` before the options, where tyro wants it."""
    kinds = {_spelt(part, choice) for part, choices in _choices(config).items() for choice in choices}
    return sorted(arguments, key=lambda argument: argument not in kinds)


def check_names(config: Any, arguments: list[str], verb: str, also: Collection[str] = ()) -> None:
    """Catches a misspelt override before tyro does, to offer the nearest name.

    Args:
        also: options of the verb itself.

    Raises:
        UserError: an argument begins with `--` and names no field of `config`, or a whole part of it.
    """
    choices = _choices(config)
    known = set(options(config)).union(*(options(c, f"--{part}.") for part, each in choices.items() for c in each))
    groups = {name.rsplit(".", depth)[0] for name in known for depth in range(1, name.count(".") + 1)}
    kinds = {_spelt(part, choice) for part, each in choices.items() for choice in each}
    for argument in arguments:
        if argument.split(":")[0] in choices and argument not in kinds:
            raise UserError(
                f"there is no {argument}.",
                "a part with several kinds is chosen as part:kind.",
                did_you_mean(argument, kinds),
            )
        name = argument.split("=")[0].replace("_", "-")
        part = name.removeprefix("--").removesuffix(".kind")
        if name in groups or (name.startswith("--") and part in choices):
            offered = [_spelt(part, choice) for choice in choices.get(part, [])]
            offered += sorted(each for each in known if each.startswith(name + "."))
            raise UserError(
                f"{name} is a part of the configuration, not a setting.",
                "an override names one field, --part.field VALUE; a part with several kinds is chosen as part:kind.",
                " or ".join(offered[:3]) + f". `pomona {verb} --help` lists all.",
            )
        if name.startswith("--") and name not in known | {"--help", *also}:
            last = name.removeprefix("--").rsplit(".")[-1]
            same = sorted(option for option in known if option.rsplit(".")[-1] == last)
            near = f"did you mean {' or '.join(same[:3])}?" if same else did_you_mean(name, known.union(also))
            raise UserError(
                f"{argument.split('=')[0]} is no setting of this recipe.",
                "an override names a field of the configuration: --part.field VALUE.",
                f"{near} " * near.startswith("did") + f"`pomona {verb} --help` lists all.",
            )


def configure(name: str, arguments: list[str], verb: str, description: str, also: Collection[str] = ()) -> Run:
    """The recipe of a name with its overrides.

    Args:
        also: options of the verb itself, which may be meant by a misspelt one.

    Raises:
        UserError: an unknown recipe, setting or value.
    """
    return configure_run(recipe(name)(), arguments, f"{verb} {name}", description, also)


def configure_run(default: Run, arguments: list[str], verb: str, description: str, also: Collection[str] = ()) -> Run:
    """A run with its overrides; the arguments are as for `configure`.

    Raises:
        UserError: an unknown setting or value.
    """
    default = with_parts(default, arguments)
    check_names(default, arguments, verb, also)
    return parse(Run, kinds_first(default, arguments), verb, default=default, description=description)


def with_parts(config: Any, arguments: Collection[str], prefix: str = "--") -> Any:
    """The config with every absent part that an argument sets a field of; only a part of one kind can come so."""
    hints: dict[str, Any] = get_type_hints(type(config))
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value, inside = getattr(config, field.name), f"{prefix}{field.name.replace('_', '-')}."
        if not any(argument.replace("_", "-").startswith(inside) for argument in arguments):
            continue
        kinds: list[Any] = [kind for kind in get_args(hints[field.name]) if dataclasses.is_dataclass(kind)]
        if value is None and len(kinds) == 1 and _has_defaults(kinds[0]):
            changes[field.name] = kinds[0]()
        elif dataclasses.is_dataclass(value):
            changes[field.name] = with_parts(value, arguments, inside)
        elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            items = enumerate(value)
            changes[field.name] = tuple(with_parts(item, arguments, f"{inside}{index}.") for index, item in items)
    return dataclasses.replace(config, **changes)


def options(config: Any, prefix: str = "--") -> Iterator[str]:
    """The options that tyro makes of a config or its class; no configs where some could be, no option."""
    hints = get_type_hints(config if isinstance(config, type) else type(config))
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name, None), field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            yield from options(value, f"{prefix}{name}.")
        elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            for index, item in enumerate(value):
                yield from options(item, f"{prefix}{name}.{index}.")
        elif isinstance(value, bool):
            yield from (f"{prefix}{name}", f"{prefix}no-{name}")
        elif not _configs_inside(hints[field.name]):
            yield f"{prefix}{name}"


def _has_defaults(kind: type) -> bool:
    return all(field.default is not dataclasses.MISSING for field in dataclasses.fields(kind))


def _configs_inside(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint) or any(map(_configs_inside, get_args(hint)))


def _choices(config: Any) -> dict[str, list[Any]]:
    """The parts of a configuration that can be of several classes."""
    hints = get_type_hints(type(config)).items()
    classes = {part: [each for each in get_args(hint) if dataclasses.is_dataclass(each)] for part, hint in hints}
    return {part: each for part, each in classes.items() if len(each) > 1}


def _spelt(part: str, choice: type) -> str:
    """`optimizer:adam-w`, as tyro spells a class."""
    return f"{part}:" + re.sub(r"(?<=[a-z])(?=[A-Z])", "-", choice.__name__).lower()


def _error(printed: str, verb: str) -> UserError:
    """tyro's error, a frame around a title and some parts between lines, as one of ours."""
    title, *lines = (line.strip("╭╮╰╯│ ").strip("─ ") for line in printed.splitlines())
    parts = [" ".join(group) for blank, group in itertools.groupby(lines, key=lambda line: not line) if not blank]
    what = re.sub(r"^Error parsing (\S+):", r"\1 cannot be read:", parts[0]) if parts else title
    rule, fix = RULES.get(title, "arguments have names and types") + ".", f"pomona {verb} --help"
    for part in parts[1:]:
        if part.startswith("Argument helptext: "):
            rule = part.removeprefix("Argument helptext: ")
        elif part.startswith("Perhaps you meant: "):
            fix = f"did you mean {part.removeprefix('Perhaps you meant: ')} Or: {fix}"
    return UserError(what if what.endswith(".") else what + ".", rule, fix)


def refuse(options: Any, names: Iterable[str], what: str, rule: str) -> None:
    """Raises `UserError` where an option is given that this kind of thing does not take."""
    default = {field.name: field.default for field in dataclasses.fields(options)}
    for name in names:
        if getattr(options, name) != default[name]:
            raise UserError(f"--{name.replace('_', '-')} with {what}.", rule, "leave it out.")


def print_stdout(text: str) -> None:
    """Prints, whatever the terminal's encoding can show."""
    sys.stdout.buffer.write(text.encode(sys.stdout.encoding or "utf-8", errors="replace"))
    sys.stdout.flush()
