"""Command lines from types, by tyro, with our three-part errors."""

import contextlib
import io
import re
import sys
from collections.abc import Callable
from typing import Any, TypeVar

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
                config=(tyro.conf.OmitArgPrefixes,) if options.pop("flat", False) else (),
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
        UserError: an argument begins with `--` and names no field of `config`.
    """
    known = {"--" + path.replace("_", "-") for path in flatten(config)} | {"--help", "--run"}
    groups = {name.rsplit(".", depth)[0] for name in known for depth in range(1, name.count(".") + 1)}
    for argument in arguments:
        name = argument.split("=")[0].replace("_", "-")
        bare = re.sub(r"^--no-|(?<=\.)no-", lambda m: "--" if m.group().startswith("--") else "", name)
        if argument.startswith("--") and not {name, bare} & (known | groups):
            raise UserError(
                f"{argument.split('=')[0]} is no setting of this recipe.",
                "an override names a field of the configuration: --part.field VALUE.",
                f"{did_you_mean(name, known)} `pomona {verb} --help` lists all.",
            )


def _message(printed: str) -> str:
    """tyro's error without its frame."""
    lines = [re.sub(r"[╭╮╰╯│─]", "", line).strip() for line in printed.splitlines()]
    kept = [line for line in lines if line and not line.startswith(("For full helptext", "Parsing error"))]
    return " ".join(kept) or "the arguments could not be read"


def print_stdout(text: str) -> None:
    """Prints, whatever the terminal's encoding can show."""
    sys.stdout.buffer.write(text.encode(sys.stdout.encoding or "utf-8", errors="replace"))
    sys.stdout.flush()
