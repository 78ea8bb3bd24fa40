"""What every launcher asks of a run before it starts or writes anything, and what the processes are to run."""

import math
import re
from pathlib import Path

from pomona.core.errors import UserError
from pomona.core.files import write_text
from pomona.parallel.config import shards
from pomona.train.config import Run, check_run, check_stage_mesh, mesh_option, stage_sizes

LABEL = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")


def check_fits(run: Run, devices: int, instead: str) -> None:
    """What can be seen to be wrong with this run on so many devices.

    Args:
        instead: what to type where they cannot share a batch; {devices} of them could, or all with {seq} along the axis
            {mesh}.seq.

    Raises:
        UserError: the run itself, the mesh of a stage, or a batch that the devices cannot share.
    """
    check_run(run)
    batches = [stage.batch_size // (stage.micro_batches or 1) for stage in run.stages]
    for index, stage in enumerate(run.stages):
        sizes = stage_sizes(run, index, devices)
        parts = shards("batch", sizes)
        together = [rows for rows, other in zip(batches, run.stages) if other.mesh == stage.mesh]
        possible = math.gcd(parts, *together)
        if batches[index] % parts:
            raise UserError(
                f"{devices} devices share {batches[index]} sequences of stage {stage.name!r} in {parts} parts.",
                "the parts of a batch (or micro-batch) are equal.",
                instead.format(
                    devices=devices // parts * possible,
                    seq=shards("tokens", sizes) * parts // possible,
                    mesh=mesh_option(run, index),
                ),
            )
        check_stage_mesh(run, index, devices)


def train_command(recipe: str, run: str, settings: list[str]) -> list[str]:
    """What one process runs, after the program's name."""
    return ["train", recipe, "--run", run, *settings]


def check_name(name: str, longest: int) -> None:
    """Raises `UserError` where `name` is no DNS label of RFC 1035 with at most `longest` characters."""
    if not LABEL.fullmatch(name) or len(name) > longest:
        near = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-0123456789")[:longest].rstrip("-")
        raise UserError(
            f"{name!r} cannot be the job's name.",
            f"it becomes a host's name: lower-case letters, digits and dashes, a letter first, {longest} at most.",
            f"--name {near or 'run'}",
        )


def default_name(recipe: str) -> str:
    """The recipe's name as a host's name."""
    return recipe.replace("_", "-")


def write_new(path: Path, text: str) -> None:
    """Writes a file that nobody has written before.

    Raises:
        UserError: it exists.
    """
    if path.exists():
        raise UserError(
            f"{path} exists already.",
            "a file that may have been edited is not overwritten.",
            f"--output {path.with_stem(path.stem + '-2')}, or --output - to print it",
        )
    write_text(path, text)
