"""Damaged device files, as many as one likes, opened and computed under the address sanitizer.

    make bench-fuzz

The native library is compiled once more with -fsanitize=address,undefined, and loaded by processes that open one
mutated file after the other: flipped, cut, repeated and foreign bytes, in the header and in the data, and headers whose
JSON says something else. Each ends in one `UserError`, or computes a few tokens in a batch of two, one with an adapter.
Anything else stops the bench: another exception, a report of the sanitizer, a signal, or a file that takes 20 seconds.

The last line is JSON: files, opened, computed, seconds.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
NATIVE = ROOT / "pomona" / "device" / "native"
HANGS_AFTER = 20
EXTREMES = (0, 1, -1, 2**31 - 1, 2**31, 2**63, 1e308, float("nan"), None, True, "", "x", [], {}, [[]])


def compile_checked(folder):
    """The library with the sanitizers; returns what has to be loaded before Python for them."""
    flags = ["-std=c++17", "-O1", "-g", "-pthread", "-ffp-contract=off", "-Wno-psabi", "-fPIC", "-shared"]
    checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
    sources = sorted(NATIVE.glob("*.cpp"))
    subprocess.run(
        ["g++", *flags, *checks, *sources, "-o", folder / "_native.so"], check=True, stderr=subprocess.DEVNULL
    )
    found = [
        subprocess.check_output(["g++", f"-print-file-name={name}"], text=True)
        for name in ("libasan.so", "libubsan.so")
    ]
    return " ".join(str(Path(name.strip()).resolve()) for name in found)


def small_model(folder):
    """A device file with every width, and an adapter for it, without training anything."""
    from random_models import any_tokenizer

    from pomona.adapters.bundle import Bundle, weight_shapes, write_bundle
    from pomona.core.config import to_json
    from pomona.device.file import matrix_shapes, norm_shapes, write_file
    from pomona.device.layout import packed_bytes
    from pomona.model.config import Architecture

    rng, a = np.random.default_rng(0), Architecture(300, 64, 2, 4, 2, 16, 112)
    shapes = matrix_shapes(a)
    bits = {name: (2, 4, 8)[number % 3] for number, name in enumerate(shapes)} | {"embedding": 8}

    def tensors():
        for name, (outputs, inputs) in shapes.items():
            yield f"{name}.packed", rng.integers(0, 256, (outputs // 16, packed_bytes(inputs, bits[name])), np.uint8)
        for name, (outputs, inputs) in shapes.items():
            if bits[name] < 8:
                yield f"{name}.tables", rng.integers(-127, 128, (outputs // 16, 16)).astype(np.int8)
            yield f"{name}.factors", np.full(outputs, inputs**-0.5 / 64, np.float32)
        for name, shape in norm_shapes(a).items():
            yield name, np.ones(shape, np.float32)
        yield "tokenizer", np.frombuffer(any_tokenizer(300), np.uint8)

    about = {"name": "fuzz", "architecture": to_json(a), "rope_base": 1e4, "bits": bits}
    write_file(folder / "model.pom", about | {"bits_per_weight": 4.0, "fingerprint": "fuzz"}, tensors())
    weights = {name: rng.normal(size=shape).astype(np.float32) * 0.01 for name, shape in weight_shapes(a, 16).items()}
    write_bundle(folder / "adapter", Bundle("fuzz", weights, 16, 16.0, "fuzz", {}))


def mutate(content, rng):
    """One damaged copy."""
    changed, size = bytearray(content), int.from_bytes(content[:8], "little")
    used = 8 + len(content[8 : 8 + size].rstrip())
    kind = rng.integers(0, 8)
    if kind <= 1:  # bytes of the header
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(0, used))
            changed[at] = rng.integers(0, 256) if rng.random() < 0.5 else ord(rng.choice(list('0123456789{}[]",:-e')))
    elif kind <= 3:  # what the header says
        header = json.loads(content[8 : 8 + size])
        about = json.loads(header["__metadata__"]["pomona"])
        if rng.random() < 0.5:
            change(about, rng)
            header["__metadata__"]["pomona"] = json.dumps(about)
        else:
            change(header, rng)
        text = json.dumps(header).encode().ljust(size)
        changed = bytearray(len(text).to_bytes(8, "little") + text + content[8 + size :])
    elif kind <= 5:  # bytes of the data, which no checksum is asked about here
        end = (
            len(changed) if kind == 5 else 8 + size + json.loads(content[8 : 8 + size])["tokenizer"]["data_offsets"][0]
        )
        for _ in range(rng.integers(1, 200)):
            changed[int(rng.integers(8 + size, end))] = int(rng.integers(0, 256))
    elif kind == 6:  # cut, or with something after it
        end = int(rng.integers(0, len(changed)))
        changed = changed[:end] if rng.random() < 0.5 else changed + changed[:end]
    else:  # a part in another place
        a, b, length = (int(each) for each in rng.integers(0, len(changed) - 64, 3))
        changed[a : a + min(length, 4096)] = changed[b : b + min(length, 4096)]
    return bytes(changed)


def change(tree, rng):
    """Replaces, removes or repeats one value somewhere in a JSON object."""
    while True:
        key = rng.choice(sorted(tree))
        inner = tree[key]
        if isinstance(inner, dict) and inner and rng.random() < 0.8:
            tree = inner
            continue
        if isinstance(inner, list) and inner and rng.random() < 0.7:
            inner[int(rng.integers(0, len(inner)))] = EXTREMES[rng.integers(0, len(EXTREMES))]
        elif isinstance(inner, int) and rng.random() < 0.5:
            tree[key] = int(inner + rng.integers(-2, 3)) * int(rng.choice([1, 1, 2, 16]))
        elif rng.random() < 0.2:
            del tree[key]
        else:
            tree[key] = EXTREMES[rng.integers(0, len(EXTREMES))]
        return


def work(folder, first, count):
    """Opens mutated files; prints what came of them."""
    from pomona.core.errors import UserError
    from pomona.device import library
    from pomona.device.engine import load
    from pomona.device.session import Part

    library.FOLDER = folder
    assert library.available(), "the checked library is there"
    content, bad = (folder / "model.pom").read_bytes(), folder / f"bad-{first}.pom"
    opened = computed = 0
    for number in range(first, first + count):
        signal.alarm(HANGS_AFTER)
        bad.write_bytes(mutate(content, np.random.default_rng(number)))
        print(number, file=sys.stderr, flush=True)  # the last one is the culprit
        try:
            model = load(bad)
            opened += 1
            engine = model.engine(2)
            one, other = engine.open(40), engine.open(12)
            try:
                other.use(model.adapter(folder / "adapter"))
            except UserError:
                pass
            engine.advance([Part(one, [1, 2, 3] * 10, True), Part(other, [5, 7])])
            engine.advance([Part(other, [9]), Part(one, [4])])
            computed += 1
        except UserError:
            pass
        signal.alarm(0)
    print(json.dumps({"opened": opened, "computed": computed}))


def main():
    """Processes side by side, each with its own seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        folder, first, count = options.work
        return work(Path(folder), int(first), int(count))
    folder = Path(tempfile.mkdtemp(prefix="pomona-fuzz-"))
    preload, cores, began = compile_checked(folder), os.cpu_count() or 1, time.perf_counter()
    small_model(folder)
    environment = os.environ | {"LD_PRELOAD": preload, "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1"}
    each, processes = -(-options.files // cores), []
    for index in range(cores):
        log = (folder / f"log-{index}").open("wb")
        words = [sys.executable, __file__, "--work", str(folder), str(index * each), str(each)]
        processes.append(subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=log))
    found = [process.communicate()[0] for process in processes]
    for index, process in enumerate(processes):
        if process.returncode:
            tail = (folder / f"log-{index}").read_text(errors="replace").splitlines()[-60:]
            sys.exit(
                "\n".join(tail) + f"\na process ended with {process.returncode}; the last number is its file's seed"
            )
    shutil.rmtree(folder)
    rows = [json.loads(each.splitlines()[-1]) for each in found]
    total = {name: sum(row[name] for row in rows) for name in ("opened", "computed")}
    print(json.dumps({"files": each * cores} | total | {"seconds": round(time.perf_counter() - began, 1)}))


if __name__ == "__main__":
    main()
