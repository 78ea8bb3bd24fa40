"""`pomona launch local|gke|slurm RECIPE ...`."""

import dataclasses
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from pomona.cli.parse import parse, take
from pomona.cli.train_verb import resolve
from pomona.core.config import did_you_mean
from pomona.core.errors import USER_ERROR, UserError
from pomona.core.files import disk_errors
from pomona.core.fleet import parse_fleet
from pomona.core.run_folder import RunFolder, record_event

T = TypeVar("T", "Local", "Gke", "Slurm")

USAGE = """\
usage: pomona launch local RECIPE --processes N [--run FOLDER] [--part.field VALUE ...]
       pomona launch gke RECIPE --chips CHIPS [--slices N] --image IMAGE --bucket ADDRESS [--part.field VALUE ...]
       pomona launch slurm RECIPE --chips CHIPS [--run FOLDER] [--part.field VALUE ...]

Trains a recipe as several processes:

  local   on this machine, each with one device: a share of the cores, or one GPU
  gke     writes a Kubernetes JobSet for TPU slices or GPU nodes of Google Kubernetes Engine
  slurm   writes an sbatch script for GPU nodes

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


@dataclasses.dataclass(frozen=True)
class Gke:
    """Writes a Kubernetes JobSet that trains a recipe on TPU slices or GPU nodes of Google Kubernetes Engine. The
    recipe's settings follow as in `pomona train RECIPE`."""

    recipe: Annotated[str, tyro.conf.Positional]
    """What is trained; `pomona recipes` lists them."""
    chips: str
    """How many of which chip, by the cloud's name (v5p-4096, h100-64) or as one slice's exact torus (v4:8x8x16)."""
    image: str
    """The container image; it has the command pomona and a JAX for these chips."""
    bucket: str
    """Where the run is kept, as an address: gs://BUCKET or gs://BUCKET/FOLDER. The run is the folder NAME in it. Paths
    of settings may begin with /bucket, where every pod mounts it."""
    slices: int = 1
    """TPU slices, joined by the data-centre network."""
    name: str | None = None
    """The JobSet's name; the recipe's by default."""
    output: str | None = None
    """The file to write, - to print it; NAME.yaml by default."""
    service_account: str | None = None
    """The Kubernetes service account, which may write to the bucket; the namespace's default one by default."""
    env: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """NAME=VALUE, a variable for every process; may be given several times."""
    max_restarts: int = 20
    """How often a job that breaks is started again; preemptions do not count."""
    grace_seconds: int = 600
    """Time to save a checkpoint when the pods are asked to end."""


@dataclasses.dataclass(frozen=True)
class Slurm:
    """Writes an sbatch script that trains a recipe on GPU nodes. Its settings follow as in `pomona train RECIPE`."""

    recipe: Annotated[str, tyro.conf.Positional]
    """What is trained; `pomona recipes` lists them."""
    chips: str
    """How many of which GPU: h100-64."""
    name: str | None = None
    """The job's name; the recipe's by default."""
    output: str | None = None
    """The file to write, - to print it; NAME.sbatch by default."""
    time: str | None = None
    """The time limit, as Slurm writes it; the partition's by default."""
    partition: str | None = None
    """The partition; the cluster's default one by default."""
    account: str | None = None
    """The account that pays."""
    max_restarts: int = 20
    """A job that breaks is queued again until it has been so often in all; one whose time is over always is."""
    grace_seconds: int = 600
    """Time to save a checkpoint before the time limit."""


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


def _split(kind: type[T], arguments: list[str], launcher: str) -> tuple[T, list[str]]:
    """The launcher's own options, and what is left for the recipe.

    Raises:
        UserError: an option is missing or has a wrong value.
    """
    if {"-h", "--help"} & set(arguments):
        parse(kind, ["--help"], f"launch {launcher}")
    mine: list[str] = []
    for field in dataclasses.fields(kind):
        name = "--" + field.name.replace("_", "-")
        while field.default == () and name in (flags := [argument.split("=")[0] for argument in arguments]):
            first = flags.index(name)
            after = first + (1 if "=" in arguments[first] else 2)
            mine.append(f"{name}={take(arguments[first:after], name, 'VALUE')[0]}")
            arguments = arguments[:first] + arguments[after:]
        value, arguments = take(arguments, name, "VALUE")
        mine += [f"{name}={value}"] if value is not None else []
    words = arguments[:1] if arguments and not arguments[0].startswith("--") else []
    return parse(kind, words + mine, f"launch {launcher}"), arguments[len(words) :]


