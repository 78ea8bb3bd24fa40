"""Held-out bits per byte at every compressed size, beside llama.cpp's quantizations of the same exported model.

    make bench-compress

A small model is trained on real text (or taken from an earlier start of the bench), then compressed by the commands a
user types; `pomona export --format gguf` hands the same weights to llama.cpp, which quantizes them with its defaults.
Both sides read the same windows: each is the beginning of one held-out document, begin token included, with our
tokens. The checks come first: our float16 weights and llama.cpp's float16 file must lose the same within 1e-3 nats.

`bits_per_weight` is of the layers' matrices, tables and scales counted; `bits_per_parameter` is of the whole model:
our embedding is int8, bfloat16 in the row `bf16`, and what llama.cpp chooses in its rows. A recovery adapter is
counted apart, in `adapter_bits_per_weight`. `over_bf16` is what a row's bits per byte are above the first one's;
`over_bf16_deviation` is the standard deviation of that by windows, the same for both. The last line is JSON.

All that is made stays in runs/compress/KEY, where KEY stands for the settings; what is there is not made again.
"""

import argparse
import dataclasses
import hashlib
import json
import math
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
POMONA = [sys.executable, "-m", "pomona.cli.main"]
SHAPE = {"vocab-size": 4096, "model-dim": 256, "num-layers": 4, "num-heads": 4, "num-kv-heads": 2, "head-dim": 64}
SHAPE["ffn-dim"] = 1024  # with 256 and 1024, every row is a multiple of the 256 that K-quants need
BATCH, SEQUENCE, WINDOWS = 16, 256, 512
PEERS = ("Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K")

STAGES = {
    "4": ["palettize", "base", "--bits", "4"],
    "4+recover": ["recover", "4"],
    "3.7": ["palettize", "base", "--bits", "3.7"],
    "3.7+recover": ["recover", "3.7"],
    "3.5": ["palettize", "base", "--bits", "3.5"],
    "3.5+recover": ["recover", "3.5"],
    "2-ptq": ["palettize", "base", "--bits", "2", "--grid", "balanced"],
    "trained-on-the-grid": ["qat", "base"],
    "2-qat": ["palettize", "trained-on-the-grid", "--bits", "2", "--grid", "balanced"],
    "2-qat+recover": ["recover", "2-qat"],
}
"""What is typed for each run folder; the second word is the folder that it reads."""
ROWS = ("bf16", *(name for name in STAGES if name != "trained-on-the-grid"), *PEERS)


@dataclasses.dataclass(frozen=True)
class Windows:
    """The beginnings of held-out documents: ids int32 [W, T + 1], padded, and how many ids each has."""

    ids: np.ndarray
    lengths: np.ndarray
    num_bytes: int  # of text that all predictions together stand for


def train_command(arguments):
    """The base model's training, as typed; its folder is `base`."""
    data = arguments.data
    address = str(data / "pretrain_*" / "*.jsonl.xz") if data else "stdlib"
    words = ["train", "tiny", "--data.sources.0.name", "text", "--data.sources.0.address", address]
    words += ["--data.tokenizer.sample-bytes", "20000000", "--data.tokenizer.vocab-size", str(SHAPE["vocab-size"])]
    words += ["--data.heldout-fraction", "0.04"]
    words += ["--stages.0.steps", str(arguments.steps), "--stages.0.batch-size", str(BATCH)]
    words += ["--stages.0.sequence-length", str(SEQUENCE), "--evaluation.every-steps", str(max(arguments.steps, 1))]
    return words + [word for name, size in SHAPE.items() for word in (f"--architecture.{name}", str(size))]


def make(work, name, arguments):
    """Makes the run folder of a stage, and those it reads, unless an earlier start has."""
    done = work / f"{name}.done"
    if done.exists():
        return json.loads(done.read_text())["seconds"]
    if name == "base":
        command = [*train_command(arguments), "--data.cache", str(work.parent / "cache")]
    else:
        verb, source, *options = STAGES[name]
        make(work, source, arguments)
        command = [verb, str(work / source), *options]
    command += ["--run", str(work / name)]
    print("pomona " + " ".join(command), file=sys.stderr, flush=True)
    start = time.perf_counter()
    subprocess.run([*POMONA, *command], check=True, stdout=sys.stderr)
    seconds = time.perf_counter() - start
    done.write_text(json.dumps({"seconds": seconds}))
    return seconds


