"""`pomona adapt RUN --data task.jsonl [--rank 16] [--run OUT] [--part.field VALUE ...]`."""

from pathlib import Path

from pomona.cli.parse import configure_run, take, take_whole
from pomona.cli.recover_verb import train_adapter
from pomona.core.errors import UserError

USAGE = """\
usage: pomona adapt RUN --data task.jsonl [--rank 16] [--run OUT] [--part.field VALUE ...]

Trains a task adapter on the weights of a run, which are only read, into OUT (default: RUN-task). From a recovered run
it begins at the recovery adapter; any other run, dense or palettized, gets a new one. task.jsonl has a line
{"prompt": ..., "response": ...} for every example, of which only responses are learned, or {"text": ...}. If OUT holds
the same run already, training goes on after its newest sound checkpoint. `pomona adapt RUN --data task.jsonl --help`
lists every setting.
"""

DESCRIPTION = """\
A task adapter for the run {source}.
--run OUT is where it is trained, or goes on: {output} by default. --rank R is --objective.rank R.
"""


def run(arguments: list[str]) -> None:
    """Resolves the configuration, then trains."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return
    source, (output, rest) = Path(arguments[0]), take(arguments[1:], "--run", "runs/mine-task")
    rank, rest = take_whole(rest, "--rank", "16")
    data, rest = take(rest, "--data", "task.jsonl")
    if data is None:
        fix = f"pomona adapt {source} --data task.jsonl"
        raise UserError("there is no --data.", "a task is learned from examples.", fix)
    path = Path(output) if output else source.with_name(f"{source.name}-{Path(data).stem}")
    from pomona.compress.adapt import task_run

    default = task_run(source, Path(data), rank)
    description = DESCRIPTION.format(source=source, output=path)
    configured = configure_run(default, rest, f"adapt {source}", description, also=("--run", "--rank", "--data"))
    train_adapter(configured, path)
