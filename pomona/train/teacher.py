"""The model that a student learns from: what it is, out of its run folder, and its weights, on the student's mesh."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from pomona.core.run_folder import Origin, RunFolder, read_config
from pomona.model.config import Execution
from pomona.model.decoder import Decoder
from pomona.model.spec import abstract
from pomona.model.taught import Reading
from pomona.train.config import Run, stage_of
from pomona.train.objective import Objective
from pomona.train.objective_config import in_use
from pomona.train.origin import begin_at


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A checkpoint that teaches."""

    origin: Origin
    run: Run
    objective: Objective
    """By which it was trained: it says which decoder its checkpoint is."""

    @property
    def rope_base(self) -> float:
        """Of the stage that the checkpoint's last step belongs to."""
        return stage_of(self.run, self.origin.step).rope_base

    def reading(self, execution: Execution) -> Reading:
        """How it reads, computed as its student is."""
        return Reading(self.run.architecture, execution, self.rope_base)

    def shapes(self) -> Any:
        """The decoder as `ShapeDtypeStruct`s."""
        done = jax.ShapeDtypeStruct((), jnp.float32)
        return jax.eval_shape(self.objective.model, abstract(self.objective.trained), self.objective.frozen, done)

    def load(self, mesh: Mesh) -> Decoder:
        """The decoder on a mesh, which is set.

        Raises:
            UserError: the checkpoint is gone, damaged or another one than it was.
        """
        trained = begin_at(self.origin, self.objective.trained)(mesh)
        return self.objective.model(trained, self.objective.load_frozen(mesh), jnp.ones(()))


def open_teacher(origin: Origin, objective_of: Callable[[Run], Objective]) -> Teacher:
    """Reads what a teacher is; its weights come with `load`.

    Raises:
        UserError: there is no such run folder.
    """
    run = read_config(RunFolder(Path(origin.run)), Run)
    return Teacher(origin, run, objective_of(dataclasses.replace(run, objective=in_use(run.objective))))
