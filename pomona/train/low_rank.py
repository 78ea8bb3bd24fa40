"""Training an adapter on a frozen base: recovery from palettizing, and tasks (afm-recipe section 8).

The base stays as its run folder has it, palettized or dense. A recovery begins at the truncated SVD of what palettizing
has lost, W - W^, so that its first step is better than the base already.

Shapes: L layers, I inputs, O outputs, R rank.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pomona.checkpoint.palettes import read_palettes
from pomona.core.errors import UserError
from pomona.core.run_folder import Origin, RunFolder, read_config
from pomona.model.adapter import (
    PLACES,
    Adapter,
    Factors,
    adapter_specs,
    attach,
    base_axes,
    palettized_shapes,
    projection,
)
from pomona.model.config import Execution
from pomona.model.decoder import Decoder, parameter_specs
from pomona.model.objective import LossSums, TokenBatch, next_token_loss
from pomona.model.projection import dense_matrix, matrix_shape
from pomona.model.spec import Spec, abstract, initialize, map_specs
from pomona.ops.low_rank import factors
from pomona.ops.palette import Palettized
from pomona.parallel import rules
from pomona.parallel.mesh import from_first, lay_out
from pomona.train.config import Run
from pomona.train.objective import Objective
from pomona.train.objective_config import LowRank
from pomona.train.origin import begin_at, check_origin, check_palettized, is_palettized, origin_model

NOTHING = 1e-6
"""The root of a singular value that no palette's error is as small as."""
ObjectiveOf = Callable[[Run], Objective]


def low_rank(run: Run, objective_of: ObjectiveOf) -> Objective:
    """The objective of a run that trains an adapter; `objective_of` is asked for that of a base's own run."""
    config, scale = config_of(run), adapter_scale(run)
    specs, base = adapter_specs(run.architecture, config.rank), base_origin(run)

    def loss(
        adapter: Adapter, base: Decoder, batch: TokenBatch, done: jax.Array, execution: Execution, rope_base: float
    ) -> LossSums:
        return next_token_loss(attach(base, adapter, scale), batch, run.architecture, execution, rope_base)

    packed = is_palettized(Path(base.run))
    return Objective(
        trained=specs,
        model=lambda adapter, base, done: attach(base, adapter, scale),
        loss=loss,
        frozen=palettized_shapes(run.architecture) if packed else abstract(parameter_specs(run.architecture)),
        load_frozen=lambda mesh: read_base(run, base, mesh, objective_of),
        begin=_begin(run, specs, objective_of),
    )


def config_of(run: Run) -> LowRank:
    """The adapter's settings in a run that trains one."""
    assert isinstance(run.objective, LowRank)
    return run.objective


def adapter_scale(run: Run) -> float:
    """alpha / rank of a run that trains an adapter."""
    return config_of(run).alpha / config_of(run).rank


def base_origin(run: Run) -> Origin:
    """The model that a run's adapter belongs to: its origin, or where that is an adapter too, the base of it."""
    assert run.origin is not None, "check_run() has seen to it"
    if config_of(run).start != "adapter":
        return run.origin
    return base_origin(adapted_run(run.origin.run))


def adapted_run(folder: str) -> Run:
    """The configuration of a run that trained an adapter.

    Raises:
        UserError: it trained something else.
    """
    run = read_config(RunFolder(Path(folder)), Run)
    if not isinstance(run.objective, LowRank):
        raise UserError(
            f"{folder} holds no adapter: it trained {run.objective.kind!r}.",
            "an adapter comes out of pomona recover or pomona adapt.",
            f"pomona recover {folder}",
        )
    return run


def read_base(run: Run, origin: Origin, mesh: Mesh, objective_of: ObjectiveOf) -> Decoder:
    """The decoder of an origin on a mesh: palettized as it lies on the disk, or dense in float32.

    Raises:
        UserError: the origin is gone or has changed, or its tensors do not divide over the mesh.
    """
    check_origin(origin)
    if not is_palettized(Path(origin.run)):
        return origin_model(origin, mesh, objective_of)
    base = read_palettes(RunFolder(Path(origin.run)).palettes, run.architecture)
    return lay_out(base, base_axes(run.architecture, base), mesh)


