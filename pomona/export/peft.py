"""Adapters between bundles and the folders of Hugging Face's PEFT.

PEFT computes y = W x + (lora_alpha / r) B (A x) with lora_A.weight [R, I] and lora_B.weight [O, R], the transposes of
ours, layer by layer. Its base is the Hugging Face export of the base's run folder: the same weights, unpacked.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from pomona.adapters.bundle import DTYPES, Bundle, weight_shapes, write_bundle
from pomona.core.errors import UserError
from pomona.core.files import check_new, new_folder, read_json, write_json
from pomona.export.adapter import adapter_of
from pomona.export.hf import PROJECTION_NAMES
from pomona.model.config import PLACES, Architecture
from pomona.train.load import load_base
from pomona.train.low_rank import adapted_run, base_origin

NAMES = {ours: theirs for theirs, ours in PROJECTION_NAMES.items()}
TENSOR = "base_model.model.model.layers.{}.{}.{}.lora_{}.weight"
FOUND = re.compile(r"base_model\.model\.model\.layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)\.lora_([AB])\.weight")
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

UNKNOWN = {"use_dora": False, "bias": "none", "rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None}
UNKNOWN |= {"fan_in_fan_out": False, "lora_bias": False, "layers_to_transform": None, "trainable_token_indices": None}
"""What a plain LoRA has of settings that change what is computed."""


def export_peft(path: Path, target: Path, dtype: str = "float32", step: int | None = None) -> None:
    """Writes a folder that `peft.PeftModel.from_pretrained` puts on the Hugging Face export of the base.

    Raises:
        UserError: the run trained no adapter, the folder exists already, or the disk is full.
    """
    bundle, base = adapter_of(path, step), Path(base_origin(adapted_run(str(path))).run)
    with new_folder(target) as folder:
        tensors = {name: array.astype(DTYPES[dtype]) for name, array in peft_tensors(bundle.weights)}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        (folder / WEIGHTS).chmod(0o644)  # safetensors makes private files
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": str(base.with_name(base.name + "-hf")),
            "r": bundle.rank,
            "lora_alpha": bundle.alpha,
            "lora_dropout": 0.0,
            "target_modules": [NAMES[name] for name in PLACES],
            "bias": "none",
            "fan_in_fan_out": False,
            "use_rslora": False,
            "inference_mode": True,
        }
        write_json(folder / CONFIG, config)


def import_peft(folder: Path, base: Path, target: Path) -> None:
    """Writes the bundle of a LoRA that PEFT has trained on the Hugging Face export of a run.

    A projection that it leaves alone gets a correction of zero.

    Raises:
        UserError: it is no plain LoRA, has weights that the base has no place for, or the target exists already.
    """
    check_new(target)
    config = _config(folder)
    try:
        tensors = {name: array.astype(np.float32) for name, array in load_file(folder / WEIGHTS).items()}
    except (OSError, SafetensorError, TypeError) as error:
        raise UserError(
            f"{folder / WEIGHTS} cannot be read: {error}.",
            f"PEFT keeps an adapter's weights in {WEIGHTS}, as float32 or float16.",
            "model.save_pretrained(FOLDER), with safe_serialization.",
        ) from error
    one, fingerprint = load_base(base)
    rank = config["r"]
    alpha = config["lora_alpha"] * (rank**0.5 if config.get("use_rslora") else 1.0)  # rsLoRA: alpha / sqrt(r)
    weights = bundle_weights(tensors, one.run.architecture, rank, folder)
    write_bundle(target, Bundle(folder.name, weights, rank, float(alpha), fingerprint, {}))


def peft_tensors(weights: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array) of every tensor of a PEFT folder, from a bundle's."""
    for name, place in PLACES.items():
        block = "self_attn" if place.startswith("attention.") else "mlp"
        for index in range(len(weights[f"{name}.a"])):
            for side in ("a", "b"):
                full = TENSOR.format(index, block, NAMES[name], side.upper())
                yield full, np.ascontiguousarray(weights[f"{name}.{side}"][index].T)


def bundle_weights(
    tensors: dict[str, np.ndarray], architecture: Architecture, rank: int, folder: Path
) -> dict[str, np.ndarray]:
    """A bundle's arrays from a PEFT folder's; raises `UserError` for a tensor without a place."""
    weights = {name: np.zeros(shape, np.float32) for name, shape in weight_shapes(architecture, rank).items()}
    for name, array in tensors.items():
        found = FOUND.fullmatch(name)
        own = f"{PROJECTION_NAMES[found[2]]}.{found[3].lower()}" if found and found[2] in PROJECTION_NAMES else ""
        layer = int(found[1]) if found else 0
        if own not in weights or layer >= architecture.num_layers or weights[own][0].T.shape != array.shape:
            raise UserError(
                f"{folder} has {name} of the shape {array.shape}.",
                f"the base has {architecture.num_layers} layers with the projections {', '.join(NAMES.values())}, and "
                f"the rank is {rank}.",
                "--base RUN, the run whose Hugging Face export the adapter was trained on.",
            )
        weights[own][layer] = array.T
    return weights


def _config(folder: Path) -> dict[str, Any]:
    if not (folder / CONFIG).exists():
        raise UserError(f"{folder} has no {CONFIG}.", "PEFT writes one beside the weights.", "the folder it saved.")
    config = read_json(folder / CONFIG)
    odd = [
        f"{name} = {config[name]!r}" for name, plain in UNKNOWN.items() if config.get(name, plain) not in (plain, None)
    ]
    if config.get("peft_type") != "LORA":
        odd.insert(0, f"peft_type = {config.get('peft_type')!r}")
    if type(config.get("r")) is not int or config["r"] < 1 or type(config.get("lora_alpha")) not in (int, float):
        odd.insert(0, f"r = {config.get('r')!r}, lora_alpha = {config.get('lora_alpha')!r}")
    if odd:
        raise UserError(
            f"{folder / CONFIG} says {', '.join(odd)}.",
            "a bundle is a LoRA of one rank and alpha, without biases or other trained weights.",
            "train it with peft.LoraConfig(r=..., lora_alpha=..., target_modules=...)",
        )
    return config
