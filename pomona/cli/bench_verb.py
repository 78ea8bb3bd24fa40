"""`pomona bench FILE`."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import tyro

from pomona.cli.device_options import open_model
from pomona.cli.parse import parse, print_stdout
from pomona.core.errors import UserError
from pomona.core.machine import usable_cores


@dataclasses.dataclass(frozen=True)
class BenchOptions:
    """How fast a device file is computed on this machine, and how much of the memory's bandwidth that is."""

    file: Annotated[Path, tyro.conf.Positional]
    """A device file (`pomona export RUN --format pomona`)."""
    threads: tuple[int, ...] = ()
    """The threads to try; 1 and all that there are by default."""
    contexts: tuple[int, ...] = (128, 1024)
    """Tokens that a timed token comes after."""
    tokens: int = 32
    """Tokens that are timed; the median is told."""
    prefill: int = 512
    """Tokens of the prompt that is timed."""
    adapter: Path | None = None
    """An adapter to compute with."""
    instruction_set: str = ""
    """avx512, avxvnni, avx2, neon, portable or numpy; the best that the processor has by default."""
    json: bool = False
    """One line of JSON for each number of threads, seconds and bytes, in place of the table."""


def run(arguments: list[str]) -> None:
    """Prints a table, or lines of JSON."""
    options = parse(BenchOptions, arguments, "bench")
    from pomona.device.bench import bandwidth, measure
    from pomona.device.library import available

    if not options.contexts or min(*options.contexts, *options.threads, options.tokens, options.prefill) < 1:
        raise UserError(
            f"--contexts {options.contexts} --threads {options.threads} --tokens {options.tokens}.",
            "all of them are at least 1, and there is a context.",
            "--contexts 128 --tokens 32",
        )
    model = open_model(options.file)
    adapter = model.adapter(options.adapter) if options.adapter else None
    for number, threads in enumerate(options.threads or sorted({1, usable_cores()})):
        found = measure(
            *(model, threads, options.contexts, options.tokens, options.prefill, adapter, options.instruction_set)
        )
        most = bandwidth(threads) if available() else None
        if options.json:
            print_stdout(json.dumps(dataclasses.asdict(found) | {"bandwidth": most}) + "\n")
            continue
        if number == 0:
            print_stdout(f"{'threads':>7}  {'':<24}{'tokens/s':>10}{'of bandwidth':>14}   {found.instruction_set}\n")
        rows = [(f"prompt of {options.prefill}", options.prefill / found.prefill, "")]
        for context in found.decode:
            share = f"{found.bytes_per_second(context) / most:.0%}" if most else "?"
            rows.append((f"a token after {context}", found.tokens_per_second(context), share))
        for name, rate, share in rows:
            print_stdout(f"{threads:>7}  {name:<24}{rate:>10.1f}{share:>14}\n")
