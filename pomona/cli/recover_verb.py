"""`pomona recover RUN [--rank 16] [--run OUT] [--part.field VALUE ...]`."""

from pathlib import Path

from pomona.cli.parse import configure_run, take, take_whole
from pomona.train.config import Run

USAGE = """\
usage: pomona recover RUN [--rank 16] [--run OUT] [--part.field VALUE ...]

Trains an accuracy-recovery adapter on a palettized run, whose weights are only read, into OUT (default: RUN-recovered).
The adapter begins with the best that its rank can do about the error of palettizing. If OUT holds the same run
already, training goes on after its newest sound checkpoint. `pomona recover RUN --help` lists every setting.
"""

DESCRIPTION = """\
An accuracy-recovery adapter for the palettized run {source}.
--run OUT is where it is trained, or goes on: {output} by default. --rank R is --objective.rank R.
"""


def run(arguments: list[str]) -> None:
    """Resolves the configuration, then trains."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return
    source, (output, rest) = Path(arguments[0]), take(arguments[1:], "--run", "runs/mine-recovered")
    rank, rest = take_whole(rest, "--rank", "16")
    path = Path(output) if output else source.with_name(source.name + "-recovered")
    from pomona.compress.recover import recovery_run

    default = recovery_run(source, rank)
    description = DESCRIPTION.format(source=source, output=path)
    configured = configure_run(default, rest, f"recover {source}", description, also=("--run", "--rank"))
    train_adapter(configured, path)


def train_adapter(run: Run, path: Path) -> None:
    """Trains an adapter and says how it went; `pomona adapt` ends so too."""
    import jax

    from pomona.train.loop import train

    result = train(run, path)
    if jax.process_index() != 0:
        return
    print(f"\nbits per byte on held-out text: {result['bits_per_byte']:.4f}", end="")
    if "bits_per_byte_before" in result:
        print(f" (with the adapter as it began: {result['bits_per_byte_before']:.4f})", end="")
    print(f"\nwritten to {path}: config.json, metrics.jsonl, events.jsonl, tokenizer/, checkpoints/")
    print(f"next: pomona export {path} --format adapter, or pomona generate {path}")
