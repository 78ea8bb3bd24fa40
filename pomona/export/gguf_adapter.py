"""A run's adapter as one GGUF file, which llama.cpp puts on the GGUF file of its base (`llama-cli --lora`).

llama.cpp computes y = W x + (alpha / rank) b (a x) with a [R, I] and b [O, R], as PEFT has them.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pomona.adapters.bundle import Bundle
from pomona.core.files import new_file
from pomona.export.adapter import adapter_of
from pomona.export.gguf import ARCHITECTURE, PROJECTION_NAMES, package, padded_ffn_dim, write_tensors
from pomona.train.low_rank import adapted_run


def export_gguf_adapter(path: Path, target: Path, pad_ffn: bool = False, step: int | None = None) -> None:
    """Writes a run's adapter in float32.

    Args:
        pad_ffn: for a base that was exported so.

    Raises:
        UserError: the run trained no adapter, the file exists already, the disk is full, or the package `gguf` is not
            installed.
    """
    gguf, bundle = package(), adapter_of(path, step)
    architecture = adapted_run(str(path)).architecture
    wider = padded_ffn_dim(architecture) - architecture.ffn_dim if pad_ffn else 0
    tensors = [(name, array.shape, array) for name, array in adapter_tensors(bundle, wider)]
    with new_file(target) as draft:
        writer = gguf.GGUFWriter(draft, ARCHITECTURE)
        writer.add_type("adapter")
        writer.add_name(bundle.name)
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", bundle.alpha)
        for name, shape, _ in tensors:
            writer.add_tensor_info(name, shape, np.dtype(np.float32), math.prod(shape) * 4)
        write_tensors(writer, (array for _, _, array in tensors))


def adapter_tensors(bundle: Bundle, wider: int) -> Iterator[tuple[str, np.ndarray]]:
    """(name, float32 array) of every factor; feed-forward units beyond the adapter's, `wider` of them, get zeros."""
    layers = len(bundle.weights["query.a"])
    for layer in range(layers):
        for there, name in PROJECTION_NAMES.items():
            a_RI, b_OR = (np.ascontiguousarray(bundle.weights[f"{name}.{side}"][layer].T) for side in ("a", "b"))
            if name == "down":
                a_RI = np.pad(a_RI, ((0, 0), (0, wider)))
            elif name in ("gate", "up"):
                b_OR = np.pad(b_OR, ((0, wider), (0, 0)))
            yield f"blk.{layer}.{there}.weight.lora_a", a_RI.astype(np.float32)
            yield f"blk.{layer}.{there}.weight.lora_b", b_OR.astype(np.float32)
