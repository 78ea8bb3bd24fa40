"""The palettize stage: one run folder in, another one out, tensor by tensor.

Every projection of every layer is written at 4 bits and at 2 bits, where the requested average leaves a choice; then
the mix is chosen, and the files of the other choice are removed. A start after a kill finds the whole files and goes on
after them: what a matrix becomes depends on nothing but the matrix, its importance and its bits.

    config.json     the Run of the source, with the source's checkpoint as its origin
    tokenizer/      the source's
    palettes/       see checkpoint/palettes.py; before the end also settings.json and importance/
"""

import dataclasses
import shutil
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pomona.checkpoint.palettes import (
    NAME,
    REST,
    Written,
    finish,
    projection_names,
    read_about,
    write_palette,
    write_rest,
    written,
)
from pomona.compress.allocate import HIGH, LOW, Choice, allocate, average, check_average, cost
from pomona.compress.importance import Measured, Weights, measure, read
from pomona.compress.judge import judge
from pomona.compress.palettes import Grid, check_shape, palettize
from pomona.core.config import to_json
from pomona.core.errors import UserError
from pomona.core.files import disk_errors, read_json, write_bytes, write_json
from pomona.core.provenance import provenance
from pomona.core.run_folder import RunFolder, claim, read_config, record_event
from pomona.data.prepare import open_batches, prepare
from pomona.data.tokenizer import MODEL_FILE
from pomona.metrics.records import read_records
from pomona.model.config import Architecture, resolve
from pomona.model.decoder import Decoder, parameter_specs
from pomona.model.projection import matrix_shape
from pomona.parallel.config import MeshConfig
from pomona.parallel.mesh import build_mesh
from pomona.train.config import Run, decide
from pomona.train.load import Model, load_model
from pomona.train.objective_config import LowRank, NextToken
from pomona.train.origin import origin_of

