"""Provisional: the palettize branch has the real one. Reads and writes a palettized model in one file."""

import hashlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from pomona.core.files import read_json, write_json
from pomona.model.adapter import palettized_shapes
from pomona.model.config import Architecture
from pomona.model.decoder import Decoder

NAME = "palettes.json"


def read_about(folder: Path) -> dict[str, Any]:
    """What palettes.json says."""
    return read_json(folder / NAME)


def read_palettes(folder: Path, architecture: Architecture) -> Decoder:
    """The palettized decoder."""
    leaves, structure = jax.tree.flatten(palettized_shapes(architecture))
    data = load_file(folder / "all.safetensors")
    return jax.tree.unflatten(structure, [jnp.asarray(data[str(i)]) for i in range(len(leaves))])


def write_all(folder: Path, decoder: Decoder) -> None:
    """Writes a palettized decoder."""
    folder.mkdir(parents=True)
    leaves = [np.ascontiguousarray(x) for x in jax.tree.leaves(decoder)]
    save_file({str(i): x for i, x in enumerate(leaves)}, folder / "all.safetensors")
    digest = hashlib.sha256(b"".join(x.tobytes() for x in leaves)).hexdigest()[:16]
    write_json(folder / NAME, {"fingerprint": digest})
