"""Pruning: from a run folder to one whose model has narrower feed-forward blocks (afm-recipe section 6).

    OUT/masks/        the run that learns the masks, by the one loop; one-shot methods have none
    OUT/              the pruned model; config.json comes last, so that a folder without it is not finished

The same command goes on after a kill, wherever it came: in the masks' run after its newest checkpoint, later by
writing the model again.
"""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from pomona.checkpoint.config import CheckpointConfig
from pomona.checkpoint.store import Store, restore
from pomona.compress.judge import check_finite, judge
from pomona.compress.parent import dense_parent, stage_like_first
from pomona.core.config import differences, to_json
from pomona.core.errors import UserError
from pomona.core.files import disk_errors, write_json
from pomona.core.provenance import provenance
from pomona.core.run_folder import RunFolder, read_config, record_event
from pomona.data.prepare import Prepared, prepare
from pomona.data.tokenizer import MODEL_FILE, load_tokenizer
from pomona.metrics.records import append_record, read_records
from pomona.model.decoder import Decoder, parameter_specs
from pomona.model.spec import map_specs
from pomona.parallel import rules
from pomona.parallel.mesh import build_mesh, same_fate, start_processes
from pomona.train.config import (
    Run,
    at_stage,
    check_run,
    check_stage_mesh,
    decide,
    mesh_option,
    total_steps,
)
from pomona.train.loop import train
from pomona.train.objective_config import NextToken, SoftTopK
from pomona.train.objectives import objective_of
from pomona.train.origin import begin_at, check_origin
from pomona.train.soft_top_k import budget_at, hard_mask, narrowed, temperature_at
from pomona.train.unit_scores import activation, magnitude

Method = Literal["soft-top-k", "magnitude", "activation"]
STEPS_SHARE, LEAST_STEPS = 0.03, 50  # of the parent's first stage: AFM learned its masks on 188 B of 6.3 T tokens
LOOKS = 5  # at the held-out text while masks are learned


@dataclasses.dataclass(frozen=True)
class Look:
    """Held-out loss in bits per byte while the masks were learned, after a step; units are those of each layer."""

    step: int
    units: float
    temperature: float
    bits_per_byte: float


@dataclasses.dataclass(frozen=True)
class Pruned:
    """What a pruning did; losses are bits per byte on held-out text."""

    method: Method
    units_kept: tuple[int, ...]
    units_before: int
    before: float
    during: tuple[Look, ...]
    after: float


