"""Writes the compiled programs that the tests of the cost model read, without what the parser does not look at.

    PYTHONPATH=.:.venv/libtpu:tests/plan .venv/bin/python tests/plan/make_programs.py       (minutes)

Run again when the training step has changed so much that the stored ones say little, and put the new seconds into
`test_stored_programs.py`. Each is a device-shaped step of a few layers on eight chips of one slice.
"""

import dataclasses
import gzip
import json
import re
import sys
import tempfile
from pathlib import Path

STORED = Path(__file__).parent / "programs"
LAYERS = {"v5p:2x2x2": 3, "v4:2x2x2": 2}


def path_of(chips):
    """Where the program for these chips is stored."""
    return STORED / f"device_{chips.replace(':', '_')}.json.gz"


def run_of(layers):
    """AFM-on-device with so few layers, two sequences a chip, on a mesh of two copies in four shards."""
    from pomona.model.config import Execution
    from pomona.model.presets import AFM_DEVICE
    from pomona.optim.config import Schedule
    from pomona.parallel.config import MeshConfig
    from pomona.train.config import Run, Stage

    stage = Stage("core", 100, 16, 4096, Schedule(1e-3, warmup_steps=10))
    architecture = dataclasses.replace(AFM_DEVICE, num_layers=layers)
    return Run("small", architecture, (stage,), execution=Execution(remat="products"), mesh=MeshConfig(2, 4))


def stripped(text):
    """The text with the compiler's estimates but without its other choices, kernels' code and folders' names."""
    text = re.sub(r"^HloModule (\w+),.*?$", r"HloModule \1, is_scheduled=true", text, flags=re.MULTILINE)
    text = re.sub(r"^FunctionNames\n.*?\n\n", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r'^(\d+) "[^"\n]*/([^"/\n]+)"$', r'\1 "\2"', text, flags=re.MULTILINE)
    text = re.sub(r", (?:operand_layout_constraints|output_to_operand_aliasing)=\{.*?\}(?=, [a-z_]+=|$)", "", text)

    def shortened(found):
        kept = re.findall(r'"estimated_cycles":"\d+"|"cost_estimate":\{[^}]*\}', found[0])
        return f", backend_config={{{','.join(kept)}}}" if kept else ""

    return re.sub(r", backend_config=\{.*$", shortened, text, flags=re.MULTILINE)


def read(path):
    """The stored content."""
    return json.loads(gzip.decompress(path.read_bytes()))


def main():
    """Compiles each, strips it, and sees that what the model predicts is the same."""
    from pomona.plan.topology import prepare_environment

    prepare_environment()
    from pomona.core.fleet import parse_fleet
    from pomona.plan.compiled import compile_stage
    from pomona.plan.hlo import parse
    from pomona.plan.timeline import predict

    STORED.mkdir(exist_ok=True)
    for chips, layers in LAYERS.items():
        cache = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp())
        found = compile_stage(run_of(layers), 0, parse_fleet(chips), cache)
        text = stripped(found.text)
        assert predict(parse(text), found.places) == predict(parse(found.text), found.places)
        content = {"chips": chips, "layers": layers, "mesh": found.mesh, "places": found.places.table.tolist()}
        data = gzip.compress(json.dumps(content | {"text": text}).encode(), compresslevel=9, mtime=0)
        path_of(chips).write_bytes(data)
        print(f"{path_of(chips)}: {len(data)} bytes, of {len(found.text)} characters {len(text)}")


if __name__ == "__main__":
    main()
