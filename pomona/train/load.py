"""A trained model out of its run folder."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from pomona.adapters.bank import attached, bank_axes, empty_bank, load
from pomona.adapters.bundle import read_bundle
from pomona.checkpoint.palettes import NAME, read_palettes
from pomona.checkpoint.store import restore
from pomona.core.errors import UserError
from pomona.core.run_folder import RunFolder, read_config
from pomona.data.tokenizer import Tokenizer, load_tokenizer
from pomona.model.adapter import base_axes
from pomona.model.decoder import Decoder
from pomona.model.spec import abstract, map_specs
from pomona.parallel import rules
from pomona.parallel.config import MeshConfig
from pomona.parallel.mesh import build_mesh, lay_out
from pomona.train.config import Run, Stage, stage_of
from pomona.train.low_rank import base_origin
from pomona.train.objective_config import LowRank, in_use
from pomona.train.objectives import objective_of
from pomona.train.origin import check_origin, origin_of


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
        return stage_of(self.run, self.step)


def load_model(path: Path, step: int | None = None, mesh: Mesh | None = None) -> Model:
    """The model of a run's newest sound checkpoint, or of one step; or the palettized model of the folder.

    Args:
        mesh: the devices it comes to lie on; the first one alone by default.

    Raises:
        UserError: no run folder, no checkpoint, or none that can be read.
    """
    folder = RunFolder(path)
    run = read_config(folder, Run)
    if folder.palettes.exists():
        return _palettized(folder, run, step, mesh)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    objective = objective_of(dataclasses.replace(run, objective=in_use(run.objective)))
    where = map_specs(lambda spec: rules.sharding(mesh, spec.axes) if mesh else here, objective.trained)
    shapes = jax.tree.map(lambda x, place: x.update(sharding=place), abstract(objective.trained), where)
    found = restore(folder.checkpoints, lambda _: {"params": shapes}, step)
    if found is None:
        raise UserError(
            f"{path} has no checkpoint yet.",
            "a run can be used after its first checkpoint.",
            f"pomona train {run.name} --run {path}",
        )
    if mesh is not None:
        with jax.set_mesh(mesh):
            params = objective.model(found.trees["params"], objective.load_frozen(mesh), jnp.ones(()))
    else:
        frozen = objective.load_frozen(build_mesh(MeshConfig(), jax.devices()[:1]))
        params = objective.model(found.trees["params"], jax.device_put(frozen, here), jnp.ones(()))  # of no mesh
    return Model(params, run, load_tokenizer(folder.tokenizer), found.step)


def load_base(path: Path, step: int | None = None, mesh: Mesh | None = None) -> tuple[Model, str]:
    """The model that adapters are put on, and its fingerprint: a run's own, or the base of its adapter.

    Raises:
        UserError: as `load_model`, or the base is gone or has changed.
    """
    run = read_config(RunFolder(path), Run)
    if isinstance(run.objective, LowRank):
        origin = base_origin(run)
        check_origin(origin)
        return load_model(Path(origin.run), origin.step, mesh), origin.fingerprint
    return load_model(path, step, mesh), origin_of(path, step).fingerprint


def load_adapted(path: Path, step: int | None, folders: Sequence[Path], mesh: Mesh | None = None) -> Model:
    """The model that adapters are put on, with a bank of these at hand, in their order; without any, `load_model`.

    Raises:
        UserError: as `load_base`, or an adapter of another base.
    """
    if not folders:
        return load_model(path, step, mesh)
    base, fingerprint = load_base(path, step, mesh)
    architecture = base.run.architecture
    bundles = [read_bundle(folder, fingerprint, architecture) for folder in folders]
    bank = empty_bank(architecture, len(bundles), max(bundle.rank for bundle in bundles))
    for slot, bundle in enumerate(bundles):
        bank = load(bank, slot, bundle)
    if mesh is not None:
        bank = lay_out(bank, bank_axes(architecture), mesh)
    return dataclasses.replace(base, params=attached(base.params, bank))


def _palettized(folder: RunFolder, run: Run, step: int | None, mesh: Mesh | None) -> Model:
    assert run.origin is not None, "a palettized model was made from a run"
    if not (folder.palettes / NAME).exists():
        raise UserError(
            f"{folder.path} is not palettized to the end.",
            "a palettized model can be used when its last tensor is written.",
            f"pomona palettize {run.origin.run} --run {folder.path}, with the options it was started with.",
        )
    if step not in (None, run.origin.step):
        raise UserError(
            f"{folder.path} has no step {step}.",
            "a palettized folder holds one model, without steps of its own.",
            "leave --step out.",
        )
    params = read_palettes(folder.palettes, run.architecture)
    if mesh is not None:
        params = lay_out(params, base_axes(run.architecture, params), mesh)
    return Model(params, run, load_tokenizer(folder.tokenizer), run.origin.step)