SAMPLE_SEED = 500_009  # beside the stages' seeds, so that the samples are not the first batches of training


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is asked for."""

    bits: float = 3.7
    """The average over the weights of the linear layers, tables and scales included; 2 and 4: all tensors alike."""
    grid: Grid = "free"
    weights: Weights = "fisher"
    samples: int = 128
    """Sequences of the training mixture that the importance is measured on."""


def palettize_run(
    source: Path, target: Path, settings: Settings, step: int | None, report: Callable[[str], None]
) -> dict[str, Any]:
    """Palettizes a run's checkpoint into another run folder, or goes on where an earlier start was stopped.

    Returns:
        What palettes.json says; and `bits_per_byte_before`, `bits_per_byte` on held-out text, where text is read at
        all: `weights` "none" needs none.

    Raises:
        UserError: an average that no mix reaches, a tensor that does not divide or is not finite, no checkpoint, a
            target of another run or other settings, a full disk.
    """
    run = read_config(RunFolder(source), Run)
    _check(source, run, settings)
    origin = origin_of(source, step)
    folder = RunFolder(target)
    claim(folder, dataclasses.replace(run, origin=origin))
    _claim_settings(folder, settings)
    if any(event["event"] == "palettized" for event in read_records(folder.events)):
        report(f"{target} is finished already; nothing was changed")
        return read_about(folder.palettes) | _losses(folder)
    record_event(folder, "start", **provenance())
    if not (folder.tokenizer / MODEL_FILE).exists():
        write_bytes(folder.tokenizer / MODEL_FILE, (RunFolder(source).tokenizer / MODEL_FILE).read_bytes())
    if not (folder.palettes / NAME).exists():
        tensors = _write_tensors(source, origin.step, folder, settings, report)
        finish(folder.palettes, tensors, {"settings": to_json(settings), **averages(tensors)})
    with disk_errors(folder.palettes):
        shutil.rmtree(_importance_folder(folder), ignore_errors=True)
    about = read_about(folder.palettes)
    told = {name: about[name] for name in ("settings", "bits_per_weight", "bits_per_parameter", "predicted_loss")}
    record_event(folder, "palettized", **told, **_judged(source, target, origin.step, settings, report))
    return about | _losses(folder)


def averages(tensors: list[Written]) -> dict[str, float]:
    """Bits a weight: of the linear layers, and of all parameters, with the int8 embedding and the float32 norms.

    And `predicted_loss`, 1/2 sum h (W - W^)^2 over the linear layers.
    """
    linear = [tensor for tensor in tensors if tensor.name != REST]
    over = lambda part: sum(t.stored_bits for t in part) / sum(t.size for t in part)
    return {
        "bits_per_weight": over(linear),
        "bits_per_parameter": over(tensors),
        "predicted_loss": 0.5 * sum(tensor.error for tensor in linear),
    }


def _judged(
    source: Path, target: Path, step: int, settings: Settings, report: Callable[[str], None]
) -> dict[str, float]:
    """What palettizing costs on held-out text, on one device."""
    if settings.weights == "none":
        return {}
    found: dict[str, float] = {}
    for name, load in (
        ("bits_per_byte_before", lambda: load_model(source, step)),
        ("bits_per_byte", lambda: load_model(target)),
    ):
        model = load()  # one after the other
        stage = dataclasses.replace(model.stage, mesh=None)
        run = dataclasses.replace(model.run, stages=(stage,), mesh=MeshConfig(), objective=NextToken())
        run = decide(run, jax.default_backend(), 1)
        mesh = build_mesh(run.mesh, jax.devices()[:1])
        found[name] = judge(run, model.params, mesh, prepare(run.data, report))["bits_per_byte"]
    return found


def _losses(folder: RunFolder) -> dict[str, float]:
    event = [each for each in read_records(folder.events) if each["event"] == "palettized"][-1]
    return {name: event[name] for name in ("bits_per_byte_before", "bits_per_byte") if name in event}


def _check(source: Path, run: Run, settings: Settings) -> None:
    """Everything that can be seen to be wrong before a weight is read or anything is written."""
    if (RunFolder(source).palettes).exists():
        raise UserError(
            f"{source} is palettized already.",
            "a palettized model is made from a dense one.",
            "the run folder that it was made from; its name is in config.json, under origin.",
        )
    if isinstance(run.objective, LowRank):
        raise UserError(
            f"{source} holds an adapter for {run.origin.run if run.origin else 'another run'}.",
            "what is palettized is a model's own weights.",
            "the folder of a run that pomona train, prune, distill or qat wrote.",
        )
    if settings.samples < 1:
        raise UserError(f"--samples is {settings.samples}.", "at least one sequence is measured.", "--samples 128")
    shapes = _shapes(run.architecture)
    check_average(_choices(shapes, settings), settings.bits)
    for name, shape in shapes.items():
        for bits in _widths(settings):
            check_shape(name, shape, bits)


def _claim_settings(folder: RunFolder, settings: Settings) -> None:
    path, asked = folder.palettes / "settings.json", to_json(settings)
    if not path.exists():
        return write_json(path, asked)
    found = read_json(path)
    if found != asked:
        changes = ", ".join(
            f"{name}: {found.get(name)} -> {asked[name]}" for name in asked if found.get(name) != asked[name]
        )
        raise UserError(
            f"{folder.path} holds palettes with other settings ({changes}).",
            "palettize goes on, or finds itself finished, with exactly the settings it was started with.",
            "repeat the original command, or choose a new folder with --run.",
        )


def _write_tensors(
    source: Path, step: int, folder: RunFolder, settings: Settings, report: Callable[[str], None]
) -> list[Written]:
    """Every file that is not there yet, and the mix."""
    architecture = read_config(folder, Run).architecture
    shapes, palettes, widths = _shapes(architecture), folder.palettes, _widths(settings)
    report(f"reading step {step} of {source}")
    model = load_model(source, step)
    found: dict[tuple[str, int], Written] = {}
    importance: Callable[[str, int], np.ndarray | None] | None = None
    for name, layer, projection in projection_names(architecture):
        for bits in widths:
            about = written(palettes, name, bits)
            if about is None:
                importance = importance or _importance(model, folder, settings, report)
                weight_IO = np.asarray(attrgetter(projection)(model.params.layers)[layer]).reshape(shapes[name])
                palette = palettize(name, weight_IO, importance(projection, layer), bits, settings.grid)
                about = write_palette(palettes, name, palette)
            found[name, bits] = about
        if projection == "ffn.down":
            report(f"layer {layer + 1} of {architecture.num_layers} is palettized")
    rest = written(palettes, REST, 8)
    if rest is None:
        _check_finite(model.params)
        rest = write_rest(palettes, model.params)
    half = lambda name, bits: 0.5 * found[name, bits].error if bits in widths else 0.0
    choices = [
        dataclasses.replace(c, high_loss=half(name, HIGH), low_loss=half(name, LOW))
        for c, name in zip(_choices(shapes, settings), shapes)
    ]
    low = allocate(choices, settings.bits)
    tensors = [found[name, LOW if at_low else HIGH] for name, at_low in zip(shapes, low)]
    stored = sum(tensor.stored_bits for tensor in tensors) / sum(tensor.size for tensor in tensors)
    assert abs(stored - average(choices, low)) < 1e-9, "the files are as large as the formula says"
    return [*tensors, rest]


def _check_finite(params: Decoder) -> None:
    rest = {"embedding": params.embedding, "final_norm": params.final_norm}
    rest |= {name: attrgetter(name)(params.layers) for name in ("attention_norm", "ffn_norm")}
    rest |= {f"attention.{name}": getattr(params.layers.attention, name) for name in ("query_norm", "key_norm")}
    for name, leaf in rest.items():
        if not np.isfinite(np.asarray(leaf)).all():
            raise UserError(
                f"the weights of {name} are not all finite numbers.",
                "a model that is palettized has finite weights.",
                "a checkpoint from before training diverged: pomona palettize RUN --step N",
            )


def _importance(
    model: Model, folder: RunFolder, settings: Settings, report: Callable[[str], None]
) -> Callable[[str, int], np.ndarray | None]:
    """(projection, layer) -> h [I, O] or [I, 1], or None; measured once, and read from disk by every later start."""
    if settings.weights == "none":
        return lambda projection, layer: None
    run, stage, place = model.run, model.stage, _importance_folder(folder)
    prepared = prepare(run.data, report)
    batches = open_batches(prepared, stage.sequence_length, 1, run.seed + SAMPLE_SEED, stage.mixture)
    execution = resolve(run.execution, jax.default_backend())
    measured = Measured(model.params, run.architecture, execution, stage.rope_base, batches, settings.samples)
    measure(settings.weights, measured, place, report)
    return lambda projection, layer: read(place, projection, layer)


def _importance_folder(folder: RunFolder) -> Path:
    return folder.palettes / "importance"


def _shapes(architecture: Architecture) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of every matrix by its name, in the order of the files."""
    layers = parameter_specs(architecture).layers
    return {
        name: matrix_shape(attrgetter(projection)(layers)) for name, _, projection in projection_names(architecture)
    }


def _widths(settings: Settings) -> tuple[int, ...]:
    """The bits that a tensor can get."""
    return (int(settings.bits),) if settings.bits in (LOW, HIGH) else (HIGH, LOW)


def _choices(shapes: dict[str, tuple[int, int]], settings: Settings) -> list[Choice]:
    balanced = settings.grid == "balanced"
    costs = lambda inputs: (cost(HIGH, inputs, balanced), cost(LOW, inputs, balanced))
    return [Choice(inputs * outputs, *costs(inputs)) for inputs, outputs in shapes.values()]
