"""`pomona launch local|gke|slurm RECIPE ...`."""

import dataclasses
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from pomona.cli.parse import options, parse, take
from pomona.cli.train_verb import resolve
from pomona.core.config import did_you_mean
from pomona.core.errors import USER_ERROR, UserError
from pomona.core.run_folder import RunFolder, record_event

T = TypeVar("T")

USAGE = """\
usage: pomona launch local RECIPE --processes N [--run FOLDER] [--part.field VALUE ...]

Trains a recipe as several processes:

  local   on this machine, one process for each share of its cores or for each GPU

A job that breaks is started again and goes on after its newest checkpoint. The recipe's settings follow as in
`pomona train RECIPE`. `pomona launch local --help` says more.
"""


@dataclasses.dataclass(frozen=True)
class Local:
    """Trains a recipe as several processes on this machine. Its settings follow as in `pomona train RECIPE`."""

    recipe: Annotated[str, tyro.conf.Positional]
    """What is trained; `pomona recipes` lists them."""
    processes: int
    """How many; each has one device: a share of the cores, or one GPU."""
    max_restarts: int = 3
    """How often a job that breaks is started again."""


def run(arguments: list[str]) -> None:
    """Starts the job, or writes what starts it."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return
    launcher, *rest = arguments
    if launcher not in LAUNCHERS:
        raise UserError(
            f"there is no launcher {launcher!r}.",
            "the word after `pomona launch` says where the run is started.",
            did_you_mean(launcher, LAUNCHERS),
        )
    LAUNCHERS[launcher](rest)


def split(kind: type[T], arguments: list[str], launcher: str) -> tuple[T, list[str]]:
    """The launcher's own options, and what is left for the recipe.

    Raises:
        UserError: an option is missing or has a wrong value.
    """
    if {"-h", "--help"} & set(arguments):
        parse(kind, ["--help"], f"launch {launcher}")
    mine: list[str] = []
    for name in options(kind):
        value, arguments = take(arguments, name, "VALUE")
        mine += [name, value] if value is not None else []
    words = arguments[:1] if arguments and not arguments[0].startswith("--") else []
    return parse(kind, words + mine, f"launch {launcher}"), arguments[len(words) :]


def _local(arguments: list[str]) -> None:
    """Runs the job here; leaves with its exit code."""
    from pomona.launch.local import Job, check_job, run_job

    asked, rest = split(Local, arguments, "local")
    configured, path = resolve(asked.recipe, rest)
    check_job(configured, asked.processes, asked.max_restarts)
    folder = RunFolder(path)
    command = (sys.executable, "-m", "pomona.cli.main", "train", asked.recipe, "--run", str(path), *without_run(rest))
    folder.logs.mkdir(parents=True, exist_ok=True)

    def restarting(code: int, count: int) -> None:
        if folder.config.exists():
            record_event(folder, "restart", exit_code=code, restart=count)

    code = run_job(Job(command, asked.processes, folder.logs, asked.max_restarts), restarting)
    if code == USER_ERROR and not folder.config.exists():
        shutil.rmtree(folder.logs)  # no run came of it
    if code:
        sys.exit(code)


def without_run(arguments: list[str]) -> list[str]:
    """The settings alone."""
    return take(arguments, "--run", "runs/mine")[1]


LAUNCHERS: dict[str, Callable[[list[str]], None]] = {"local": _local}
