"""A run small enough for tests, as a command: python small_run.py FOLDER CACHE [devices] [key=value ...]."""

import dataclasses
import os
import sys
from pathlib import Path


def small_run(cache, **changes):
    from pomona.checkpoint.config import CheckpointConfig
    from pomona.data.config import DataConfig, Source, TokenizerConfig
    from pomona.metrics.config import MetricsConfig
    from pomona.model.config import Architecture
    from pomona.optim.config import Schedule
    from pomona.train.config import Evaluation, Run, Stage

    later = Schedule(0.003, warmup_steps=1)
    fields = {
        "name": "small",
        "architecture": Architecture(400, 64, 2, 4, 2, 16, 128),
        "stages": (
            Stage("core", 8, 8, 32, Schedule(0.01, warmup_steps=2), micro_batches=1),
            Stage("context", 6, 8, 64, later, rope_base=1e6),
        ),
        "data": DataConfig(
            sources=(Source("a", str(Path(cache) / "text.txt.d")),),
            tokenizer=TokenizerConfig(vocab_size=400),
            heldout_fraction=0.1,
            cache=str(cache),
            workers=1,
        ),
        "checkpoint": CheckpointConfig(every_steps=3, keep=5),
        "metrics": MetricsConfig(log_every_steps=1),
        "evaluation": Evaluation(every_steps=5, max_batches=3),
    }
    return dataclasses.replace(Run(**fields), **changes)


def write_text(cache):
    import numpy as np

    folder = Path(cache) / "text.txt.d"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    words = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs", "while", "many", "numbers", "wait"]
    for i in range(120):
        (folder / f"{i}.txt").write_text(f"{i}: " + " ".join(rng.choice(words, rng.integers(20, 200))))


def main():
    folder, cache, devices, hook = sys.argv[1:5]
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    from pomona.core.errors import PREEMPTED, USER_ERROR, Preempted, UserError
    from pomona.train.loop import train

    exec(hook, globals())
    try:
        train(small_run(cache), Path(folder))
    except Preempted:
        sys.exit(PREEMPTED)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(USER_ERROR)


if __name__ == "__main__":
    main()
