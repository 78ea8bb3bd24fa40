"""How long a person waits: for --help, for the first step, for the tokenizer, and in each step for data.

    make bench-startup

Everything runs in a temporary folder, with the commands a user types. `first_step_seconds` counts from the launch of
`pomona train tiny` to the first line with a loss in metrics.jsonl, compilation and the evaluation before it included,
on a corpus that is prepared; `first_step_cold_seconds` also trains the tokenizer and tokenizes. The tokenizer's ratio
is our MB/s over SentencePiece's own on the same text and thread (above 1 would be faster). The last line is JSON.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

POMONA = [sys.executable, "-m", "pomona.cli.main"]
STEPS = 30
TEXT_BYTES = 4_000_000


def seconds(function):
    """Wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def help_seconds():
    """Median of several `pomona --help`."""
    ask = lambda: subprocess.run([*POMONA, "--help"], check=True, stdout=subprocess.DEVNULL)
    ask()
    return statistics.median(seconds(ask) for _ in range(9))


def train(folder, steps):
    """Trains for a few steps. Returns (seconds to the first loss, the records)."""
    metrics = folder / "metrics.jsonl"
    command = [*POMONA, "train", "tiny", "--run", str(folder), "--data.cache", str(folder.parent / "cache")]
    command += [
        "--stages.0.steps",
        str(steps),
        "--stages.0.schedule.warmup-steps",
        "1",
        "--metrics.log-every-steps",
        "1",
    ]
    command += ["--evaluation.max-batches", "1"]
    start, first = time.perf_counter(), None
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        if first is None and metrics.exists() and '"loss"' in metrics.read_text():
            first = time.perf_counter() - start
        time.sleep(0.02)
    if process.returncode or first is None:
        sys.exit(f"the run in {folder} ended with {process.returncode}")
    return first, [json.loads(line) for line in metrics.read_text().splitlines()]


def tokenizer_speeds(tokenizer_folder):
    """MB/s of our encoding and of SentencePiece's own, in turns on the same documents."""
    from pomona.data import stdlib
    from pomona.data.tokenizer import load_tokenizer

    tokenizer, texts, size = load_tokenizer(tokenizer_folder), [], 0
    for _, text in stdlib.documents():
        texts.append(text)
        size += len(text.encode())
        if size > TEXT_BYTES:
            break
    ways = (lambda: tokenizer.encode_batch(texts), lambda: tokenizer.processor.encode(texts, num_threads=1))
    turns = [[seconds(way) for way in ways] for _ in range(7)]
    return [size / 1e6 / statistics.median(turn[i] for turn in turns) for i in range(2)]


def main():
    """Measures and prints."""
    with tempfile.TemporaryDirectory() as scratch:
        cold, _ = train(Path(scratch) / "cold", 2)
        first, records = train(Path(scratch) / "warm", STEPS)
        ours, theirs = tokenizer_speeds(Path(scratch) / "warm" / "tokenizer")
    waits = [record["data_wait_share"] for record in records if "data_wait_share" in record]
    answer = {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "help_seconds": help_seconds(),
        "first_step_seconds": first,
        "first_step_cold_seconds": cold,
        "tokenizer_mb_per_second": ours,
        "tokenizer_ratio_vs_sentencepiece": ours / theirs,
        "data_wait_share": statistics.mean(waits),
        "steps": len(waits),
    }
    print(json.dumps({key: round(value, 5) if isinstance(value, float) else value for key, value in answer.items()}))


if __name__ == "__main__":
    main()
