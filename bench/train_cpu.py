"""Training throughput on this CPU: Pomona beside Hugging Face's Qwen3 in PyTorch, eager and compiled.

    make bench-train-cpu

The same model for all (8 layers, width 512, 8/4 heads of 64, feed-forward 1536, vocabulary 16384, tied), batch 8 of
sequence 512, float32, each with its optimizer step: AdaStar here, fused AdamW there. Each contender is a process of its
own that waits while another one works; they take turns step by step, so that a noisy neighbour hits all of them. The
last line is JSON: ratios of medians (above 1: Pomona is better), and Pomona's share of the fastest float32 matmul that
either library reached between the steps. FLOPs count the causal half of attention.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time

SHAPE = {"vocab_size": 16384, "model_dim": 512, "num_layers": 8, "num_heads": 8, "num_kv_heads": 4, "head_dim": 64}
FFN_DIM, BATCH, SEQUENCE, PEAK = 1536, 8, 512, 2048
CONTENDERS = ("pomona", "eager", "compile")


def pomona():
    """The train loop's own step, as `pomona train` compiles it. Returns (step, matmul)."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from pomona.model.config import Architecture
    from pomona.model.objective import TokenBatch
    from pomona.optim.config import Schedule
    from pomona.train.config import Run, Stage, decide
    from pomona.train.state import create_state
    from pomona.train.step import train_step

    stage = Stage("core", 1000, BATCH, SEQUENCE, Schedule(1e-3, warmup_steps=10))
    run = decide(Run("bench", Architecture(**SHAPE, ffn_dim=FFN_DIM), (stage,)), "cpu", num_devices=1, batch_shards=1)
    state = jax.jit(lambda: create_state(run))()
    compiled = jax.jit(train_step(run, 0), donate_argnums=0)
    parts = run.stages[0].micro_batches
    shape = (parts, BATCH // parts, SEQUENCE)
    tokens = np.random.default_rng(0).integers(0, SHAPE["vocab_size"], (*shape[:2], SEQUENCE + 1)).astype(np.int32)
    positions = np.broadcast_to(np.arange(SEQUENCE, dtype=np.int32), shape)
    rows = (tokens[..., :-1], tokens[..., 1:], np.ones_like(positions), positions)
    batch = TokenBatch(*(jnp.asarray(x) for x in rows))

    def step():
        nonlocal state
        state, about = compiled(state, batch)
        return float(about["loss"])

    square = jnp.ones((PEAK, PEAK), jnp.float32)
    product = jax.jit(lambda a: a @ a)
    return step, lambda: product(square).block_until_ready()


def torch_peer(compile_it):
    """Stock `Qwen3ForCausalLM`. Returns (step, matmul)."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=SHAPE["vocab_size"],
        hidden_size=SHAPE["model_dim"],
        intermediate_size=FFN_DIM,
        num_hidden_layers=SHAPE["num_layers"],
        num_attention_heads=SHAPE["num_heads"],
        num_key_value_heads=SHAPE["num_kv_heads"],
        head_dim=SHAPE["head_dim"],
        tie_word_embeddings=True,
        max_position_embeddings=SEQUENCE,
        use_cache=False,
    )
    model = Qwen3ForCausalLM(config).train()
    forward = torch.compile(model) if compile_it else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(0, SHAPE["vocab_size"], (BATCH, SEQUENCE))

    def step():
        loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    square = torch.ones(PEAK, PEAK)
    return step, lambda: square @ square


def contend(name):
    """The child: does what each line of stdin asks, and prints what it cost."""
    step, matmul = pomona() if name == "pomona" else torch_peer(name == "compile")
    work = {"step": (step, 1), "matmul": (matmul, 8)}
    print(json.dumps({"ready": name}), flush=True)
    for line in sys.stdin:
        function, times = work[line.strip()]
        before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        for _ in range(times):
            result = function()
        seconds = (time.perf_counter() - start) / times
        after = resource.getrusage(resource.RUSAGE_SELF)
        user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
        answer = {"seconds": seconds, "core_seconds": (user + system) / times, "system_seconds": system / times}
        answer |= {"page_faults": (after.ru_minflt - before.ru_minflt) // times, "peak_gib": after.ru_maxrss / 2**20}
        print(json.dumps(answer | {"result": result if isinstance(result, float) else None}), flush=True)


class Contender:
    """A child process, asked one thing at a time."""

    def __init__(self, name):
        self.name = name
        command = [sys.executable, __file__, "--contender", name]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.read()

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"the contender {self.name!r} ended with {self.process.wait()}; its error stands above")
        return json.loads(line)

    def ask(self, what):
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return self.read()


def main():
    """Runs the contenders in turns and prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=CONTENDERS, help="a part of the comparison")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    if arguments.contender:
        return contend(arguments.contender)
    contenders = [Contender(name) for name in arguments.only]
    for contender in contenders:
        first = contender.ask("step")["seconds"]
        contender.ask("step")
        print(f"{contender.name}: first step {first:.1f} s, compilation included", file=sys.stderr)
    results = {contender.name: [] for contender in contenders}
    matmuls = []
    for _ in range(arguments.rounds):
        for contender in contenders:
            matmuls.append(contender.ask("matmul")["seconds"])
            results[contender.name].append(contender.ask("step"))
    print(json.dumps(summary(results, 2 * PEAK**3 / min(matmuls)), allow_nan=False))


def summary(results, matmul_peak):
    """The JSON object of the last line."""
    from pomona.model.config import Architecture
    from pomona.model.count import training_flops

    def median(name, key):
        return statistics.median(result[key] for result in results[name])

    tokens = BATCH * SEQUENCE
    flops = tokens * training_flops(Architecture(**SHAPE, ffn_dim=FFN_DIM), SEQUENCE).causal
    out = {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "matmul_peak_gflops": matmul_peak / 1e9,
    }
    for name in results:
        keys = ("seconds", "core_seconds", "system_seconds", "page_faults", "peak_gib")
        out[name] = {"tokens_per_second": round(tokens / median(name, "seconds"), 1)}
        out[name] |= {key: round(median(name, key), 3) for key in keys}
    if "pomona" in results:
        out["share_of_matmul_peak"] = flops / median("pomona", "seconds") / matmul_peak
        for peer in set(results) - {"pomona"}:
            out[f"ratio_vs_{peer}"] = median(peer, "seconds") / median("pomona", "seconds")
            out[f"core_seconds_ratio_vs_{peer}"] = median(peer, "core_seconds") / median("pomona", "core_seconds")
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in out.items()}


if __name__ == "__main__":
    main()
