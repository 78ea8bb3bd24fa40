"""Adapters out of a run folder: as a bundle for Pomona, or as a PEFT folder for Hugging Face models.

PEFT computes y = W x + (lora_alpha / r) B (A x) with lora_A.weight [R, I] and lora_B.weight [O, R], the transposes of
ours, layer by layer. Its base is the Hugging Face export of the base's run folder: the same weights, unpacked.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from pomona.adapters.bundle import DTYPES, Bundle, write_bundle
from pomona.core.files import new_folder, write_json
from pomona.core.run_folder import RunFolder
from pomona.metrics.records import read_records
from pomona.model.adapter import detach, named
from pomona.model.config import PLACES
from pomona.train.load import load_model
from pomona.train.low_rank import adapted_run, base_origin, config_of

PEFT_NAMES = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
PEFT_NAMES |= {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
PEFT_LAYER = "base_model.model.model.layers.{}.{}.{}.lora_{}.weight"


def adapter_of(path: Path, step: int | None = None) -> Bundle:
    """The adapter that a run folder has trained, with its held-out measures.

    Raises:
        UserError: the run trained no adapter, or has no checkpoint.
    """
    run = adapted_run(str(path))
    model = load_model(path, step)
    _, adapter = detach(model.params)
    measured = {"step": float(model.step)}
    for record in read_records(RunFolder(path).metrics):
        if record["step"] == model.step:
            measured |= {name: record[name] for name in ("heldout_loss", "bits_per_byte") if name in record}
    return Bundle(
        name=run.name,
        weights={name: np.asarray(leaf) for name, leaf in named(adapter).items()},
        rank=config_of(run).rank,
        alpha=float(config_of(run).alpha),
        base=base_origin(run).fingerprint,
        metric=measured,
    )


def export_adapter(path: Path, target: Path, dtype: str = "float32", step: int | None = None) -> None:
    """Writes the bundle of a run's adapter.

    Raises:
        UserError: the run trained no adapter, the folder exists already, or the disk is full.
    """
    write_bundle(target, adapter_of(path, step), dtype)


def export_peft(path: Path, target: Path, dtype: str = "float32", step: int | None = None) -> None:
    """Writes a folder that `peft.PeftModel.from_pretrained` puts on the Hugging Face export of the base.

    Raises:
        UserError: as `export_adapter`.
    """
    bundle, base = adapter_of(path, step), Path(base_origin(adapted_run(str(path))).run)
    with new_folder(target) as folder:
        tensors = {name: array.astype(DTYPES[dtype]) for name, array in peft_tensors(bundle.weights)}
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        (folder / "adapter_model.safetensors").chmod(0o644)  # safetensors makes private files
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": str(base.with_name(base.name + "-hf")),
            "r": bundle.rank,
            "lora_alpha": bundle.alpha,
            "lora_dropout": 0.0,
            "target_modules": [PEFT_NAMES[name] for name in PLACES],
            "bias": "none",
            "fan_in_fan_out": False,
            "use_rslora": False,
            "inference_mode": True,
        }
        write_json(folder / "adapter_config.json", config)


def peft_tensors(weights: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array) of every tensor of a PEFT folder, from a bundle's."""
    for name, place in PLACES.items():
        block = "self_attn" if place.startswith("attention.") else "mlp"
        for index in range(len(weights[f"{name}.a"])):
            for side in ("a", "b"):
                full = PEFT_LAYER.format(index, block, PEFT_NAMES[name], side.upper())
                yield full, np.ascontiguousarray(weights[f"{name}.{side}"][index].T)
