"""`pomona export RUN --format hf|adapter|peft`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pomona.cli.parse import parse
from pomona.core.files import check_new


@dataclasses.dataclass(frozen=True)
class Export:
    """Writes a trained model, or its adapter alone, in a format of the ecosystem."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder."""
    format: Literal["hf", "adapter", "peft"] = "hf"
    """hf: a folder that stock transformers loads as Qwen3ForCausalLM. adapter: the adapter of a recovered or adapted
    run, for `pomona generate --adapter`. peft: the same for the peft package, on the hf export of its base."""
    output: Path | None = None
    """Where to write; RUN-FORMAT by default."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The type of the weights on disk."""
    step: int | None = None
    """The checkpoint to use; the newest by default."""


def run(arguments: list[str]) -> None:
    """Writes the folder and says where."""
    options = parse(Export, arguments, "export")
    output = options.output or options.run.with_name(f"{options.run.name}-{options.format}")
    check_new(output)
    from pomona.export.adapter import export_adapter, export_peft
    from pomona.export.hf import export_hf
    from pomona.train.load import load_model

    if options.format == "hf":
        export_hf(load_model(options.run, options.step), output, options.dtype)
        then = f"AutoModelForCausalLM.from_pretrained('{output}')"
    elif options.format == "adapter":
        export_adapter(options.run, output, options.dtype, options.step)
        then = f"pomona generate BASE --adapter {output}"
    else:
        export_peft(options.run, output, options.dtype, options.step)
        then = f"PeftModel.from_pretrained(model, '{output}'), on the hf export of the adapter's base"
    print(f"written to {output}\nnext: {then}")
