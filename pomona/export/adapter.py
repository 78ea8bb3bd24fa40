"""The adapter of a run folder as a bundle."""

from pathlib import Path

import numpy as np

from pomona.adapters.bundle import Bundle, write_bundle
from pomona.core.run_folder import RunFolder
from pomona.metrics.records import read_records
from pomona.model.adapter import detach, named
from pomona.train.load import load_model
from pomona.train.low_rank import adapted_run, base_origin, config_of


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
