"""`pomona export RUN --format hf|gguf|mlx|coreml|pomona|adapter|peft|gguf-adapter`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pomona.cli.parse import parse
from pomona.core.errors import UserError
from pomona.core.files import check_new, check_new_file

CONTEXT = 1024


@dataclasses.dataclass(frozen=True)
class Export:
    """Writes a trained model, or its adapter alone, in a format of the ecosystem."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder."""
    format: Literal["hf", "gguf", "mlx", "coreml", "pomona", "adapter", "peft", "gguf-adapter"] = "hf"
    """hf: a folder that stock transformers loads as Qwen3ForCausalLM. gguf: one file for llama.cpp. mlx: a
    folder for mlx_lm. coreml: a package of a palettized run for Apple's machines. pomona: one file of
    a palettized run, for Pomona's own device runtime. adapter: that of a recovered or adapted run, for `pomona generate
    --adapter`. peft: the same for the peft package, on the hf export of its base; gguf-adapter: for llama.cpp, on the
    gguf export of its base."""
    output: Path | None = None
    """Where to write; RUN-FORMAT, RUN.gguf, RUN-adapter.gguf or RUN.pom by default."""
    dtype: Literal["float32", "bfloat16", "float16", "q8_0", "q2_k", "affine8", "affine2"] = "float32"
    """The type of the weights on disk: float16 for gguf and mlx, q8_0 and q2_k for gguf, affine8 and affine2 for mlx.
    q2_k and affine2: the balanced 2-bit grid, bit for bit."""
    pad_ffn: bool = False
    """gguf: widen the feed-forward block with zeros to a multiple of 256, which K-quants need; no logit changes."""
    context: int = CONTEXT
    """coreml: tokens that the package's states have room for."""
    step: int | None = None
    """The checkpoint to use; the newest by default."""


FLOATS = ("float32", "bfloat16")
DTYPES = {
    "hf": FLOATS,
    "adapter": FLOATS,
    "peft": FLOATS,
    "gguf": (*FLOATS, "float16", "q8_0", "q2_k"),
    "mlx": (*FLOATS, "float16", "affine8", "affine2"),
    "gguf-adapter": FLOATS[:1],
    "coreml": FLOATS[:1],
    "pomona": FLOATS[:1],
}


def run(arguments: list[str]) -> None:
    """Writes the folder or the file and says where."""
    options = parse(Export, arguments, "export")
    _check(options)
    if options.format == "gguf":
        _gguf(options)
    elif options.format == "gguf-adapter":
        _gguf_adapter(options)
    elif options.format == "pomona":
        _device(options)
    elif options.format == "coreml":
        _coreml(options)
    else:
        _folder(options)


def _check(options: Export) -> None:
    """Raises `UserError` for an option that the format does not take."""
    given = rule = ""
    if options.dtype not in DTYPES[options.format]:
        given = f"--dtype {options.dtype}"
        rule = "this is for --format " + " or ".join(name for name, types in DTYPES.items() if options.dtype in types)
    if options.pad_ffn and not options.format.startswith("gguf"):
        given, rule = "--pad-ffn", "this is for --format gguf"
    if options.step is not None and options.format == "coreml":
        given, rule = f"--step {options.step}", "what it holds are a run's palettes"
    if options.context != CONTEXT and options.format != "coreml":
        given, rule = f"--context {options.context}", "this is for --format coreml"
    if given:
        raise UserError(f"{given} with --format {options.format}.", f"{rule}.", "leave it out.")


def _device(options: Export) -> None:
    output = options.output or options.run.with_name(options.run.name + ".pom")
    from pomona.export.device import export_device

    told = export_device(options.run, output, options.step)
    print(f"written to {output}: {told['bytes'] / 1e6:,.1f} MB, {told['bits_per_weight']:.2f} bits a linear weight")
    print(f'next: pomona generate {output} "def main():"')


def _coreml(options: Export) -> None:
    output = options.output or options.run.with_name(options.run.name + ".mlpackage")
    from pomona.export.coreml import export_coreml

    export_coreml(options.run, output, options.context)
    print(f"written to {output}\nnext: MLModel(contentsOf:) in Swift, or coremltools.models.MLModel on a Mac")


def _folder(options: Export) -> None:
    output = options.output or options.run.with_name(f"{options.run.name}-{options.format}")
    check_new(output)
    from pomona.export.adapter import export_adapter
    from pomona.export.hf import export_hf
    from pomona.export.mlx import export_mlx
    from pomona.export.peft import export_peft
    from pomona.train.load import load_model

    if options.format == "hf":
        export_hf(load_model(options.run, options.step), output, options.dtype)
        then = f"AutoModelForCausalLM.from_pretrained('{output}')"
    elif options.format == "mlx":
        export_mlx(load_model(options.run, options.step), output, options.dtype)
        then = f"mlx_lm.generate --model {output}"
    elif options.format == "adapter":
        export_adapter(options.run, output, options.dtype, options.step)
        then = f"pomona generate BASE --adapter {output}"
    else:
        export_peft(options.run, output, options.dtype, options.step)
        then = f"PeftModel.from_pretrained(model, '{output}'), on the hf export of the adapter's base"
    print(f"written to {output}\nnext: {then}")


def _gguf(options: Export) -> None:
    output = options.output or options.run.with_name(options.run.name + ".gguf")
    check_new_file(output)
    from pomona.export.gguf import export_gguf, unfit_rows
    from pomona.train.load import load_model

    model = load_model(options.run, options.step)
    export_gguf(model, output, options.dtype, options.pad_ffn)
    print(f"written to {output}\nnext: llama-cli -m {output}")
    if unfit := unfit_rows(model.run.architecture, options.pad_ffn):
        print(f"K-quants store rows of a multiple of 256 only, which these are not: {'; '.join(unfit)}")
        if any("feed-forward" in each for each in unfit):
            print("--pad-ffn widens the feed-forward block to such a multiple without changing a logit")


def _gguf_adapter(options: Export) -> None:
    output = options.output or options.run.with_name(options.run.name + "-adapter.gguf")
    check_new_file(output)
    from pomona.export.gguf_adapter import export_gguf_adapter

    export_gguf_adapter(options.run, output, options.pad_ffn, options.step)
    print(f"written to {output}\nnext: llama-cli -m BASE.gguf --lora {output}, BASE being the base's gguf export")
