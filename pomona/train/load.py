"""A trained model out of its run folder."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp

from pomona.checkpoint.palettes import read_palettes
from pomona.checkpoint.store import restore
from pomona.core.errors import UserError
from pomona.core.run_folder import RunFolder, read_config
from pomona.data.tokenizer import Tokenizer, load_tokenizer
from pomona.model.decoder import Decoder
from pomona.model.spec import abstract
from pomona.parallel.config import MeshConfig
from pomona.parallel.mesh import build_mesh
from pomona.train.config import Run, Stage, total_steps
from pomona.train.low_rank import base_origin
from pomona.train.objective_config import LowRank
from pomona.train.objectives import objective_of
from pomona.train.origin import check_origin, is_palettized, origin_of


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
    """The model of a run's newest sound checkpoint, or of one step; a palettized run has its palettes in place of them.

    Raises:
        UserError: no run folder, no checkpoint, or none that can be read.
    """
    folder = RunFolder(path)
    run = read_config(folder, Run)
    if is_palettized(path):
        if step is not None:
            raise UserError(
                f"{path} has no checkpoint of step {step}.",
                "a palettized run has no steps of its own.",
                f"leave --step out, or palettize that step of {run.origin.run if run.origin else 'its source'}.",
            )
        base = jax.device_put(read_palettes(folder.palettes, run.architecture), jax.devices()[0])
        return Model(base, run, load_tokenizer(folder.tokenizer), run.origin.step if run.origin else total_steps(run))
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


def load_base(path: Path, step: int | None = None) -> tuple[Model, str]:
    """The model that adapters are put on, and its fingerprint: a run's own, or the base of its adapter.

    Raises:
        UserError: as `load_model`, or the base is gone or has changed.
    """
    run = read_config(RunFolder(path), Run)
    if isinstance(run.objective, LowRank):
        origin = base_origin(run)
        check_origin(origin)
        return load_model(
            Path(origin.run), None if is_palettized(Path(origin.run)) else origin.step
        ), origin.fingerprint
    return load_model(path, step), origin_of(path, step).fingerprint
