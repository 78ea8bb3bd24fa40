"""The demo: a 4 M-parameter AFM on Python's own standard library; and a pair of them, through a whole life.

    pomona train tiny

Hardware: 2 CPU cores. Time: about 5 minutes. Cost: nothing.
Expect about 1.85 bits per byte on held-out text, from 3.9 to 4 before training: the text is that of your Python.

    pomona life tiny        (what `make demo` types)

Hardware: 2 CPU cores. Time: about 10 minutes, 12 at most; seconds of each chapter, start and evaluations included:

| chapter | what | budget |
|---|---|---|
| parent | 5 M parameters, 200 steps of 16 x 256 tokens; tokenizer and text before it | 260 |
| pruned | feed-forward width 1024 to 256: 40 steps of masks | 80 |
| distilled | 2.6 M parameters, 150 steps at the parent's side | 235 |
| palettized | 3.7 bits a weight, by the squared gradients of 128 sequences | 45 |
| recovered | adapters of rank 16, 20 steps | 45 |
| samples, card | five models speak, the page | 55 |
"""

import dataclasses

from pomona.checkpoint.config import CheckpointConfig
from pomona.data.config import DataConfig, Source, TokenizerConfig
from pomona.model.presets import TINY, TINY_DRAFT
from pomona.optim.config import Schedule
from pomona.recipes.life import Distill, Life, Palettize, Prune, Recover, Train
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


def tiny_draft() -> Run:
    """A model that guesses tokens for `tiny` on a device: the same text and tokenizer, a fifth of the size."""
    return dataclasses.replace(tiny(), name="tiny_draft", architecture=TINY_DRAFT)


def _stage(steps: int, warmup_steps: int) -> tuple[str, ...]:
    """Settings of a stage with so many steps; the rest is the origin's."""
    return ("--stages.0.steps", str(steps), "--stages.0.schedule.warmup-steps", str(warmup_steps))


PARENT_FFN, DEVICE_FFN = 1024, 256
# 100 steps see an eighth of the text. The teacher computes along; labelling all of it first would take longer.
LOGITS = ("--objective.target", "logits")

LIFE = Life(
    name="tiny",
    what="the demo's pair: 5 M parameters, pruned and distilled to 2.6 M, at 3.7 bits a weight",
    chapters=(
        Train(
            "parent",
            "tiny",
            settings=("--architecture.ffn-dim", str(PARENT_FFN), *_stage(200, 40)),
            budget_seconds=260,
        ),
        Prune("pruned", of="parent", ffn=DEVICE_FFN, settings=_stage(40, 5), budget_seconds=80),
        Distill("distilled", of="pruned", teacher="parent", settings=(*LOGITS, *_stage(150, 15)), budget_seconds=235),
        Palettize("palettized", of="distilled", bits=3.7, budget_seconds=45),
        Recover("recovered", of="palettized", settings=_stage(20, 5), budget_seconds=45),
    ),
    server="parent",
    device="recovered",
    prompt="def main():",
)
