"""Command lines from types, by tyro, with our three-part errors."""

import contextlib
import dataclasses
import io
import re
import sys
from collections.abc import Callable
from typing import Any, TypeVar, get_args, get_type_hints

import tyro

from pomona.core.config import did_you_mean, flatten
from pomona.core.errors import UserError

T = TypeVar("T")


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
        raise UserError(
            _message(caught.getvalue()), "arguments have names and types.", f"pomona {verb} --help"
        ) from None


def check_names(config: Any, arguments: list[str], verb: str) -> None:
    """Catches a misspelt override before tyro does, to offer the nearest name.

    Raises:
        UserError: an argument begins with `--` and names no field of `config`, or a whole part of it.
    """
    choices = _choices(config)
    others = {f"{part}.{f.name}" for part, classes in choices.items() for c in classes for f in dataclasses.fields(c)}
    known = {"--" + path.replace("_", "-") for path in {*flatten(config), *others}} | {"--help", "--run"}
    groups = {name.rsplit(".", depth)[0] for name in known for depth in range(1, name.count(".") + 1)}
    for argument in arguments:
        name = argument.split("=")[0].replace("_", "-")
        bare = re.sub(r"^--no-|(?<=\.)no-", lambda m: "--" if m.group().startswith("--") else "", name)
        if name in groups:
            options = [_spelt(name[2:], choice) for choice in choices.get(name[2:], [])]
            options += sorted(each for each in known if each.startswith(name + "."))
            raise UserError(
                f"{name} is a part of the configuration, not a setting.",
                "an override names one field, --part.field VALUE; a part with several kinds is chosen as part:kind.",
                " or ".join(options[:3]) + f". `pomona {verb} --help` lists all.",
            )
        if argument.startswith("--") and not {name, bare} & known:
            raise UserError(
                f"{argument.split('=')[0]} is no setting of this recipe.",
                "an override names a field of the configuration: --part.field VALUE.",
                f"{did_you_mean(name, known)} `pomona {verb} --help` lists all.",
            )


def _choices(config: Any) -> dict[str, list[Any]]:
    """The parts of a configuration that can be of several classes."""
    hints = get_type_hints(type(config)).items()
    classes = {part: [each for each in get_args(hint) if dataclasses.is_dataclass(each)] for part, hint in hints}
    return {part: each for part, each in classes.items() if len(each) > 1}


def _spelt(part: str, choice: type) -> str:
    """`optimizer:adam-w`, as tyro spells a class."""
    return f"{part}:" + re.sub(r"(?<=[a-z])(?=[A-Z])", "-", choice.__name__).lower()


def _message(printed: str) -> str:
    """tyro's error without its frame."""
    lines = [re.sub(r"[╭╮╰╯│─]", "", line).strip() for line in printed.splitlines()]
    kept = [line for line in lines if line and not line.startswith(("For full helptext", "Parsing error"))]
    return " ".join(kept) or "the arguments could not be read"


def print_stdout(text: str) -> None:
    """Prints, whatever the terminal's encoding can show."""
    sys.stdout.buffer.write(text.encode(sys.stdout.encoding or "utf-8", errors="replace"))
    sys.stdout.flush()