def windows_of(run, count):
    """The first predictions of `count` held-out documents, at most a training sequence each."""
    from pomona.data.prepare import prepare
    from pomona.data.token_files import open_token_files, token_dtype
    from pomona.data.tokenizer import load_tokenizer

    prepared = prepare(run.data, lambda line: print(line, file=sys.stderr))
    files = [
        open_token_files(prepared.folder / source.name, token_dtype(prepared.vocab_size), heldout=True)
        for source in run.data.sources
    ]
    places = [(each, start, size) for each in files for start, size in zip(each.starts, each.lengths)]
    chosen = np.random.default_rng(0).permutation(len(places))[:count]
    length = run.stages[-1].sequence_length + 1
    ids, lengths = np.zeros((len(chosen), length), np.int32), np.zeros(len(chosen), np.int32)
    for row, place in enumerate(chosen):
        each, start, size = places[place]
        found = each.read(int(start), min(int(size), length))
        ids[row, : len(found)], lengths[row] = found, len(found)
    token_bytes = load_tokenizer(prepared.tokenizer).token_bytes()
    real = np.arange(1, length) < lengths[:, None]
    return Windows(ids, lengths, int(token_bytes[ids[:, 1:]][real].sum()))


def rounded(params, dtype):
    """The same decoder with its matrices and its embedding as `dtype` holds them; norms are [L, D] or [D]."""
    import jax

    def narrow(leaf):
        return leaf.astype(dtype).astype(leaf.dtype) if leaf.ndim > 2 or leaf is params.embedding else leaf

    return jax.tree.map(narrow, params)


def our_nats(folder, windows, round_to=None):
    """float64 [W]: each window's sum of -log p by a run folder's model, whose logits are computed in float32."""
    import jax
    import jax.numpy as jnp

    from pomona.model.config import resolve
    from pomona.model.objective import TokenBatch, hidden_states
    from pomona.train.load import load_model

    model = load_model(folder)
    params = rounded(model.params, round_to) if round_to else model.params
    execution = dataclasses.replace(resolve(model.run.execution, "cpu"), compute_dtype="float32")
    architecture, rope_base = model.run.architecture, model.stage.rope_base

    @jax.jit
    def logits(params, batch):
        hidden_BTD = hidden_states(params, batch, architecture, execution, rope_base)
        return hidden_BTD @ params.embedding.T

    sums, rows = [], 8
    for first in range(0, len(windows.ids), rows):
        ids = np.zeros((rows, windows.ids.shape[1]), np.int32)
        lengths = np.zeros(rows, np.int32)
        part = windows.ids[first : first + rows]
        ids[: len(part)], lengths[: len(part)] = part, windows.lengths[first : first + rows]
        tokens, targets = ids[:, :-1], ids[:, 1:]
        positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
        real = positions + 1 < lengths[:, None]
        batch = TokenBatch(*map(jnp.asarray, (tokens, targets, real.astype(np.int32), positions)))
        scores = np.asarray(logits(params, batch)).astype(np.float64)
        top = scores.max(axis=-1)
        normalisers = top + np.log(np.exp(scores - top[..., None]).sum(axis=-1))
        found = np.take_along_axis(scores, targets[..., None], axis=-1)[..., 0]
        sums.append(np.where(real, normalisers - found, 0.0).sum(axis=1)[: len(part)])
    return np.concatenate(sums)


