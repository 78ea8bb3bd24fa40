"""`pomona train RECIPE [--run FOLDER] [--from RUN] [--part.field VALUE ...]`."""

import dataclasses
from pathlib import Path

from pomona.cli.parse import configure, take
from pomona.core.errors import UserError
from pomona.recipes.registry import recipe
from pomona.train.config import Run

USAGE = """\
usage: pomona train RECIPE [--run FOLDER] [--from RUN] [--part.field VALUE ...]

Trains a recipe from its first to its last step into FOLDER (default: runs/RECIPE). If the folder holds the same run
already, training goes on after its newest sound checkpoint. With --from, it begins with the model of another run
instead of random weights. `pomona train RECIPE --help` lists every setting.
"""

DESCRIPTION = """\
{what}
--run FOLDER is where it is trained, or goes on: runs/{name} by default. --from RUN begins with the model of that run
folder's newest checkpoint instead of random weights. Another kind of a part, with settings of its
own, is chosen as part:kind, as in optimizer:adam-w. A stage gets a mesh of its own by naming an axis of
it: stages.0.mesh.seq, with two dashes before it.
"""


def run(arguments: list[str]) -> None:
    """Resolves the configuration, then trains."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return
    name, *rest = arguments
    configured, path = resolve(name, rest)
    import jax

    from pomona.train.loop import train

    result = train(configured, path)
    if jax.process_index() != 0:
        return
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
    folder, rest = take(arguments, "--run", "runs/mine")
    begin, rest = take(rest, "--from", "runs/other")
    if folder and "://" in folder:
        raise UserError(
            f"--run is {folder}.",
            "a run folder is a path on a disk; checkpoints can be copied to an address.",
            f"--run runs/{name} --checkpoint.remote {folder}",
        )
    description = DESCRIPTION.format(name=name, what=(recipe(name).__doc__ or "").strip())
    configured = configure(name, rest, "train", description, also=("--run", "--from"))
    if begin is not None:
        from pomona.train.origin import check_dense, origin_of

        configured = dataclasses.replace(configured, origin=origin_of(Path(begin)))
        check_dense(Path(begin))
    return configured, Path(folder or f"runs/{name}")