def _local(arguments: list[str]) -> None:
    """Runs the job here; leaves with its exit code."""
    from pomona.launch.job import train_command
    from pomona.launch.local import Job, check_job, run_job

    asked, settings = _split(Local, arguments, "local")
    configured, path = resolve(asked.recipe, settings)
    check_job(configured, asked.processes, asked.max_restarts)
    folder = RunFolder(path)
    _, settings = take(settings, "--run", "runs/mine")
    command = (sys.executable, "-m", "pomona.cli.main", *train_command(asked.recipe, str(path), settings))
    with disk_errors(folder.logs):
        folder.logs.mkdir(parents=True, exist_ok=True)

    def restarting(code: int, count: int) -> None:
        if folder.config.exists():
            record_event(folder, "restart", exit_code=code, restart=count)

    code = run_job(Job(command, asked.processes, folder.logs, asked.max_restarts), restarting)
    if code == USER_ERROR and not folder.config.exists():
        shutil.rmtree(folder.logs)  # no run came of it
    if code:
        sys.exit(code)


def _gke(arguments: list[str]) -> None:
    """Writes the JobSet."""
    from pomona.launch.gke import GkeJob, check_gke, render
    from pomona.launch.job import default_name

    asked, settings = _split(Gke, arguments, "gke")
    configured, _ = resolve(asked.recipe, settings)
    if take(settings, "--run", "runs/mine")[0] is not None:
        raise UserError(
            "--run is no setting of `pomona launch gke`.",
            "a pod's disk ends with the pod, so the run is the folder NAME of the bucket.",
            "--bucket gs://BUCKET/FOLDER --name NAME",
        )
    job = GkeJob(
        name=default_name(asked.recipe) if asked.name is None else asked.name,
        fleet=parse_fleet(asked.chips, asked.slices),
        image=asked.image,
        bucket=asked.bucket,
        recipe=asked.recipe,
        settings=tuple(settings),
        max_restarts=asked.max_restarts,
        grace_seconds=asked.grace_seconds,
        environment=asked.env,
        service_account=asked.service_account,
    )
    check_gke(job, configured)
    _write(asked.output, f"{job.name}.yaml", lambda _: render(job), "kubectl apply -f {file}")


def _slurm(arguments: list[str]) -> None:
    """Writes the script."""
    from pomona.launch.job import default_name
    from pomona.launch.slurm import SlurmJob, check_slurm, render

    asked, settings = _split(Slurm, arguments, "slurm")
    configured, _ = resolve(asked.recipe, settings)
    folder, settings = take(settings, "--run", "runs/mine")
    job = SlurmJob(
        name=default_name(asked.recipe) if asked.name is None else asked.name,
        fleet=parse_fleet(asked.chips),
        run=folder or f"runs/{asked.recipe}",
        recipe=asked.recipe,
        settings=tuple(settings),
        time=asked.time,
        partition=asked.partition,
        account=asked.account,
        max_restarts=asked.max_restarts,
        grace_seconds=asked.grace_seconds,
    )
    check_slurm(job, configured)
    _write(asked.output, f"{job.name}.sbatch", lambda file: render(job, file), "sbatch {file}")


def _write(output: str | None, default: str, text: Callable[[str], str], command: str) -> None:
    """Writes the text, or prints it, and says the one command that is left."""
    from pomona.launch.job import write_new

    file = default if output in (None, "-") else str(output)
    if output == "-":
        print(text(file), end="")
        return
    write_new(Path(file), text(file))
    print(f"written to {file}\nnext: {command.format(file=shlex.quote(file))}")


LAUNCHERS: dict[str, Callable[[list[str]], None]] = {"local": _local, "gke": _gke, "slurm": _slurm}