def our_bits(folder):
    """bits_per_weight, bits_per_parameter and, of a recovered run, adapter_bits_per_weight."""
    from pomona.core.run_folder import RunFolder, read_config
    from pomona.model.count import weights
    from pomona.train.config import Run

    run = read_config(RunFolder(folder), Run)
    base = Path(run.origin.run) if run.objective.kind == "low-rank" else folder
    about = json.loads((base / "palettes" / "palettes.json").read_text())
    bits = {key: about[key] for key in ("bits_per_weight", "bits_per_parameter")}
    if base != folder:
        linear = [each for each in weights(run.architecture) if each.part in ("attention", "ffn")]
        inputs = lambda each: math.prod(each.shape[1 : 3 if each.axes[1] == "heads" else 2])
        sides = sum(each.shape[0] * (inputs(each) + each.size // each.shape[0] // inputs(each)) for each in linear)
        bits["adapter_bits_per_weight"] = 16 * run.objective.rank * sides / sum(each.size for each in linear)
    return bits


def peer(arguments, *words):
    """One answer of llama.cpp, in its own environment."""
    command = [arguments.llama, str(ROOT / "bench" / "llama_peer.py"), *map(str, words)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def peer_file(work, kind, arguments):
    """A GGUF file of the base model in one of llama.cpp's types."""
    path = work / f"{kind}.gguf"
    if path.exists():
        return path
    if kind in ("F16", "F32"):
        dtype = {"F16": "float16", "F32": "float32"}[kind]
        export = ["export", str(work / "base"), "--format", "gguf", "--dtype", dtype, "--output", str(path)]
        subprocess.run([*POMONA, *export], check=True, stdout=sys.stderr)
    else:
        draft = work / f"{kind}.draft"
        peer(arguments, "quantize", peer_file(work, "F32", arguments), draft, kind)
        draft.replace(path)
    return path


def row(work, name, windows, arguments):
    """One row of the table, from an earlier start where it has it."""
    cached = work / f"{name}.row.json"
    if cached.exists():
        return json.loads(cached.read_text())
    seconds = 0.0
    if name in PEERS or name == "F16":
        answer = peer(arguments, "nats", peer_file(work, name, arguments), work / "windows.npz")
        nats = np.array(answer["nats"])
        bits = {"bits_per_weight": answer["linear_bits"], "bits_per_parameter": answer["all_bits"]}
        bits |= {"embedding_bits": answer["embedding_bits"], "types": answer["types"]}
    elif name == "bf16":
        seconds = make(work, "base", arguments)
        nats = our_nats(work / "base", windows, round_to="bfloat16")
        bits = {"bits_per_weight": 16.0, "bits_per_parameter": 16.0}
    else:
        seconds = make(work, name, arguments)
        nats, bits = our_nats(work / name, windows), our_bits(work / name)
    np.save(work / f"{name}.nats.npy", nats)
    found = {"name": name, **bits, "bits_per_byte": nats.sum() / math.log(2) / windows.num_bytes}
    if name != "bf16" and (work / "bf16.nats.npy").exists():
        over = (nats - np.load(work / "bf16.nats.npy")) / math.log(2) / windows.num_bytes
        found |= {"over_bf16": over.sum(), "over_bf16_deviation": over.std(ddof=1) * len(over) ** 0.5}
    found |= {"nats_per_token": nats.sum() / int((windows.lengths - 1).sum()), "seconds": round(seconds, 1)}
    cached.write_text(json.dumps(found))
    print(json.dumps(found), file=sys.stderr, flush=True)
    return found


def check_export(work, windows, arguments):
    """|our loss - llama.cpp's| in nats a token, both with float16 matrices."""
    ours = our_nats(work / "base", windows, round_to="float16").sum() / int((windows.lengths - 1).sum())
    theirs = row(work, "F16", windows, arguments)["nats_per_token"]
    difference = abs(ours - theirs)
    if difference > 1e-3:
        sys.exit(f"the exported model is another one: {ours:.6f} nats a token here, {theirs:.6f} in llama.cpp")
    return difference


def summary(rows):
    """The targets' ratios, where their rows are there."""
    over = {each["name"]: each["over_bf16"] for each in rows if "over_bf16" in each}
    out = {}
    if {"3.7+recover", "Q4_0"} <= set(over):
        out["loss_of_3.7_recovered_over_that_of_Q4_0"] = over["3.7+recover"] / over["Q4_0"]
    if {"3.5+recover", "Q3_K_M"} <= set(over):
        out["3.5_recovered_less_Q3_K_M"] = over["3.5+recover"] - over["Q3_K_M"]
    return out


def main():
    """Makes what is not there yet, measures, prints."""
    default = ROOT.parent / "shared" / "data"
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=default, help="a folder with pretrain_*/*.jsonl.xz")
    parser.add_argument("--steps", type=int, default=1500, help="of the base model's training")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=ROWS, help="a part of the table")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "compress")
    parser.add_argument("--llama", default=str(ROOT / ".venv" / "llama" / "bin" / "python"))
    arguments = parser.parse_args()
    if not list(arguments.data.glob("pretrain_*/*.jsonl.xz")):
        print(f"{arguments.data} holds no pretrain_*/*.jsonl.xz: the text is Python's own library", file=sys.stderr)
        arguments.data = None
    key = hashlib.sha256(json.dumps([train_command(arguments), WINDOWS, STAGES]).encode()).hexdigest()[:12]
    work = (arguments.work / key).absolute()
    work.mkdir(parents=True, exist_ok=True)
    os.environ["PYTHONPATH"] = str(ROOT)

    from pomona.core.run_folder import RunFolder, read_config
    from pomona.train.config import Run

    make(work, "base", arguments)
    windows = windows_of(read_config(RunFolder(work / "base"), Run), WINDOWS)
    np.savez(work / "windows.npz", ids=windows.ids, lengths=windows.lengths)
    row(work, "bf16", windows, arguments)  # what all others are compared with
    difference = check_export(work, windows, arguments) if set(arguments.only) & set(PEERS) else None
    rows = [row(work, name, windows, arguments) for name in arguments.only]
    answer = {
        "cpu": platform.processor() or platform.machine(),
        "steps": arguments.steps,
        "windows": len(windows.ids),
        "predictions": int((windows.lengths - 1).sum()),
        "text_bytes": windows.num_bytes,
        "nats_from_llama_cpp_at_float16": difference,
        **summary(rows),
        "rows": rows,
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
