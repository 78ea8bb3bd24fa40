"""Decoding speed of the device runtime beside llama.cpp and PyTorch, on a model of the shape of AFM-on-device, and what
it costs in quality, on the trained pair of `make demo`.

    make bench-decode

Random weights of the real size (random_models.py): ours at 3.7 bits and at 2, llama.cpp's Q4_K_M, Q4_0 and Q2_K, and
PyTorch in bfloat16 as `transformers` runs it. Decoding is the median time of a token after a prompt; prefill is that of
512 tokens at once. Runtimes take turns, each in a process of its own; ratios are tokens a second over theirs, by
medians over rounds. `share_of_bandwidth` is what our 3.7-bit model reads a token, times its tokens a second, over what
as many threads read from a large array. The long context is timed once.

What adapters and guesses cost is timed within one process, in turns. Guesses are right as often as those of a look-up
are on the trained model, continuing held-out text.

The last line is JSON; its ratios are those of the most threads.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from pathlib import Path

import decode_parts
from random_models import OURS, PEERS, files

ROOT = Path(__file__).parents[1]
LONG, PREFILL = 4096, 512
TORCH = "bf16"


def timed(path, threads, tokens, context):
    """One of our files in this process, and the most memory it took."""
    from pomona.device.bench import measure
    from pomona.device.engine import load

    model = load(path)
    found = measure(model, threads, (context,), tokens, PREFILL)
    peak = 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # ru_maxrss is inherited
    row = {"decode": found.decode[context], "prefill": found.prefill, "instruction_set": found.instruction_set}
    return row | {
        "bytes": found.bytes[context],
        "peak": peak,
        "cache_bytes": found.cache_bytes,
        "file": path.stat().st_size,
    }


def ask(*words):
    """One part in a process of its own; the JSON line that it ends with."""
    done = subprocess.run([*map(str, words)], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def asked(options, kind, path, threads, context):
    """One timing of one runtime."""
    here, tokens = Path(__file__).parent, options.tokens
    if kind in OURS:
        return ask(sys.executable, __file__, "--part", "timed", path, threads, tokens, context)
    if kind == TORCH:
        return ask(options.torch, here / "torch_peer.py", threads, tokens, context)
    return ask(options.llama, here / "llama_peer.py", "speed", path, threads, tokens, context)


def table(options, paths):
    """A row for every runtime, number of threads and context."""
    from pomona.device.bench import bandwidth

    rows = []
    for threads in options.threads:
        for context in options.contexts:
            found, read = {kind: [] for kind in paths}, bandwidth(threads)
            for _ in range(options.rounds if context < LONG else 1):
                for kind, path in paths.items():
                    if kind != TORCH or (threads == max(options.threads) and context < LONG):
                        found[kind].append(asked(options, kind, path, threads, context))
            read = max(read, bandwidth(threads))
            for kind, times in found.items():
                if times:
                    rows.append(row(kind, threads, context, times, read))
                    print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def row(kind, threads, context, times, read):
    """Medians over rounds; of ours also what they are of the bandwidth, and the memory beyond file and cache."""
    decode, prefill = (statistics.median(each[name] for each in times) for name in ("decode", "prefill"))
    found = {"name": kind, "threads": threads, "context": context, "tokens_per_second": 1 / decode}
    found |= {"prefill_tokens_per_second": PREFILL / prefill, "read_gb_per_second": read / 1e9}
    if kind in OURS:
        one = times[0]
        found |= {"gb": one["bytes"] / 1e9, "instruction_set": one["instruction_set"]}
        found |= {"share_of_bandwidth": one["bytes"] / decode / read, "peak_gib": one["peak"] / 2**30}
        found["peak_over_file_and_cache"] = one["peak"] / (one["file"] + one["cache_bytes"])
    return found


def main():
    """All parts, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "decode")
    parser.add_argument("--life", type=Path, default=ROOT / "lives" / "tiny", help="what `make demo` leaves")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, os.cpu_count()}))
    parser.add_argument("--contexts", type=int, nargs="+", default=[decode_parts.SHORT, LONG])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--llama", default=ROOT / ".venv" / "llama" / "bin" / "python")
    parser.add_argument("--torch", default=ROOT / ".venv" / "bin" / "python")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        name, path, *numbers = options.part
        part = timed if name == "timed" else getattr(decode_parts, name)
        print(json.dumps(part(Path(path), *(float(each) if "." in each else int(each) for each in numbers))))
        return
    part = lambda *words: ask(sys.executable, __file__, "--part", *words)
    if not (options.life / "palettized").exists():
        subprocess.run(
            [sys.executable, "-m", "pomona.cli.main", "life", "tiny"], cwd=ROOT, check=True, stdout=sys.stderr
        )
    answer = {"cpu": platform.processor() or platform.machine()} | part("quality", options.life)
    paths, most = files(options.work), max(options.threads)
    rows = table(options, paths | {TORCH: None})
    answer |= part("adapters", paths["3.7"], most, options.tokens)
    answer |= part("speculation", paths["3.7"], most, 2 * options.tokens, f"{answer['acceptance']:.3f}")
    answer |= part("first_token", paths["3.7"])
    last = {each["name"]: each for each in rows if each["threads"] == most and each["context"] == options.contexts[0]}
    ratio = lambda ours, theirs, what="tokens_per_second": last[ours][what] / last[theirs][what]
    answer |= {
        "share_of_bandwidth": last["3.7"]["share_of_bandwidth"],
        **{f"ratio_vs_{theirs.lower()}": ratio("3.7", theirs) for theirs in (*PEERS, TORCH)},
        "ratio_2bit_vs_q4_k_m": ratio("2", "Q4_K_M"),
        "prefill_ratio_vs_q4_0": ratio("3.7", "Q4_0", "prefill_tokens_per_second"),
        "rows": rows,
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
