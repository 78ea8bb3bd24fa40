"""The demo: a 4 M-parameter AFM on Python's own standard library.

    pomona train tiny

Hardware: 2 CPU cores. Time: about 5 minutes. Cost: nothing.
Expect about 1.85 bits per byte on held-out text, from 3.9 to 4 before training: the text is that of your Python.
"""

from pomona.checkpoint.config import CheckpointConfig
from pomona.data.config import DataConfig, Source, TokenizerConfig
from pomona.model.presets import TINY
from pomona.optim.config import Schedule
from pomona.train.config import Evaluation, Run, Stage


def tiny() -> Run:
    """A small AFM on the standard library of the Python that runs it: minutes on two CPU cores."""
    core = Schedule(peak_learning_rate=0.02, warmup_steps=50)
    return Run(
        name="tiny",
        architecture=TINY,
        data=DataConfig(sources=(Source("stdlib", "stdlib"),), tokenizer=TokenizerConfig(vocab_size=TINY.vocab_size)),
        stages=(Stage("core", steps=250, batch_size=16, sequence_length=256, schedule=core),),
        checkpoint=CheckpointConfig(every_steps=125, every_seconds=120),
        evaluation=Evaluation(every_steps=125, max_batches=20),
    )
