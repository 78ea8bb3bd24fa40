"""What a run carries from step to step, its shardings, and its two ways into the world: made or restored."""

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh

from pomona.model.spec import abstract, initialize, map_specs
from pomona.optim import build as optim
from pomona.parallel import rules
from pomona.train.config import Run
from pomona.train.objectives import objective_of
from pomona.train.origin import check_origin, check_same_shape


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What the objective trains, in float32, and the optimizer's state. The step is not in it: it is how often it was
    changed."""

    params: Any
    optimizer: Any

    def trees(self) -> dict[str, Any]:
        """The named trees of a checkpoint."""
        return {"params": self.params, "optimizer": self.optimizer}


def create_state(run: Run) -> TrainState:
    """The state before the first step without an origin; a pure function of the run, to be traced or run."""
    params = initialize(objective_of(run).trained, jax.random.key(run.seed))
    return TrainState(params, stage_optimizer(run, 0).init(params))


def first_state(run: Run, mesh: Mesh) -> TrainState:
    """The state before the first step on a mesh: drawn, or begun at the run's origin."""
    if run.origin is not None:
        check_origin(run.origin)
        check_same_shape(run.origin, run.architecture)
    objective, shardings = objective_of(run), state_shardings(run, mesh)
    with jax.set_mesh(mesh):
        if objective.begin is None:
            return jax.jit(lambda: create_state(run), out_shardings=shardings)()
        params = objective.begin(mesh)
        optimizer = jax.jit(stage_optimizer(run, 0).init, out_shardings=shardings.optimizer)(params)
    return TrainState(params, optimizer)


def stage_optimizer(run: Run, stage: int) -> Any:
    """The optax transformation of one stage."""
    specs = objective_of(run).trained
    schedule, steps = run.stages[stage].schedule, run.stages[stage].steps
    return optim.build(run.optimizer, schedule, steps, specs, run.architecture.model_dim)


def state_shardings(run: Run, mesh: Mesh) -> TrainState:
    """A tree like the state of `NamedSharding`s: moments lie where their parameters lie, counters everywhere."""
    trained = objective_of(run).trained
    params = map_specs(lambda spec: rules.sharding(mesh, spec.axes), trained)
    abstract_params = abstract(trained)
    everywhere = rules.sharding(mesh, ())
    return TrainState(params, optim.state_shardings(stage_optimizer(run, 0), abstract_params, params, everywhere))


def move(state: TrainState, run: Run, mesh: Mesh) -> TrainState:
    """The state on a mesh of the same devices; what it was elsewhere is freed leaf by leaf."""
    if jax.tree.leaves(state.params)[0].sharding.mesh == mesh:
        return state
    return jax.device_put(state, state_shardings(run, mesh), donate=True)


def abstract_state(run: Run, mesh: Mesh) -> TrainState:
    """The state as shapes, types and shardings: what a checkpoint is restored into."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(lambda: create_state(run)),
        state_shardings(run, mesh),
    )
