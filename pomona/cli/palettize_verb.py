"""`pomona palettize RUN --bits 3.7`."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from pomona.cli.parse import parse


@dataclasses.dataclass(frozen=True)
class Palettize:
    """Compresses a trained model to palettes: indices of 4 or 2 bits into small tables, shared by 16 outputs."""

    source: Annotated[Path, tyro.conf.Positional]
    """The run folder."""
    bits: float = 3.7
    """Bits a weight of the linear layers, tables and scales included: 2-bit tensors are chosen until this average is
    met. 4 and 2: all tensors alike."""
    run: Path | None = None
    """The new run folder; RUN-palettized by default."""
    grid: Literal["free", "balanced"] = "free"
    """Tables of 2-bit tensors: learned ones, or {-1.5, -0.5, 0.5, 1.5}, which take no space."""
    weights: Literal["fisher", "activation", "none"] = "fisher"
    """What makes a weight's error count: the squared gradient of the loss, the weight's input, or nothing."""
    samples: int = 128
    """Sequences of the training mixture to measure that on."""
    step: int | None = None
    """The checkpoint to use; the newest by default."""


def run(arguments: list[str]) -> None:
    """Writes the folder and prints what each kind of tensor costs and loses."""
    options = parse(Palettize, arguments, "palettize")
    from pomona.compress.palettize import Settings, palettize_run

    target = options.run or options.source.with_name(options.source.name + "-palettized")
    settings = Settings(options.bits, options.grid, options.weights, options.samples)
    about = palettize_run(options.source, target, settings, options.step, print)
    print(table(about))
    if "bits_per_byte" in about:
        before, after = about["bits_per_byte_before"], about["bits_per_byte"]
        print(f"\nbits per byte on held-out text: {after:.4f} (before palettizing: {before:.4f})")
    print(f"written to {target}\nnext: pomona recover {target}, or pomona generate {target}")


def table(about: dict[str, Any]) -> str:
    """What palettes.json says, by kind of tensor: tensors at 4 and at 2 bits, bits a weight, error, predicted loss."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for tensor in about["tensors"]:
        if tensor["name"].startswith("layers."):
            kinds.setdefault(tensor["name"].split(".", 2)[2], []).append(tensor)
    lines = [f"{'matrix':<18} {'at 4':>5} {'at 2':>5} {'bits a weight':>14} {'error':>8} {'predicted loss':>15}"]
    for kind, tensors in kinds.items():
        lines.append(_line(kind, tensors))
    everything = [tensor for tensors in kinds.values() for tensor in tensors]
    lines.append(_line("all linear layers", everything))
    lines.append(
        f"{about['bits_per_weight']:.3f} bits a weight of the linear layers; {about['bits_per_parameter']:.3f} bits a "
        "parameter with the int8 embedding and the float32 norms"
    )
    return "\n".join(lines)


def _line(kind: str, tensors: list[dict[str, Any]]) -> str:
    size = sum(math.prod(tensor["shape"]) for tensor in tensors)
    bits = sum(tensor["stored_bits"] for tensor in tensors) / size
    squared = sum(tensor["squared"] for tensor in tensors)
    error = sum(tensor["squared_error"] for tensor in tensors) / squared if squared else 0.0
    loss = 0.5 * sum(tensor["error"] for tensor in tensors)
    counts = [sum(tensor["bits"] == bits for tensor in tensors) for bits in (4, 2)]
    return f"{kind:<18} {counts[0]:>5} {counts[1]:>5} {bits:>14.3f} {100 * error:>6.2f} % {loss:>15.3g}"