def _begin(run: Run, specs: Adapter[Spec], objective_of: ObjectiveOf) -> Callable[[Mesh], Adapter]:
    """The adapter before the first step, as the configuration says."""
    start, origin = config_of(run).start, run.origin
    assert origin is not None
    if start == "adapter":
        _check_rank(run, adapted_run(origin.run), origin.run)
        return begin_at(origin, specs)
    if start == "zero":
        return lambda mesh: _zero(run, specs, mesh)
    check_palettized(Path(origin.run), "a recovery adapter gives back what palettizing has lost.")
    return lambda mesh: _from_error(run, specs, mesh, objective_of)


def _zero(run: Run, specs: Adapter[Spec], mesh: Mesh) -> Adapter:
    """A drawn, B zero: the base itself (Hu et al. 2021, section 4.1)."""
    places = map_specs(lambda spec: rules.sharding(mesh, spec.axes), specs)

    def draw() -> Adapter:
        drawn = initialize(specs, jax.random.key(run.seed))
        each = {name: getattr(drawn, name) for name in PLACES}
        return Adapter(**{name: Factors(pair.a, jnp.zeros_like(pair.b)) for name, pair in each.items()})

    with jax.set_mesh(mesh):
        return jax.jit(draw, out_shardings=places)()


def _from_error(run: Run, specs: Adapter[Spec], mesh: Mesh, objective_of: ObjectiveOf) -> Adapter:
    """The truncated SVD of W - W^ for every layer's every weight, one matrix in memory at a time."""
    origin, scale = base_origin(run), adapter_scale(run)
    parent = read_config(RunFolder(Path(origin.run)), Run).origin
    assert parent is not None, "a palettized run names what it was made of"
    check_origin(parent)
    base = read_base(run, origin, mesh, objective_of)
    whole = origin_model(parent, mesh, objective_of)
    layers = parameter_specs(run.architecture).layers

    def both(name: str) -> Factors[np.ndarray]:
        spec = projection(layers, name)
        measure = _error(spec)
        a_LIR, b_LRO, rng = [], [], np.random.default_rng([run.seed, *name.encode()])
        for index in range(run.architecture.num_layers):
            error_IO = measure(projection(whole.layers, name), projection(base.layers, name), index)
            a_IR, b_RO = factors(np.asarray(error_IO) / scale, config_of(run).rank)
            # Where nothing was lost both would be zero, and then no step moves either: A is drawn, as in `_zero`.
            drawn_IR = rng.standard_normal(a_IR.shape, np.float32) * np.float32(len(a_IR) ** -0.5)
            a_LIR.append(np.where(np.abs(b_RO).max(axis=1) < NOTHING, drawn_IR, a_IR))
            b_LRO.append(b_RO)
        return Factors(np.stack(a_LIR), np.stack(b_LRO))

    with jax.set_mesh(mesh):
        adapter = from_first(Adapter(**{name: both(name) for name in PLACES}))
    return lay_out(adapter, map_specs(lambda spec: spec.axes, specs), mesh)


def _error(spec: Spec) -> Callable[..., jax.Array]:
    """(a dense weight, its palettized one, layer) -> the difference as a matrix, whole on every device."""

    @jax.jit
    def error(weight: jax.Array, palettized: Palettized, index: int) -> jax.Array:
        at = lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False)
        own = rules.place(at(weight), (None,) * (weight.ndim - 1)).reshape(matrix_shape(spec))
        packed = dense_matrix(jax.tree.map(at, palettized), spec, jnp.float32)
        return own - rules.place(packed, (None, None))

    return error


def _check_rank(run: Run, origin: Run, folder: str) -> None:
    mine, theirs = config_of(run), config_of(origin)
    if (mine.rank, mine.alpha) != (theirs.rank, theirs.alpha):
        raise UserError(
            f"the adapter is to have rank {mine.rank} and alpha {mine.alpha}.",
            f"it begins at the adapter of {folder}, which has rank {theirs.rank} and alpha {theirs.alpha}.",
            f"--objective.rank {theirs.rank} --objective.alpha {theirs.alpha}",
        )
