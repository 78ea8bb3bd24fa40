"""Task adapters: what a base is to do, learned from examples into an adapter (afm-recipe section 8).

It is a run by the one loop, with `LowRank` as its objective. From a recovered run it begins at the recovery adapter, as
AFM's task adapters do, so that what palettizing has lost stays repaired; from any other run it begins at the base.
"""

import dataclasses
import json
from pathlib import Path

from pomona.compress.recover import adapter_run, adapter_stage
from pomona.core.errors import UserError
from pomona.core.run_folder import RunFolder, read_config
from pomona.data.config import DataConfig, Source, TokenizerConfig
from pomona.data.tokenizer import load_tokenizer
from pomona.train.config import Run, stage_of
from pomona.train.objective_config import LowRank
from pomona.train.origin import origin_of

STEPS = 100
HELDOUT_FRACTION = 0.1
"""Tasks have few examples; a fiftieth of them, as of a corpus, would say little."""
PAIR, PLAIN = "prompt:response", "text"


def task_run(source: Path, data: Path, rank: int | None = None) -> Run:
    """The run that trains a task adapter for a run folder, on rows of {"prompt", "response"} or of {"text"}.

    Of a prompt nothing is learned: only the predictions of the response count, in training and in evaluation.

    Raises:
        UserError: no run folder, or no rows, or rows of another kind.
    """
    run = read_config(RunFolder(source), Run)
    tokenizer = RunFolder(source).tokenizer
    config = DataConfig(
        sources=(Source(data.stem, str(data), text_field=_fields(data)),),
        tokenizer=TokenizerConfig(load_tokenizer(tokenizer).vocab_size, path=str(tokenizer)),
        heldout_fraction=HELDOUT_FRACTION,
        cache=run.data.cache,
        workers=run.data.workers,
    )
    own = run.objective
    objective = dataclasses.replace(own, start="adapter") if isinstance(own, LowRank) else LowRank(start="zero")
    if rank is not None:
        objective = dataclasses.replace(objective, rank=rank)
    stage = adapter_stage(dataclasses.replace(stage_of(run, origin_of(source).step), mixture=()), "adapt", STEPS)
    return dataclasses.replace(adapter_run(run, source, f"{source.name}-{data.stem}", objective, stage), data=config)


def _fields(data: Path) -> str:
    """Which fields the rows of a task have, by its first one; the others are checked as they are read."""
    if data.suffix != ".jsonl" or not data.is_file():
        raise UserError(
            f"--data is {data}{'' if data.exists() else ', which is not there'}.",
            "a task is a .jsonl file, with one example a line.",
            "--data task.jsonl",
        )
    with data.open(encoding="utf-8", errors="replace") as file:
        line = next((line for line in file if line.strip()), "")
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        row = None
    for fields in (PAIR, PLAIN):
        if isinstance(row, dict) and set(fields.split(":")) <= row.keys():
            return fields
    raise UserError(
        f"the first line of {data} is {line.strip()[:60]!r}.",
        'every line is {"prompt": ..., "response": ...}, or every line is {"text": ...}.',
        "name the fields so.",
    )
