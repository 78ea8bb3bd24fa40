"""How long a Pallas kernel of a compiled program takes: XLA's own estimates leave kernels out.

A kernel is the slower of its products on the matrix units and its bytes through HBM. Splash attention is known by name:
its products follow from its operands and block sizes, and only blocks that the causal mask leaves are counted; of the
two parts of a shard (`parallel/zigzag.py`) as many as a shard has on the average, for all have as many in both. Any
other kernel is taken at the cost estimate that it was written with (`pl.CostEstimate`), since it may read a part of its
operands alone, or at the bytes of all of them.
"""

import json
import re

from pomona.core.chips import Chip
from pomona.parallel.config import ZIGZAG
from pomona.plan.hlo import Array, Instruction

MATRIX_SHARE = {
    "v4": {"splash_mha_fwd": 0.55, "splash_mha_dkv": 0.82, "cached_attention": 0.57},
    "v5p": {"splash_mha_fwd": 0.80, "splash_mha_dkv": 0.99, "cached_attention": 0.51},
}
"""Share of the matrix units' peak that a block's code reaches: their busy cycles over all cycles from the first product
to the last, in the VLIW schedule that libtpu writes out; splash in blocks of 1024 x 1024, attention over a cache in
those of a prompt, head dimension 128 (`make bench-kernel-cycles`). In a step, attention over a cache is taken at its
bytes: 2048 columns take one of v5p's cores 0.9 us, and their code at most 2124 cycles, 1.2 us, of which a block
without new tokens leaves out the part for them."""

OTHER_CHIPS = {"splash_mha_fwd": 0.65, "splash_mha_dkv": 0.85, "cached_attention": 0.54}  # between the two

PRODUCTS = {"splash_mha_fwd": 2, "splash_mha_dkv": 5}
"""Products of (queries x keys x head dimension) in a block: forward; fused backward, which makes the scores again."""

MEMORY_SHARE = 0.85  # of the HBM's peak that streaming reaches
BLOCK_CYCLES = 1000  # around a block's products, in the same schedules; what runs only after the last is left out


def kernel_seconds(kernel: Instruction, operands: list[Array], chip: Chip) -> float:
    """Seconds of one call on one chip."""
    traffic = sum(a.size_bytes for a in (*operands, *kernel.arrays) if not a.on_chip)
    memory = traffic / (chip.memory_bytes_per_second * MEMORY_SHARE)
    shares = MATRIX_SHARE.get(chip.name, OTHER_CHIPS)
    name = next((name for name in shares if name in kernel.name or name in kernel.op_name), "")
    if name not in PRODUCTS:
        flops, touched = _cost_estimate(kernel.text) or (0.0, traffic)
        memory = touched / (chip.memory_bytes_per_second * MEMORY_SHARE)
        return max(flops / (chip.flops_per_second * shares.get(name, 1.0)), memory)
    flops, blocks = splash_work(kernel, operands, PRODUCTS[name])
    products = flops / (chip.flops_per_second * shares[name])
    around = blocks / chip.tensor_cores * BLOCK_CYCLES / (chip.clock_hz or 1.5e9)
    return max(products + around, memory)


def splash_work(kernel: Instruction, operands: list[Array], products: int) -> tuple[float, float]:
    """FLOPs of the blocks that are computed, and their number, of one splash call."""
    q, k = [a for a in operands if a.dtype in ("bf16", "f32") and len(a.shape) >= 3][:2]
    heads, queries, head_dim = q.shape[-3:]
    keys = k.shape[-2]
    block_q, block_kv = _block_sizes(kernel.text, "fwd" if products == 2 else "dkv")
    block_q, block_kv = min(block_q, queries), min(block_kv, keys)
    places = _places(kernel, keys // queries)
    ends = [place * queries + end for place in places for end in range(block_q, queries + 1, block_q)]
    computed = sum(min(keys, -(-end // block_kv) * block_kv) // block_kv for end in ends) / len(places)
    blocks = heads * computed * (1 if len(q.shape) == 3 else q.shape[0])
    return blocks * products * 2.0 * block_q * block_kv * head_dim, blocks


def _places(kernel: Instruction, parts: int) -> range:
    """Which parts of the sequence the queries are, on one device or another; otherwise the last, which has the most."""
    first, last = (name in kernel.op_name for name in ZIGZAG)
    return range(parts) if first else range(parts // 2, parts) if last else range(parts - 1, parts)


def _block_sizes(text: str, part: str) -> tuple[int, int]:
    names = ("block_q", "block_kv") if part == "fwd" else ("block_q_dkv", "block_kv_dkv")
    found = [re.search(rf'\\?"{name}\\?": (\d+)', text) for name in names]
    return tuple(int(m[1]) if m else 1024 for m in found)  # type: ignore[return-value]


def _cost_estimate(text: str) -> tuple[float, float] | None:
    """(FLOPs, bytes) that the kernel was written with, if it was."""
    found = re.search(r'"cost_estimate":(\{[^}]*\})', text)
    if not found:
        return None
    estimate = json.loads(found[1])
    return float(estimate.get("flops", 0)), float(estimate.get("bytes_accessed", 0))
