"""The model that a run begins from: pinned by the fingerprint of its checkpoint, read onto any mesh."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from pomona.checkpoint import palettes
from pomona.checkpoint.manifest import NAME
from pomona.checkpoint.store import restore, steps
from pomona.core.errors import UserError
from pomona.core.run_folder import Origin, RunFolder, read_config
from pomona.model.config import Architecture
from pomona.model.decoder import Decoder
from pomona.model.spec import map_specs
from pomona.parallel import rules
from pomona.train.config import Run
from pomona.train.objective import Objective
from pomona.train.objective_config import NextToken, in_use


def origin_of(path: Path, step: int | None = None) -> Origin:
    """A run folder's newest checkpoint, or that of one step, or its palettes, as an origin.

    Raises:
        UserError: there is no such checkpoint.
    """
    if is_palettized(path):
        source = read_config(RunFolder(path), Run).origin
        return Origin(str(path), source.step if source else 0, _palettes_fingerprint(path))
    present = [number for number in steps(RunFolder(path).checkpoints) if step in (None, number)]
    for number in present:
        if (digest := fingerprint(path, number)) is not None:
            return Origin(str(path), number, digest)
    raise UserError(
        f"{path} has no checkpoint{'' if step is None else f' of step {step}'} yet.",
        "a model begins from a finished checkpoint of another run.",
        f"pomona train RECIPE --run {path}, or the name of another run folder.",
    )


def is_palettized(path: Path) -> bool:
    """Whether a run folder has palettes, whole, in place of checkpoints."""
    return (RunFolder(path).palettes / palettes.NAME).exists()


def fingerprint(path: Path, step: int) -> str | None:
    """Sixteen hex digits of a checkpoint's contents, or of the palettes; None where there is no finished one."""
    if is_palettized(path):
        return _palettes_fingerprint(path)
    manifest = RunFolder(path).checkpoints / str(step) / NAME
    return hashlib.sha256(manifest.read_bytes()).hexdigest()[:16] if manifest.exists() else None


def _palettes_fingerprint(path: Path) -> str:
    return palettes.read_about(RunFolder(path).palettes)["fingerprint"]


def check_origin(origin: Origin) -> None:
    """Raises `UserError` where the origin is gone, or is no longer what the run was begun with."""
    found = fingerprint(Path(origin.run), origin.step)
    if found != origin.fingerprint:
        raise UserError(
            f"the checkpoint of step {origin.step} in {origin.run} "
            + ("is not there." if found is None else f"has changed ({origin.fingerprint} -> {found})."),
            "a run goes on with exactly the model that it was begun from.",
            f"put {origin.run} back, as seen from this folder, or start a new run with --run FOLDER.",
        )


def check_dense(path: Path) -> None:
    """Raises `UserError` where what a run folder holds are not the plain weights of a decoder."""
    _check_not_palettized(path)
    objective = in_use(read_config(RunFolder(path), Run).objective)
    if not isinstance(objective, NextToken):
        raise UserError(
            f"{path} trains {objective.kind!r}, which is not the plain weights of a decoder.",
            "this stage begins with a dense model.",
            "the folder of a run that pomona train, prune or distill wrote.",
        )


def _check_not_palettized(path: Path) -> None:
    if is_palettized(path):
        source = read_config(RunFolder(path), Run).origin
        raise UserError(
            f"{path} is palettized.",
            "weights that are trained or pruned are those of a dense model; on palettes, an adapter is trained.",
            f"{source.run if source else 'the run that it was made from'}, or pomona recover {path}",
        )


def check_palettized(path: Path, rule: str) -> None:
    """Raises `UserError`, with the rule of who asks, where a run folder is not there or holds no palettes."""
    if not path.exists():
        raise UserError(
            f"{path} is not there, as seen from this folder.",
            "a run names the one that it begins at by the path it was made with.",
            f"the same command in the folder that {path} is in.",
        )
    if not is_palettized(path):
        raise UserError(
            f"{path} is not palettized.",
            rule,
            f"pomona palettize {path} --bits 3.7 --run {path}-palettized, then the same with that one.",
        )


def check_same_shape(origin: Origin, architecture: Architecture) -> None:
    """Raises `UserError` where a run has another shape than the model that it begins from."""
    theirs = dataclasses.asdict(read_config(RunFolder(Path(origin.run)), Run).architecture)
    for name, ours in dataclasses.asdict(architecture).items():
        if isinstance(ours, int) and theirs[name] != ours:
            raise UserError(
                f"architecture.{name} is {ours}, and that of {origin.run} is {theirs[name]}.",
                "a run has the shape of the model that it begins from.",
                f"--architecture.{name.replace('_', '-')} {theirs[name]}",
            )


def begin_at(origin: Origin, specs: Any) -> Callable[[Mesh], Any]:
    """Reads the parameters of an origin, of the shapes of `specs`, onto a mesh.

    Raises:
        UserError: (when called) the origin is gone, has changed, or holds other shapes.
    """

    def begin(mesh: Mesh) -> Any:
        check_origin(origin)
        _check_not_palettized(Path(origin.run))
        shapes = map_specs(
            lambda spec: jax.ShapeDtypeStruct(spec.shape, "float32", sharding=rules.sharding(mesh, spec.axes)), specs
        )
        found = restore(RunFolder(Path(origin.run)).checkpoints, lambda _: {"params": shapes}, origin.step)
        assert found is not None, "a checkpoint with a fingerprint is there"
        return found.trees["params"]

    return begin


def origin_model(origin: Origin, mesh: Mesh, objective_of: Callable[[Run], Objective]) -> Decoder:
    """The decoder that an origin's run has trained, on a mesh; `objective_of` says what that run trains.

    Raises:
        UserError: the origin is gone, has changed, or holds other shapes.
    """
    run = read_config(RunFolder(Path(origin.run)), Run)
    objective = objective_of(run)
    trained = begin_at(origin, objective.trained)(mesh)
    return objective.model(trained, objective.load_frozen(mesh), jnp.ones(()))
