"""What a run carries from step to step, its shardings, and its two ways into the world: made or restored."""

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh

from pomona.model.config import Architecture
from pomona.model.decoder import Decoder, parameter_specs
from pomona.model.spec import abstract, initialize, is_spec, map_specs
from pomona.optim import build as optim
from pomona.parallel import rules
from pomona.parallel.config import check_divides
from pomona.train.config import Run


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Float32 parameters and the optimizer's state. The step is not in it: it is how often it was changed."""

    params: Decoder
    optimizer: Any

    def trees(self) -> dict[str, Any]:
        """The named trees of a checkpoint."""
        return {"params": self.params, "optimizer": self.optimizer}


def create_state(run: Run) -> TrainState:
    """The state before the first step; a pure function of the run, to be traced or run."""
    params = initialize(parameter_specs(run.architecture), jax.random.key(run.seed))
    return TrainState(params, stage_optimizer(run, 0).init(params))


def stage_optimizer(run: Run, stage: int) -> Any:
    """The optax transformation of one stage."""
    specs = parameter_specs(run.architecture)
    schedule, steps = run.stages[stage].schedule, run.stages[stage].steps
    return optim.build(run.optimizer, schedule, steps, specs, run.architecture.model_dim)


def state_shardings(run: Run, mesh: Mesh) -> TrainState:
    """A tree like the state of `NamedSharding`s: moments lie where their parameters lie, counters everywhere."""
    params = parameter_shardings(run.architecture, mesh)
    abstract_params = abstract(parameter_specs(run.architecture))
    everywhere = rules.sharding(mesh, ())
    return TrainState(params, optim.state_shardings(stage_optimizer(run, 0), abstract_params, params, everywhere))


def parameter_shardings(architecture: Architecture, mesh: Mesh) -> Decoder:
    """Where each parameter lies.

    Raises:
        UserError: a dimension does not divide over the mesh.
    """
    specs = parameter_specs(architecture)
    for path, spec in jax.tree_util.tree_flatten_with_path(specs, is_leaf=is_spec)[0]:
        check_divides(jax.tree_util.keystr(path, simple=True, separator="."), spec.shape, spec.axes, mesh.shape)
    return map_specs(lambda spec: rules.sharding(mesh, spec.axes), specs)


def abstract_state(run: Run, mesh: Mesh) -> TrainState:
    """The state as shapes, types and shardings: what a checkpoint is restored into."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(lambda: create_state(run)),
        state_shardings(run, mesh),
    )