def masks_run(path: Path, ffn: int, step: int | None = None) -> Run:
    """The run that learns to keep `ffn` units of each layer of a trained model; overrides change its fields.

    One stage like the parent's first (the core mixture), 3 % as long, at the parent's own rotary base.

    Raises:
        UserError: the folder is no run folder, has no such checkpoint, or its model is not dense.
    """
    parent, origin = dense_parent(path, step)
    stage = stage_like_first(parent, origin, "masks", STEPS_SHARE, LEAST_STEPS)
    return dataclasses.replace(
        parent,
        name=f"{parent.name}-{ffn}",
        stages=(stage,),
        objective=SoftTopK(ffn=ffn),
        origin=origin,
        checkpoint=dataclasses.replace(parent.checkpoint, remote=None),
        evaluation=dataclasses.replace(parent.evaluation, every_steps=max(1, stage.steps // LOOKS)),
    )


def prune(run: Run, out: Path, method: Method = "soft-top-k", report: Callable[[str], None] = print) -> Pruned:
    """Prunes the origin of a run into a run folder.

    Args:
        run: what `masks_run` gave. One-shot methods take its budget, and the batches of its stage.

    Raises:
        UserError: a budget that is none, a parent that is gone, has other text or weights that are not finite, or a
            folder that holds something else.
        Preempted: a signal asked to stop; the same command goes on.
    """
    check_run(run)
    assert isinstance(run.objective, SoftTopK) and run.origin is not None
    start_processes()
    folder, pruned = RunFolder(out), _pruned(run)
    decided, mesh = _laid_out(run)
    _laid_out(pruned)  # a budget that does not divide over the mesh is found before anything is learned
    leads = jax.process_index() == 0
    with same_fate():
        check_origin(run.origin)
        done = _is_done(folder, pruned, method)
    if done:
        report(f"{out} holds this pruned model already; nothing was changed")
        return _told(out, run)
    with same_fate():
        prepared = prepare(run.data, report if leads else lambda _: None)
        _check_tokenizer(run, prepared)
    dense = begin_at(run.origin, parameter_specs(run.architecture))(mesh)
    check_finite(dense, run.origin.run)
    before = judge(decided, dense, mesh, prepared)
    if method == "soft-top-k":
        del dense
        train(run, out / "masks")
        dense, mask_LF = _learned(run, out / "masks", mesh)
    else:
        found = magnitude(dense, mesh) if method == "magnitude" else activation(decided, dense, mesh)
        mask_LF = hard_mask(found, run.objective.ffn)
    small = _narrowed(dense, mask_LF, pruned, mesh)
    del dense
    after = judge(dataclasses.replace(decided, architecture=pruned.architecture), small, mesh, prepared)
    kept = [run.objective.ffn] * run.architecture.num_layers
    losses = {"before": before["bits_per_byte"], "after": after["bits_per_byte"]}
    with same_fate(), disk_errors(out):
        event = {"method": method, "units_kept": kept, "units_before": run.architecture.ffn_dim, **losses}
        _write(pruned, folder, small, Path(run.origin.run), event, after)
    return _told(out, run)


def _pruned(run: Run) -> Run:
    """The configuration of the pruned model: its parent's, but for the width and where it comes from."""
    assert isinstance(run.objective, SoftTopK) and run.origin is not None
    parent = read_config(RunFolder(Path(run.origin.run)), Run)
    narrow = dataclasses.replace(run.architecture, ffn_dim=run.objective.ffn)
    return dataclasses.replace(
        run, architecture=narrow, stages=parent.stages, objective=NextToken(), evaluation=parent.evaluation
    )


def _laid_out(run: Run) -> tuple[Run, Mesh]:
    """A run decided for the devices of this job, and the mesh of its first stage."""
    devices = jax.devices()
    decided = decide(run, devices[0].platform, len(devices))
    check_stage_mesh(decided, 0, len(devices))
    return decided, build_mesh(at_stage(decided, 0).mesh, devices, mesh_option(decided, 0))


def _learned(run: Run, masks: Path, mesh: Mesh) -> tuple[Decoder, jax.Array]:
    """The weights and the hard masks of a finished masks' run."""
    assert isinstance(run.objective, SoftTopK)
    objective = objective_of(run)
    shapes = map_specs(
        lambda spec: jax.ShapeDtypeStruct(spec.shape, "float32", sharding=rules.sharding(mesh, spec.axes)),
        objective.trained,
    )
    found = restore(RunFolder(masks).checkpoints, lambda _: {"params": shapes}, total_steps(run))
    assert found is not None, "the loop ends with a checkpoint"
    trained = found.trees["params"]
    check_finite(trained, str(masks))
    weights = trained["weights"] if "weights" in trained else objective.load_frozen(mesh)
    return weights, hard_mask(trained["scores"], run.objective.ffn)


def _narrowed(dense: Decoder, mask_LF: jax.Array, pruned: Run, mesh: Mesh) -> Decoder:
    with jax.set_mesh(mesh):
        return jax.jit(narrowed, static_argnums=2)(dense, mask_LF, pruned.architecture.ffn_dim)


def _write(
    pruned: Run, folder: RunFolder, params: Decoder, parent: Path, event: dict[str, Any], after: dict[str, float]
) -> None:
    """The pruned model's folder. What an earlier attempt left is written again."""
    assert pruned.origin is not None
    step, leads = pruned.origin.step, jax.process_index() == 0
    if leads:
        for left in (folder.checkpoints, folder.tokenizer):
            shutil.rmtree(left, ignore_errors=True)
        for left in (folder.events, folder.metrics):
            left.unlink(missing_ok=True)
        folder.tokenizer.mkdir(parents=True)
        shutil.copyfile(RunFolder(parent).tokenizer / MODEL_FILE, folder.tokenizer / MODEL_FILE)
    store = Store(folder.checkpoints, CheckpointConfig())
    store.save(step, {"params": params}, {"stage": "pruned", "step": step})
    store.close()
    if leads:
        append_record(folder.metrics, {"step": step, "stage": "pruned", **after})
        record_event(folder, "start", **provenance())
        record_event(folder, "pruned", **event)
        write_json(folder.config, to_json(pruned))


def _is_done(folder: RunFolder, pruned: Run, method: Method) -> bool:
    """Whether the folder holds the pruned model.

    Raises:
        UserError: it holds another, or something else.
    """
    if folder.config.exists():
        changes = differences(read_config(folder, Run), pruned)
        told = [event for event in read_records(folder.events) if event["event"] == "pruned"]
        if told and told[-1]["method"] != method:
            changes.append(f"method: {told[-1]['method']} -> {method}")
        if changes or not told:
            raise UserError(
                f"{folder.path} holds another run ({'; '.join(changes[:3]) or 'not a pruned one'}).",
                "a finished folder is never overwritten.",
                "another folder, with --run.",
            )
        return True
    ours = {"checkpoints", "tokenizer", "events.jsonl", "metrics.jsonl", "logs"}
    ours |= {"masks"} if method == "soft-top-k" else set()
    if folder.path.exists() and (not folder.path.is_dir() or {p.name for p in folder.path.iterdir()} - ours):
        raise UserError(
            f"{folder.path} exists and is no pruning by {method} that was stopped.",
            "a model is written to a new or empty folder.",
            "another folder, with --run.",
        )
    return False


def _check_tokenizer(run: Run, prepared: Prepared) -> None:
    assert run.origin is not None
    parents = RunFolder(Path(run.origin.run)).tokenizer
    if load_tokenizer(prepared.tokenizer).fingerprint != load_tokenizer(parents).fingerprint:
        raise UserError(
            f"the text is cut by another tokenizer than that of {run.origin.run}.",
            "a model reads the pieces it was trained on; the text has changed since then.",
            f"--data.tokenizer.path {parents}",
        )


def _told(out: Path, run: Run) -> Pruned:
    """What a finished folder tells of its pruning."""
    assert isinstance(run.objective, SoftTopK)
    event = [each for each in read_records(RunFolder(out).events) if each["event"] == "pruned"][-1]
    during = []
    for record in read_records(RunFolder(out / "masks").metrics):
        if "bits_per_byte" in record and 0 < record["step"] < total_steps(run):
            done = record["step"] / total_steps(run)
            units = float(budget_at(run.objective, run.architecture.ffn_dim, done))
            cold = float(temperature_at(run.objective, done))
            during.append(Look(record["step"], units, cold, record["bits_per_byte"]))
    kept = tuple(event["units_kept"])
    return Pruned(event["method"], kept, event["units_before"], event["before"], tuple(during), event["after"])
