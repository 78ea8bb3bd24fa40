"""PROVISIONAL stand-in until the palettize branch is merged."""

import hashlib
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from pomona.core.files import write_json
from pomona.model.adapter import palettized_shapes


def is_palettized(path: Path) -> bool:
    return (path / "palettes" / "palettes.json").exists()


def palettes_fingerprint(path: Path):
    f = path / "palettes" / "palettes.json"
    return hashlib.sha256(f.read_bytes()).hexdigest()[:16] if f.exists() else None


def read_palettes(path: Path, architecture):
    shapes = palettized_shapes(architecture)
    leaves, s = jax.tree.flatten(shapes)
    data = load_file(path / "palettes" / "all.safetensors")
    return jax.tree.unflatten(s, [data[str(i)] for i in range(len(leaves))])


def write_palettes(path: Path, decoder):
    (path / "palettes").mkdir(parents=True)
    leaves = [np.ascontiguousarray(x) for x in jax.tree.leaves(decoder)]
    save_file({str(i): x for i, x in enumerate(leaves)}, path / "palettes" / "all.safetensors")
    h = hashlib.sha256(b"".join(x.tobytes() for x in leaves)).hexdigest()
    write_json(path / "palettes" / "palettes.json", {"digest": h})
