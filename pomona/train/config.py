"""A whole training run as data: what recipes return and `config.json` holds. No JAX."""

import dataclasses

from pomona.checkpoint.config import CheckpointConfig, check_checkpoint
from pomona.core.errors import UserError
from pomona.data.config import DataConfig, Weight, check_data
from pomona.metrics.config import MetricsConfig
from pomona.model.config import Architecture, Execution, check_architecture
from pomona.optim.config import AdamW, AdaStar, Schedule, check_optimizer, check_schedule
from pomona.parallel.config import MeshConfig


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stretch of training with its own sequence length, schedule and mixture."""

    name: str
    steps: int
    batch_size: int
    """Sequences in a global batch."""
    sequence_length: int
    schedule: Schedule = Schedule()
    rope_base: float = 500_000.0
    mixture: tuple[Weight, ...] | None = None
    """Weights of the sources in this stage; the sources' own where absent."""
    micro_batches: int = 1
    """The batch is worked on in so many parts, whose gradients add up."""

    @property
    def batch_tokens(self) -> int:
        return self.batch_size * self.sequence_length


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Evaluation on the held-out documents, during training and at both ends."""

    every_steps: int = 500
    max_batches: int = 50


@dataclasses.dataclass(frozen=True)
class Run:
    """A model's training from its first to its last token."""

    name: str
    architecture: Architecture
    stages: tuple[Stage, ...]
    data: DataConfig = DataConfig()
    optimizer: AdaStar | AdamW = AdaStar()
    execution: Execution = Execution()
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    metrics: MetricsConfig = MetricsConfig()
    evaluation: Evaluation = Evaluation()
    seed: int = 0
    stall_seconds: float = 600.0
    """A step that takes longer stops the run with exit code 124; the first one may take five times as long."""


def total_steps(run: Run) -> int:
    """Steps of all stages."""
    return sum(stage.steps for stage in run.stages)


def total_tokens(run: Run) -> int:
    """Tokens of all stages, padding included."""
    return sum(stage.steps * stage.batch_tokens for stage in run.stages)


def check_run(run: Run) -> None:
    """Raises `UserError` for anything that can be seen to be wrong before data or devices are touched."""
    check_architecture(run.architecture)
    check_data(run.data)
    check_checkpoint(run.checkpoint)
    check_optimizer(run.optimizer)
    if not run.stages:
        raise UserError("the run has no stages.", "a run trains in at least one stage.", "add one to the recipe.")
    for index, stage in enumerate(run.stages):
        sizes = (stage.steps, stage.batch_size, stage.sequence_length, stage.micro_batches)
        if min(sizes) < 1:
            raise UserError(
                f"stage {stage.name!r} has steps, batch size, sequence length, micro-batches {sizes}.",
                "each is at least 1.",
                "--stages.0.steps 100",
            )
        if stage.batch_size % stage.micro_batches:
            raise UserError(
                f"stage {stage.name!r} cuts {stage.batch_size} sequences into {stage.micro_batches} micro-batches.",
                "micro-batches are equal, so their number divides the batch size.",
                "--stages.0.micro-batches 1",
            )
        check_schedule(stage.schedule, stage.steps, f"stages.{index}.schedule")
    if run.architecture.vocab_size < run.data.tokenizer.vocab_size and run.data.tokenizer.path is None:
        raise UserError(
            f"the tokenizer has {run.data.tokenizer.vocab_size} pieces, the model {run.architecture.vocab_size}.",
            "every piece needs a row of the embedding.",
            f"--architecture.vocab-size {run.data.tokenizer.vocab_size}",
        )
    if run.metrics.log_every_steps < 1 or run.evaluation.every_steps < 1 or run.stall_seconds <= 0:
        raise UserError(
            f"log every {run.metrics.log_every_steps}, evaluate every {run.evaluation.every_steps} steps, "
            f"stall after {run.stall_seconds} s.",
            "each is positive.",
            "--metrics.log-every-steps 10",
        )
