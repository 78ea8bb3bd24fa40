"""Decoding speed of the device runtime beside llama.cpp, on a model of the shape of AFM-on-device with random weights.

    make bench-decode

Random palettes at 3.7 bits (15 % of the weights at 2 bits, the rest at 4) and on the balanced 2-bit grid, each as one
device file; random blocks as GGUF files in the types that llama.cpp's Q4_0 and Q4_K_M give each tensor, its
feed-forward block widened to a multiple of 256. Speed does not depend on what weights say, as long as they differ.

Decoding is the time of a token after a prompt, the median over tokens; prefill is that of 512 tokens at once. Runtimes
take turns, each in a process of its own. `share_of_bandwidth` is what our 3.7-bit model reads a token (weights, tables,
factors, keys and values), times its tokens a second, over what as many threads read from a large array.
`ratio_...` is our tokens a second over llama.cpp's. The last line is JSON; the ratios are those of the most threads.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
PROMPT, PREFILL = 128, 512
OURS, PEERS = ("3.7", "2"), ("Q4_K_M", "Q4_0")
LOW_SHARE = 0.15  # of the weights at 2 bits, for an average of 3.7
BLOCKS = {"Q4_0": (32, 18), "Q4_K": (256, 144), "Q6_K": (256, 210)}  # weights and bytes of a block
HALVES = {"Q4_0": (0,), "Q4_K": (0, 2), "Q6_K": (208,)}  # where a block has its float16 factors


def write_ours(path, kind):
    """A device file with random palettes, tensor by tensor."""
    from pomona.core.config import to_json
    from pomona.device.file import matrix_shapes, norm_shapes, write_file
    from pomona.device.layout import packed_bytes
    from pomona.model.presets import AFM_DEVICE

    rng, shapes = np.random.default_rng(0), matrix_shapes(AFM_DEVICE)
    low = lambda number: kind == "2" or (number + 1) * LOW_SHARE % 1 < LOW_SHARE
    bits = {name: 2 if low(number) else 4 for number, name in enumerate(shapes)} | {"embedding": 8}

    def tensors():
        for name, (outputs, inputs) in shapes.items():
            yield f"{name}.packed", rng.integers(0, 256, (outputs // 16, packed_bytes(inputs, bits[name])), np.uint8)
        for name, (outputs, inputs) in shapes.items():
            if name != "embedding":
                yield f"{name}.tables", rng.integers(-127, 128, (outputs // 16, 16)).astype(np.int8)
            yield f"{name}.factors", np.full(outputs, inputs**-0.5 / 64, np.float32)
        for name, shape in norm_shapes(AFM_DEVICE).items():
            yield name, np.ones(shape, np.float32)
        yield "tokenizer", np.frombuffer(any_tokenizer(), np.uint8)

    weights = sum(outputs * inputs for name, (outputs, inputs) in shapes.items() if name != "embedding")
    average = sum(o * i * bits[name] for name, (o, i) in shapes.items() if name != "embedding") / weights
    about = {"name": kind, "architecture": to_json(AFM_DEVICE), "rope_base": 5e5, "bits": bits}
    write_file(path, about | {"bits_per_weight": average, "fingerprint": kind}, tensors())


def any_tokenizer():
    """A small tokenizer: only the speed of the decoder is measured."""
    import tempfile

    from pomona.data.tokenizer import MODEL_FILE, train_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        train_tokenizer(["some text to learn pieces from, again and again"] * 50, 300, 100_000, Path(folder))
        return (Path(folder) / MODEL_FILE).read_bytes()


def write_peer(path, kind):
    """A GGUF file with random blocks in the types of llama.cpp's quantizations."""
    import gguf

    from pomona.export.gguf import padded_ffn_dim, tensor_shapes
    from pomona.model.presets import AFM_DEVICE as a

    rng, ffn = np.random.default_rng(0), padded_ffn_dim(a)
    writer = gguf.GGUFWriter(path, "qwen3")
    for add, value in (
        (writer.add_context_length, 8192),
        (writer.add_vocab_size, a.vocab_size),
        (writer.add_embedding_length, a.model_dim),
        (writer.add_block_count, a.num_layers),
        (writer.add_feed_forward_length, ffn),
        (writer.add_head_count, a.num_heads),
        (writer.add_head_count_kv, a.num_kv_heads),
        (writer.add_key_length, a.head_dim),
        (writer.add_value_length, a.head_dim),
        (writer.add_layer_norm_rms_eps, a.norm_epsilon),
        (writer.add_rope_freq_base, 5e5),
        (writer.add_tokenizer_model, "llama"),
        (writer.add_token_list, [f"t{index}" for index in range(a.vocab_size)]),
        (writer.add_token_scores, [0.0] * a.vocab_size),
        (writer.add_token_types, [1] * a.vocab_size),
        (writer.add_bos_token_id, 1),
        (writer.add_eos_token_id, 2),
    ):
        add(value)
    for name, shape in tensor_shapes(a, ffn):
        if len(shape) == 1:
            writer.add_tensor(name, np.ones(shape, np.float32))
            continue
        own = peer_type(kind, name, a.num_layers)
        weights, size = BLOCKS[own]
        blocks = rng.integers(0, 256, (shape[0], shape[1] // weights, size), np.uint8)
        for place in HALVES[own]:
            factor = np.float16(shape[1] ** -0.5 / (8 if own == "Q4_0" else 512))
            blocks[..., place : place + 2] = np.frombuffer(factor.tobytes(), np.uint8)
        writer.add_tensor(name, blocks.reshape(shape[0], -1), raw_dtype=gguf.GGMLQuantizationType[own])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def peer_type(kind, name, layers):
    """What llama.cpp takes for a tensor: Q4_K_M gives half of the values and down projections six bits."""
    if name == "token_embd.weight":
        return "Q6_K"
    if kind == "Q4_0":
        return "Q4_0"
    layer = int(name.split(".")[1])
    more = layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
    return "Q6_K" if more and ("attn_v" in name or "ffn_down" in name) else "Q4_K"


def time_ours(path, threads, tokens):
    """Seconds of a token, of the prefill, and the bytes that a token reads."""
    from pomona.device.engine import load

    model = load(path)
    a = model.file.architecture
    session = model.open(context=PREFILL + tokens + 1, threads=threads)
    rng = np.random.default_rng(1)
    prompt = rng.integers(3, a.vocab_size, PREFILL).tolist()
    session.advance(prompt[:8])  # the file comes into memory
    session.forget(0)
    start = time.perf_counter()
    session.advance(prompt)
    prefill = time.perf_counter() - start
    session.forget(PROMPT)
    seconds = []
    for token in rng.integers(3, a.vocab_size, tokens).tolist():
        start = time.perf_counter()
        session.advance([token])
        seconds.append(time.perf_counter() - start)
    kept = 2 * a.num_layers * a.num_kv_heads * (a.head_dim + 4) * (PROMPT + tokens // 2)
    return {
        "decode": statistics.median(seconds),
        "prefill": prefill,
        "bytes": model.file.weight_bytes + kept,
        "instruction_set": session.instruction_set,
    }


def bandwidth(threads):
    """Bytes a second that so many threads read from an array far larger than any cache."""
    from pomona.device.library import read_seconds

    data = np.ones(1 << 30, np.uint8)
    return data.nbytes / read_seconds(data, threads)


def own_process(*words):
    """One timing in a process of its own."""
    done = subprocess.run([*map(str, words)], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def files(folder):
    """Every model's file, made where it is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {kind: folder / f"{kind}.pom" for kind in OURS} | {kind: folder / f"{kind}.gguf" for kind in PEERS}
    for kind, path in paths.items():
        if not path.exists():
            print(f"writing {path}", file=sys.stderr, flush=True)
            draft = path.with_name(f"draft-{path.name}")
            draft.unlink(missing_ok=True)
            (write_ours if kind in OURS else write_peer)(draft, kind)
            draft.rename(path)
    return paths


def main():
    """All runtimes in turns, several rounds, medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "decode")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, os.cpu_count()])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--llama", default=str(ROOT / ".venv" / "llama" / "bin" / "python"))
    parser.add_argument("--time", nargs=2, metavar=("FILE", "THREADS"), help="only time one device file")
    options = parser.parse_args()
    if options.time:
        print(json.dumps(time_ours(Path(options.time[0]), int(options.time[1]), options.tokens)))
        return
    paths, rows = files(options.work), []
    for threads in options.threads:
        found = {kind: [] for kind in paths}
        read = bandwidth(threads)
        for _ in range(options.rounds):
            for kind, path in paths.items():
                if kind in OURS:
                    words = [sys.executable, __file__, "--tokens", options.tokens, "--time", path, threads]
                else:
                    words = [options.llama, ROOT / "bench" / "llama_peer.py", "speed", path, threads, options.tokens]
                found[kind].append(own_process(*words))
        read = max(read, bandwidth(threads))
        for kind, times in found.items():
            middle = {name: statistics.median(each[name] for each in times) for name in ("decode", "prefill")}
            row = {"name": kind, "threads": threads, "tokens_per_second": 1 / middle["decode"]}
            row |= {"prefill_tokens_per_second": PREFILL / middle["prefill"], "read_gb_per_second": read / 1e9}
            if kind in OURS:
                row |= {"gb": times[0]["bytes"] / 1e9, "instruction_set": times[0]["instruction_set"]}
                row["share_of_bandwidth"] = times[0]["bytes"] / middle["decode"] / read
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    last = {row["name"]: row for row in rows if row["threads"] == max(options.threads)}
    ratio = lambda ours, theirs, what="tokens_per_second": last[ours][what] / last[theirs][what]
    answer = {
        "cpu": platform.processor() or platform.machine(),
        "share_of_bandwidth": last["3.7"]["share_of_bandwidth"],
        "ratio_vs_q4_k_m": ratio("3.7", "Q4_K_M"),
        "ratio_vs_q4_0": ratio("3.7", "Q4_0"),
        "ratio_2bit_vs_q4_k_m": ratio("2", "Q4_K_M"),
        "prefill_ratio_vs_q4_0": ratio("3.7", "Q4_0", "prefill_tokens_per_second"),
        "rows": rows,
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
