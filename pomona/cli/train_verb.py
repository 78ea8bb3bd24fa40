"""`pomona train RECIPE [--run FOLDER] [--part.field VALUE ...]`."""

from pathlib import Path

from pomona.cli.parse import check_names, parse
from pomona.core.errors import UserError
from pomona.recipes.registry import recipe
from pomona.train.config import Run

USAGE = """\
usage: pomona train RECIPE [--run FOLDER] [--part.field VALUE ...]

Trains a recipe from its first to its last step into FOLDER (default: runs/RECIPE). If the folder holds the same run
already, training goes on after its newest sound checkpoint. `pomona train RECIPE --help` lists every setting.
"""


def run(arguments: list[str]) -> None:
    """Resolves the configuration, then trains."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return
    name, *rest = arguments
    configured, path = resolve(name, rest)
    from pomona.train.loop import train

    result = train(configured, path)
    print(f"\nbits per byte on held-out text: {result['bits_per_byte']:.3f}", end="")
    if "bits_per_byte_before" in result:
        print(f" (before training: {result['bits_per_byte_before']:.3f})", end="")
    print(f"\nwritten to {path}: config.json, metrics.jsonl, events.jsonl, tokenizer/, checkpoints/")
    print(f'next: pomona generate {path} "def main():"')


def resolve(name: str, arguments: list[str]) -> tuple[Run, Path]:
    """The recipe with its overrides, and the run folder.

    Raises:
        UserError: an unknown recipe, setting or value.
    """
    default = recipe(name)()
    check_names(default, arguments, f"train {name}")
    folder, rest = _take(arguments, "--run")
    configured = parse(Run, rest, f"train {name}", default=default)
    return configured, Path(folder or f"runs/{name}")


def _take(arguments: list[str], name: str) -> tuple[str | None, list[str]]:
    """An option of the command that is no field of the configuration."""
    for i, argument in enumerate(arguments):
        if argument == name:
            if i + 1 == len(arguments):
                raise UserError(f"{name} has no value.", f"{name} is followed by a folder.", f"{name} runs/mine")
            return arguments[i + 1], arguments[:i] + arguments[i + 2 :]
        if argument.startswith(name + "="):
            return argument.split("=", 1)[1], arguments[:i] + arguments[i + 1 :]
    return None, arguments
