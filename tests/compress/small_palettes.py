"""A small run folder and its palettized sibling, made without training and without our palettizer."""

import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
from small_run import small_run

from pomona.checkpoint.config import CheckpointConfig
from pomona.checkpoint.palettes import write_all
from pomona.checkpoint.store import Store
from pomona.core.config import to_json
from pomona.core.files import write_json
from pomona.core.run_folder import RunFolder
from pomona.data.prepare import prepare
from pomona.data.tokenizer import MODEL_FILE
from pomona.model.adapter import map_projections
from pomona.model.decoder import parameter_specs
from pomona.model.spec import initialize
from pomona.ops.palette import GROUP, Palettized, pack_nibbles
from pomona.parallel.config import MeshConfig
from pomona.train.origin import origin_of


def write_dense(path, cache):
    """A run folder with one checkpoint of drawn weights."""
    run = dataclasses.replace(small_run(cache, name="dense"), mesh=MeshConfig(data=-1, fsdp=1))
    params = jax.jit(lambda: initialize(parameter_specs(run.architecture), jax.random.key(5)))()
    folder, prepared = RunFolder(path), prepare(run.data, lambda text: None)
    write_json(folder.config, to_json(run))
    folder.tokenizer.mkdir()
    shutil.copyfile(prepared.tokenizer / MODEL_FILE, folder.tokenizer / MODEL_FILE)
    store = Store(folder.checkpoints, CheckpointConfig())
    store.save(1, {"params": params}, {"stage": "core", "step": 1, "corpus": prepared.folder.name})
    store.close()
    return run, jax.tree.map(np.asarray, params)


def write_palettized(path, dense):
    """The palettized folder of a dense one: 16 quantiles of every group of rows, rows by their root mean square."""
    run, params = dense
    source = Path(path).with_name("dense")
    folder = RunFolder(path)
    run = dataclasses.replace(run, name="palettized", origin=origin_of(source))
    palettized = map_projections(lambda name, weight: palettize(name, weight), params)
    shutil.copytree(source / "tokenizer", folder.tokenizer)
    write_json(folder.config, to_json(run))
    write_all(folder.palettes, palettized)
    return run, palettized


def palettize(name, weight):
    """A weight [L, inputs, outputs], heads apart, as `Palettized`."""
    inputs = weight.shape[1] * (weight.shape[2] if name == "output" else 1)
    W_LOI = weight.reshape(weight.shape[0], inputs, -1).transpose(0, 2, 1)
    scales = np.sqrt((W_LOI**2).mean(axis=2)).astype(np.float16)
    scaled = W_LOI / scales[..., None].astype(np.float32)
    groups = scaled.reshape(W_LOI.shape[0], -1, GROUP * inputs)
    tables = np.quantile(groups, (np.arange(16) + 0.5) / 16, axis=2).transpose(1, 2, 0).astype(np.float16)
    nearest = np.abs(groups[..., None] - tables[:, :, None, :].astype(np.float32)).argmin(axis=-1)
    return Palettized(pack_nibbles(nearest.reshape(W_LOI.shape).astype(np.uint8)), tables, scales)


def unpack(palettized):
    """The dense weights [L, inputs, outputs] of a palettized one, in float64, from the definition."""
    low, high = palettized.indices & 15, palettized.indices >> 4
    index_LOI = np.stack([low, high], axis=-1).reshape(*low.shape[:2], -1).astype(int)
    table = np.repeat(palettized.tables.astype(np.float64), GROUP, axis=1)
    W_LOI = palettized.scales.astype(np.float64)[..., None] * np.take_along_axis(table, index_LOI, axis=2)
    return W_LOI.transpose(0, 2, 1)
