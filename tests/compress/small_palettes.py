"""A small run folder and its palettized sibling, made without training."""

import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
from small_run import small_run

from pomona.checkpoint.config import CheckpointConfig
from pomona.checkpoint.palettes import read_palettes
from pomona.checkpoint.store import Store
from pomona.compress.palettize import Settings, palettize_run
from pomona.core.config import to_json
from pomona.core.files import write_json
from pomona.core.run_folder import RunFolder, read_config
from pomona.data.prepare import prepare
from pomona.data.tokenizer import MODEL_FILE
from pomona.export.device import export_device
from pomona.model.config import Execution
from pomona.model.decoder import parameter_specs
from pomona.model.spec import initialize
from pomona.ops.palette import GROUP
from pomona.parallel.config import MeshConfig
from pomona.train.config import Run


def write_dense(path, cache, **changes):
    """A run folder with one checkpoint of drawn weights."""
    run = dataclasses.replace(small_run(cache, name="dense", **changes), mesh=MeshConfig(data=-1, fsdp=1))
    run = dataclasses.replace(run, execution=Execution(layers="scanned"))  # half the time to compile
    params = jax.jit(lambda: initialize(parameter_specs(run.architecture), jax.random.key(5)))()
    folder, prepared = RunFolder(path), prepare(run.data, lambda text: None)
    write_json(folder.config, to_json(run))
    folder.tokenizer.mkdir()
    shutil.copyfile(prepared.tokenizer / MODEL_FILE, folder.tokenizer / MODEL_FILE)
    store = Store(folder.checkpoints, CheckpointConfig())
    store.save(1, {"params": params}, {"stage": "core", "step": 1, "corpus": prepared.folder.name})
    store.close()
    return run, jax.tree.map(np.asarray, params)


def write_palettized(path):
    """The palettized folder of the dense one beside it, by k-means without weights; 4 bits."""
    settings = Settings(bits=4.0, weights="none")
    palettize_run(Path(path).with_name("dense"), Path(path), settings, None, lambda text: None)
    return read_palettes(RunFolder(path).palettes, read_config(RunFolder(path), Run).architecture)


def write_device_file(folder, cache):
    """A palettized run with both widths in a folder, and its device file."""
    write_dense(folder / "dense", cache)
    palettize_run(folder / "dense", folder / "small", Settings(3.5, "free", "none"), None, lambda text: None)
    export_device(folder / "small", folder / "small.pom")
    return folder / "small", folder / "small.pom"


def unpack(palettized):
    """The dense weights [L, inputs, outputs] of a palettized one, in float64, from the definition."""
    palettized = jax.tree.map(np.asarray, palettized)
    low, high = palettized.indices & 15, palettized.indices >> 4
    index_LOI = np.stack([low, high], axis=-1).reshape(*low.shape[:2], -1).astype(int)
    table = np.repeat(palettized.tables.astype(np.float64), GROUP, axis=1)
    W_LOI = palettized.scales.astype(np.float64)[..., None] * np.take_along_axis(table, index_LOI, axis=2)
    return W_LOI.transpose(0, 2, 1)
