"""Seconds and memory to palettize a model of the shape of AFM-on-device, beside coremltools' k-means palettizer.

    make bench-palettize

Pomona palettizes every linear weight of all 26 layers (2.58 B random weights, drawn tensor by tensor, at 4 bits) and
writes the packed files, one tensor after the other, as `pomona palettize --bits 4 --weights none` does. coremltools
runs what its `palettize_weights` runs for `per_grouped_channel`, group size 16, 4 bits, with one worker a core, on
float16 weights, for which it takes its exact one-dimensional k-means. It is timed on some groups of each shape, before
and after Pomona; its faster time is scaled to all weights. float16 holds all the weights, so both get the same.

`ratio_vs_coremltools` is its seconds over Pomona's, writing included (above 1: Pomona is faster). `error_ratio` is
Pomona's sum of squared errors over coremltools' on the same groups (below 1: smaller); `error_ratio_uneven` the same
for heavy-tailed weights whose outputs differ in size, as trained ones do. `peak_gib` is the most memory of Pomona's
process, which holds the weights of one tensor at a time; a real run holds all of them besides. The last line is JSON.
"""

import argparse
import json
import logging
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from pomona.checkpoint.palettes import write_palette
from pomona.compress.palettes import palettize
from pomona.model.config import PROJECTIONS
from pomona.model.decoder import parameter_specs
from pomona.model.presets import AFM_DEVICE
from pomona.model.projection import matrix_shape

BITS, GROUP = 4, 16


def shapes():
    """(inputs, outputs) of one layer's seven matrices by name."""
    layers = parameter_specs(AFM_DEVICE).layers
    parts = {"attention": layers.attention, "ffn": layers.ffn}
    return {name: matrix_shape(getattr(parts[name.split(".")[0]], name.split(".")[1])) for name in PROJECTIONS}


def draw(seed, inputs, outputs):
    """Normal weights of the size that a decoder begins with, float32 [I, O], each a number that float16 holds."""
    weight = np.random.default_rng(seed).standard_normal((inputs, outputs), np.float32)
    return (weight * np.float32(inputs**-0.5)).astype(np.float16).astype(np.float32)


def draw_uneven(seed, inputs, outputs):
    """Weights of Student's t (5 degrees of freedom), times a log-normal size for every output."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_t(5, (inputs, outputs)) * rng.lognormal(0, 0.5, outputs) * inputs**-0.5
    return weight.astype(np.float16).astype(np.float32)


def peer(weight_IO):
    """coremltools on a matrix. Returns (seconds, restored weights as float64 [I, O])."""
    from coremltools.optimize.coreml._quantization_passes import palettize_weights

    weight_OI = np.ascontiguousarray(weight_IO.T).astype(np.float16)
    start = time.perf_counter()
    found = palettize_weights.grouped_channelwise_compress(
        weight_OI, "KMEANS", BITS, 0, GROUP, num_kmeans_workers=os.cpu_count()
    )
    seconds = time.perf_counter() - start
    return seconds, palettize_weights.decompress(found).astype(np.float64).T


def ours(weight_IO):
    """Pomona on a matrix. Returns (seconds, restored weights as float64 [I, O])."""
    start = time.perf_counter()
    palette = palettize("weight", weight_IO, None, BITS)
    seconds = time.perf_counter() - start
    tables = np.repeat(palette.tables.astype(np.float64), GROUP, axis=0)
    values = np.take_along_axis(tables, palette.indices.astype(np.int64), axis=1)
    return seconds, (values * palette.scales.astype(np.float64)[:, None]).T


def compare(groups):
    """coremltools' seconds a weight by number of inputs, and the error ratios on the same groups."""
    warm = draw(0, 1024, GROUP * os.cpu_count())
    peer(warm)  # its workers start
    seconds, errors = {}, {"normal": [0.0, 0.0], "uneven": [0.0, 0.0]}
    for inputs in sorted({shape[0] for shape in shapes().values()}):
        for name, make in (("normal", draw), ("uneven", draw_uneven)):
            weight = make(inputs, inputs, GROUP * groups)
            took, theirs = peer(weight)
            _, own = ours(weight)
            if name == "normal":
                seconds[inputs] = took / weight.size
            for place, restored in enumerate((own, theirs)):
                errors[name][place] += float(np.sum((weight - restored) ** 2))
    return seconds, {name: own / theirs for name, (own, theirs) in errors.items()}


def whole_model(num_layers):
    """Palettizes and writes all linear weights of some layers. Prints the seconds and the most memory as JSON."""
    folder, found = Path(tempfile.mkdtemp(prefix="pomona-bench-")), {"fit": 0.0, "write": 0.0, "weights": 0}
    by_inputs = {}
    try:
        for layer in range(num_layers):
            for number, (name, (inputs, outputs)) in enumerate(shapes().items()):
                weight = draw(layer * 7 + number, inputs, outputs)
                start = time.perf_counter()
                palette = palettize(name, weight, None, BITS)
                fitted = time.perf_counter()
                write_palette(folder, f"layers.{layer:02}.{name}", palette)
                done = time.perf_counter()
                found["fit"] += fitted - start
                found["write"] += done - fitted
                found["weights"] += weight.size
                by_inputs[inputs] = by_inputs.get(inputs, 0) + weight.size
            print(
                f"layer {layer + 1} of {num_layers}: {found['fit'] + found['write']:.1f} s", file=sys.stderr, flush=True
            )
    finally:
        shutil.rmtree(folder)
    found["by_inputs"] = by_inputs
    found["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps(found))


def main():
    """Pomona in a process of its own, so that its memory is its own; coremltools here, before and after."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=AFM_DEVICE.num_layers)
    parser.add_argument("--groups", type=int, default=64, help="groups of each shape for coremltools")
    parser.add_argument("--alone", action="store_true", help="only Pomona, without coremltools")
    options = parser.parse_args()
    if options.alone:
        whole_model(options.layers)
        return
    logging.disable(logging.WARNING)  # coremltools complains about the libraries that only macOS has
    before, _ = compare(options.groups)
    command = [sys.executable, __file__, "--alone", "--layers", str(options.layers)]
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    after, errors = compare(options.groups)
    theirs = sum(min(before[int(n)], after[int(n)]) * size for n, size in found["by_inputs"].items())
    own = found["fit"] + found["write"]
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    print(f"{found['weights']:,} weights: Pomona {found['fit']:.1f} s and {found['write']:.1f} s of writing")
    timed = ", ".join(f"{min(before[n], after[n]) * 1e9:.0f} ns a weight at {n} inputs" for n in before)
    print(f"coremltools {theirs:.0f} s, scaled from {options.groups} groups of each shape ({timed})")
    keys = {"ratio_vs_coremltools": theirs / own, "error_ratio": errors["normal"], "peak_gib": found["peak_gib"]}
    keys |= {"error_ratio_uneven": errors["uneven"], "seconds": own, "coremltools_seconds": theirs}
    keys |= {"weights": found["weights"], "layers": options.layers}
    print(json.dumps({name: value if isinstance(value, int) else round(value, 5) for name, value in keys.items()}))


if __name__ == "__main__":
    main()
