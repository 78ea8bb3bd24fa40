"""`pomona export RUN --format hf`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pomona.cli.parse import parse
from pomona.core.files import check_new


@dataclasses.dataclass(frozen=True)
class Export:
    """Writes a trained model in a format of the ecosystem."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder."""
    format: Literal["hf"] = "hf"
    """hf: a folder that stock transformers loads as Qwen3ForCausalLM."""
    output: Path | None = None
    """Where to write; RUN-hf by default."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The type of the weights on disk."""
    step: int | None = None
    """The checkpoint to use; the newest by default."""


def run(arguments: list[str]) -> None:
    """Writes the folder and says where."""
    options = parse(Export, arguments, "export")
    output = options.output or options.run.with_name(options.run.name + "-hf")
    check_new(output)
    from pomona.export.hf import export_hf
    from pomona.train.load import load_model

    export_hf(load_model(options.run, options.step), output, options.dtype)
    print(f"written to {output}\nnext: AutoModelForCausalLM.from_pretrained('{output}')")
