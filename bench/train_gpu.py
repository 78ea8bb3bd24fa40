"""MFU of AFM-on-device-shaped training on one GPU.

    make bench-train-gpu        (installs the extra `gpu`, gigabytes of CUDA, into .venv)

The layer of `afm_device` (width 3072, 24/8 heads of 128, feed-forward 8064, vocabulary 49152) at sequence 4096 in
bfloat16 over float32 state, with as many layers as --layers says, since 26 with their optimizer state and gradients do
not leave one GPU much room: FLOPs are counted for the layers that ran. MFU is model FLOPs, with the causal half of
attention (`mfu`) and with all of it (`mfu_full`, what most published figures use), over the chip's dense bfloat16
peak in pomona/core/chips.py. The last line is JSON.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import time


def main():
    """Trains random tokens for a few steps and prints the median."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--batch", type=int, default=4, help="sequences of a micro-batch")
    parser.add_argument("--micro-batches", type=int, default=1)
    parser.add_argument("--sequence", type=int, default=4096)
    parser.add_argument("--remat", default="products", choices=("none", "products", "gate", "qkv", "attention", "full"))
    parser.add_argument("--attention", default="auto", choices=("auto", "cudnn", "reference"))
    parser.add_argument("--loss-chunk-tokens", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    import jax

    device = jax.devices()[0]
    if device.platform != "gpu":
        sys.exit(f"this bench is for a GPU; JAX sees {device.platform!r}. Try: pip install -e '.[gpu]'")
    print(json.dumps(measure(arguments, device)))


def measure(arguments, device):
    """The JSON object of the last line."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from pomona.core.chips import chip_for_device_kind
    from pomona.model.config import Execution
    from pomona.model.count import count_parameters, training_flops
    from pomona.model.objective import TokenBatch
    from pomona.model.presets import AFM_DEVICE
    from pomona.optim.config import Schedule
    from pomona.train.config import Run, Stage, decide
    from pomona.train.state import create_state
    from pomona.train.step import train_step

    parts, batch, length = arguments.micro_batches, arguments.batch, arguments.sequence
    architecture = dataclasses.replace(AFM_DEVICE, num_layers=arguments.layers)
    stage = Stage("core", 1000, parts * batch, length, Schedule(1e-3, warmup_steps=10), micro_batches=parts)
    execution = Execution(
        remat=arguments.remat, attention=arguments.attention, loss_chunk_tokens=arguments.loss_chunk_tokens
    )
    run = decide(Run("bench", architecture, (stage,), execution=execution), "gpu", num_devices=1, batch_shards=1)
    state = jax.jit(lambda: create_state(run))()
    rows = np.random.default_rng(0).integers(0, architecture.vocab_size, (parts, batch, length + 1)).astype(np.int32)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), (parts, batch, length))
    data = TokenBatch(*map(jnp.asarray, (rows[..., :-1], rows[..., 1:], np.ones_like(positions), positions)))
    start = time.perf_counter()
    step = jax.jit(train_step(run, 0), donate_argnums=0).lower(state, data).compile()
    compile_seconds = time.perf_counter() - start
    times = []
    for _ in range(arguments.steps + 3):
        start = time.perf_counter()
        state, about = step(state, data)
        loss = float(about["loss"])
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times[3:])
    tokens = stage.batch_tokens
    flops, chip = training_flops(architecture, length), chip_for_device_kind(device.device_kind)
    peak = chip.peak_flops_per_second if chip else None
    return {
        "device": device.device_kind,
        "layers": arguments.layers,
        "parameters": count_parameters(architecture).total,
        "batch_tokens": tokens,
        "remat": arguments.remat,
        "attention": run.execution.attention,
        "mfu": peak and flops.causal * tokens / seconds / peak,
        "mfu_full": peak and flops.full * tokens / seconds / peak,
        "tokens_per_second": tokens / seconds,
        "step_seconds": seconds,
        "compile_seconds": compile_seconds,
        "peak_gib": (device.memory_stats() or {}).get("peak_bytes_in_use", 0) / 2**30,
        "loss": loss,
    }


if __name__ == "__main__":
    main()
