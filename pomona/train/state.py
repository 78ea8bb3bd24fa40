"""What a run carries from step to step, its shardings, and its two ways into the world: made or restored."""

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh

from pomona.model.decoder import Decoder, parameter_specs
from pomona.model.spec import abstract, initialize, map_specs
from pomona.optim import build as optim
from pomona.parallel import rules
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
    params = map_specs(lambda spec: rules.sharding(mesh, spec.axes), parameter_specs(run.architecture))
    abstract_params = abstract(parameter_specs(run.architecture))
    everywhere = rules.sharding(mesh, ())
    return TrainState(params, optim.state_shardings(stage_optimizer(run, 0), abstract_params, params, everywhere))


def move(state: TrainState, run: Run, mesh: Mesh) -> TrainState:
    """The state on a mesh of the same devices; what it was elsewhere is freed leaf by leaf."""
    if state.params.final_norm.sharding.mesh == mesh:
        return state
    return jax.device_put(state, state_shardings(run, mesh), donate=True)


def abstract_state(run: Run, mesh: Mesh) -> TrainState:
    """The state as shapes, types and shardings: what a checkpoint is restored into."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(lambda: create_state(run)),
        state_shardings(run, mesh),
    )
