"""A whole training run as data: what recipes return and `config.json` holds. No JAX."""

import dataclasses
import itertools
from typing import Annotated

import tyro

from pomona.checkpoint.config import CheckpointConfig, check_checkpoint
from pomona.core.errors import UserError
from pomona.core.run_folder import Origin
from pomona.data.config import DataConfig, Weight, check_data
from pomona.metrics.config import MetricsConfig
from pomona.model.config import Architecture, Execution, RematPolicy, check_architecture, resolve
from pomona.model.count import weights
from pomona.optim.config import AdamW, AdaStar, Schedule, check_optimizer, check_schedule
from pomona.parallel.config import MeshConfig, check_divides, mesh_shape, sequence_parts, shards
from pomona.train.fault_config import FaultConfig, check_faults
from pomona.train.objective_config import NextToken, ObjectiveConfig, check_objective, in_stage

CPU_MICRO_BATCH_TOKENS = 1024


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
    mixture: tuple[Weight, ...] = ()
    """Weights of the sources in this stage; the sources' own where empty."""
    mesh: Annotated[MeshConfig | None, tyro.conf.AvoidSubcommands] = None  # or it would be a kind, as optimizers are
    """The stage's own mesh; the run's where absent. A longer sequence is spread over more devices."""
    remat: RematPolicy | None = None
    """What the stage recomputes; the execution's where absent."""
    micro_batches: int | None = None
    """The batch is worked on in so many parts, whose gradients add up. Absent: one part, but on CPUs as many as leave
    1024 tokens to a device, since memory that is used again is faster there than new memory."""

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
    objective: ObjectiveConfig = NextToken()
    origin: Annotated[Origin | None, tyro.conf.AvoidSubcommands] = None
    """The model that training begins with; absent: weights drawn from the seed."""
    data: DataConfig = DataConfig()
    optimizer: AdaStar | AdamW = AdaStar()
    execution: Execution = Execution()
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    metrics: MetricsConfig = MetricsConfig()
    evaluation: Evaluation = Evaluation()
    faults: FaultConfig = FaultConfig()
    seed: int = 0
    stall_seconds: float = 600.0
    """A step that takes longer stops the run with exit code 124; the first one may take five times as long."""


def total_steps(run: Run) -> int:
    """Steps of all stages."""
    return sum(stage.steps for stage in run.stages)


def total_tokens(run: Run) -> int:
    """Tokens of all stages, padding included."""
    return sum(stage.steps * stage.batch_tokens for stage in run.stages)


def stage_after(run: Run, step: int) -> int:
    """The index of the stage that goes on after so many steps; of the last one when all are done."""
    ends = itertools.accumulate(stage.steps for stage in run.stages)
    return next((index for index, end in enumerate(ends) if step < end), len(run.stages) - 1)


def stage_of(run: Run, step: int) -> Stage:
    """The stage that a checkpoint's last step belongs to; it decides the rotary base."""
    return run.stages[stage_after(run, step - 1)]


def at_stage(run: Run, index: int) -> Run:
    """The same run with the mesh, the recomputation and the objective of one of its stages as its own."""
    stage = run.stages[index]
    execution = dataclasses.replace(run.execution, remat=stage.remat or run.execution.remat)
    objective = in_stage(run.objective, index)
    return dataclasses.replace(run, mesh=stage.mesh or run.mesh, execution=execution, objective=objective)


def mesh_option(run: Run, index: int) -> str:
    """What one types for the mesh of a stage."""
    return "--mesh" if run.stages[index].mesh is None else f"--stages.{index}.mesh"


def stage_sizes(run: Run, index: int, num_devices: int) -> dict[str, int]:
    """The size of every axis of a stage's mesh.

    Raises:
        UserError: the sizes do not multiply to the number of devices.
    """
    return mesh_shape(at_stage(run, index).mesh, num_devices, mesh_option(run, index))


def check_stage_mesh(run: Run, index: int, num_devices: int) -> None:
    """Checks that a stage can be laid on its mesh.

    Raises:
        UserError: the sizes do not multiply to the number of devices, or a weight or the batch does not divide.
    """
    sizes, option = stage_sizes(run, index, num_devices), mesh_option(run, index)
    for weight in weights(run.architecture):
        check_divides(weight.name, weight.shape, weight.axes, sizes, option)
    stage = run.stages[index]
    rows = stage.batch_size // (stage.micro_batches or 1)
    name = f"the batch of stage {stage.name!r}"
    check_divides(name, (rows, stage.sequence_length), ("batch", "tokens"), sizes, option)
    if stage.sequence_length % (parts := sequence_parts(sizes)):
        raise UserError(
            f"sequences of {stage.sequence_length} tokens in stage {stage.name!r} do not divide into {parts} parts.",
            "each shard of a sequence holds two parts of it, so that all have the same work.",
            f"{option}.seq N with 2 N a divisor of {stage.sequence_length}",
        )


def decide(run: Run, platform: str, num_devices: int) -> Run:
    """The same run with every choice made that is left to the devices.

    Raises:
        UserError: a mesh or another choice that these devices do not have.
    """
    stages = []
    for index, stage in enumerate(run.stages):
        batch_shards = shards("batch", stage_sizes(run, index, num_devices))
        stages.append(dataclasses.replace(stage, micro_batches=_micro_batches(stage, platform, batch_shards)))
    execution = resolve(run.execution, platform, num_devices)
    return dataclasses.replace(run, stages=tuple(stages), execution=execution)


def _micro_batches(stage: Stage, platform: str, batch_shards: int) -> int:
    if stage.micro_batches is not None:
        return stage.micro_batches
    if platform != "cpu":
        return 1
    rows = stage.batch_size // batch_shards
    enough = [
        n for n in range(1, rows + 1) if rows % n == 0 and rows // n * stage.sequence_length >= CPU_MICRO_BATCH_TOKENS
    ]
    return max(enough, default=1)


def check_run(run: Run) -> None:
    """Raises `UserError` for anything that can be seen to be wrong before data or devices are touched."""
    check_architecture(run.architecture)
    check_data(run.data)
    check_checkpoint(run.checkpoint)
    check_faults(run.faults)
    check_optimizer(run.optimizer)
    if not run.stages:
        raise UserError("the run has no stages.", "a run trains in at least one stage.", "add one to the recipe.")
    check_objective(run.objective, run.origin, run.architecture, len(run.stages))
    for index, stage in enumerate(run.stages):
        micro_batches = 1 if stage.micro_batches is None else stage.micro_batches
        sizes = (stage.steps, stage.batch_size, stage.sequence_length, micro_batches)
        if min(sizes) < 1:
            raise UserError(
                f"stage {stage.name!r} has steps, batch size, sequence length, micro-batches {sizes}.",
                "each is at least 1.",
                "--stages.0.steps 100",
            )
        if stage.batch_size % micro_batches:
            raise UserError(
                f"stage {stage.name!r} cuts {stage.batch_size} sequences into {micro_batches} micro-batches.",
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
