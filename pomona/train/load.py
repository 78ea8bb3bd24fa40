"""A trained model out of its run folder."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp

from pomona.checkpoint.store import restore
from pomona.core.errors import UserError
from pomona.core.run_folder import RunFolder, read_config
from pomona.data.tokenizer import Tokenizer, load_tokenizer
from pomona.model.decoder import Decoder
from pomona.model.spec import abstract
from pomona.parallel.config import MeshConfig
from pomona.parallel.mesh import build_mesh
from pomona.train.config import Run, Stage
from pomona.train.objectives import objective_of


@dataclasses.dataclass(frozen=True)
class Model:
    """Parameters of a checkpoint on one device, and what is needed to use them."""

    params: Decoder
    run: Run
    tokenizer: Tokenizer
    step: int

    @property
    def stage(self) -> Stage:
        """The stage that the checkpoint's last step belongs to; it decides the rotary base."""
        left = self.step
        for stage in self.run.stages:
            left -= stage.steps
            if left <= 0:
                return stage
        return self.run.stages[-1]


def load_model(path: Path, step: int | None = None) -> Model:
    """The model of a run's newest sound checkpoint, or of one step.

    Raises:
        UserError: no run folder, no checkpoint, or none that can be read.
    """
    folder = RunFolder(path)
    run = read_config(folder, Run)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    objective = objective_of(run)
    shapes = jax.tree.map(lambda x: x.update(sharding=here), abstract(objective.trained))
    found = restore(folder.checkpoints, lambda _: {"params": shapes}, step)
    if found is None:
        raise UserError(
            f"{path} has no checkpoint yet.",
            "a run can be used after its first checkpoint.",
            f"pomona train {run.name} --run {path}",
        )
    frozen = objective.load_frozen(build_mesh(MeshConfig(), jax.devices()[:1]))
    params = objective.model(found.trees["params"], frozen, jnp.ones(()))
    return Model(params, run, load_tokenizer(folder.tokenizer), found.step)
