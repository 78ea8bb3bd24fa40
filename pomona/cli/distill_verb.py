"""`pomona distill STUDENT --teacher RUN [--run OUT] [--part.field VALUE ...]`."""

from pathlib import Path

from pomona.cli.parse import configure_run, take
from pomona.core.config import did_you_mean
from pomona.core.errors import UserError
from pomona.recipes.registry import RECIPES
from pomona.train.config import Run

USAGE = """\
usage: pomona distill STUDENT --teacher RUN [--run OUT] [--part.field VALUE ...]

Trains STUDENT on what the run folder RUN expects, into OUT. STUDENT is a run folder, whose newest checkpoint is where
training begins, or the name of a recipe, to begin at random weights.

  --teacher RUN    the teacher, with the student's tokenizer; its newest checkpoint
  --run OUT        the run folder to write; STUDENT-distilled by default, runs/RECIPE-distilled for a recipe

The teacher's most likely tokens are computed once and kept beside the text (2 bytes a token). The same command goes on
after a kill, there as in training. The stages are the student's own, the first of them distilled.
`pomona distill STUDENT --teacher RUN --help` lists every setting, such as --objective.target logits.
"""

DESCRIPTION = """\
Distils {teacher} into {student}. --teacher RUN and --run OUT are the verb's own; what follows are the settings of the
run, by default those of {student}.
"""


def run(arguments: list[str]) -> None:
    """Resolves the configuration, then labels and trains."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return
    configured, path = resolve(arguments[0], arguments[1:])
    import jax

    from pomona.compress.distill import distill

    result = distill(configured, path)
    if jax.process_index() != 0:
        return
    print(f"\nbits per byte on held-out text: {result['bits_per_byte']:.3f}", end="")
    if "bits_per_byte_before" in result:
        print(f" (before distillation: {result['bits_per_byte_before']:.3f})", end="")
    print(f"\nwritten to {path}: config.json, metrics.jsonl, events.jsonl, tokenizer/, checkpoints/")
    print(f"next: pomona palettize {path} --bits 3.7")


def resolve(student: str, arguments: list[str]) -> tuple[Run, Path]:
    """The student's run with its overrides, and the run folder.

    Raises:
        UserError: an unknown student, no teacher, or an unknown setting or value.
    """
    teacher, rest = take(arguments, "--teacher", "runs/parent")
    folder, rest = take(rest, "--run", "runs/mine-distilled")
    if teacher is None:
        raise UserError(
            "--teacher is missing.",
            "a student learns from the run folder of another model.",
            f"pomona distill {student} --teacher runs/parent",
        )
    from pomona.compress.distill import student_run

    default = student_run(_student(student), Path(teacher))
    description = DESCRIPTION.format(teacher=teacher, student=student)
    configured = configure_run(default, rest, f"distill {student}", description, also=("--teacher", "--run"))
    return configured, Path(folder or f"{student if _is_folder(student) else f'runs/{student}'}-distilled")


def _student(name: str) -> Path | Run:
    """A run folder, or the run of a recipe."""
    if _is_folder(name):
        return Path(name)
    if name in RECIPES:
        return RECIPES[name]()
    raise UserError(
        f"there is neither a run folder nor a recipe {name!r}.",
        "a student is the folder of a run, or a recipe to begin at random weights.",
        did_you_mean(name, RECIPES),
    )


def _is_folder(name: str) -> bool:
    return (Path(name) / "config.json").exists()
