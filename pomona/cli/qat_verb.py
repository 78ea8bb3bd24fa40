"""`pomona qat RUN [--run OUT] [--step N] [--part.field VALUE ...]`."""

from pathlib import Path

from pomona.cli.parse import configure_run, take, take_whole

USAGE = """\
usage: pomona qat RUN [--run OUT] [--step N] [--part.field VALUE ...]

Trains the model of RUN on with its linear weights on the 2-bit grid s * {-1.5, -0.5, 0.5, 1.5} of every row, whose
scales are learned too (quantization-aware training). After it, `pomona palettize OUT --bits 2 --grid balanced` loses
nothing.

  --run OUT        the run folder to write; RUN-2bit by default
  --step N         the checkpoint of RUN to begin with; the newest by default

By default it takes 10 % of the steps of RUN's first stage. The same command goes on after a kill. `pomona qat RUN
--help` lists every setting, such as --stages.0.steps.
"""

DESCRIPTION = """\
Trains {path} on with its linear weights on a 2-bit grid. --run OUT and --step N are the verb's own.
"""


def run(arguments: list[str]) -> None:
    """Resolves the configuration, then trains."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return
    path, rest = Path(arguments[0]), arguments[1:]
    step, rest = take_whole(rest, "--step")
    out, rest = take(rest, "--run", "runs/grid")
    import jax

    from pomona.compress.qat import grid_run
    from pomona.train.loop import train

    description = DESCRIPTION.format(path=path)
    configured = configure_run(grid_run(path, step), rest, f"qat {path}", description, ("--run", "--step"))
    target = Path(out or f"{path}-2bit")
    result = train(configured, target)
    if jax.process_index() != 0:
        return
    print(f"\nbits per byte on held-out text, on the 2-bit grid: {result['bits_per_byte']:.3f}", end="")
    if "bits_per_byte_before" in result:
        print(f" (before this training: {result['bits_per_byte_before']:.3f})", end="")
    print(f"\nwritten to {target}: config.json, metrics.jsonl, events.jsonl, tokenizer/, checkpoints/")
    print(f"next: pomona palettize {target} --bits 2 --grid balanced")
