"""What a decoder weighs and costs, by arithmetic alone: no JAX, no NumPy.

FLOPs count a multiply and an add as two. Two conventions for attention: `causal` counts the half of the scores that a
causal model needs (what our kernels compute), `full` counts all of them (what most published MFU figures use).
Bytes of activations are those of bfloat16 compute, the plan's; what is kept in float32 says so.
"""

import dataclasses
import math
from collections.abc import Iterable
from functools import cache
from typing import Literal

from pomona.model.config import Architecture, RematPolicy

Part = Literal["embedding", "attention", "ffn", "norms"]


@dataclasses.dataclass(frozen=True)
class Parameters:
    """Parameters by part, over all layers."""

    embedding: int
    attention: int
    ffn: int
    norms: int

    @property
    def without_embedding(self) -> int:
        return self.attention + self.ffn + self.norms

    @property
    def total(self) -> int:
        return self.embedding + self.without_embedding


@dataclasses.dataclass(frozen=True)
class Weight:
    """One tensor of the model as `model.decoder.parameter_specs` has it: over all layers, with its logical axes."""

    name: str
    part: Part
    shape: tuple[int, ...]
    axes: tuple[str, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class TokenFlops:
    """FLOPs of one training token, forward and backward, without recomputation."""

    causal: float
    full: float


@dataclasses.dataclass(frozen=True)
class Remat:
    """What a policy keeps of one layer for the backward pass, and what it computes again there.

    Bytes per token, for every unit of the model's width, of the query heads, of the key-value heads, of the
    feed-forward block. `again` names the layer's products, as `product_flops` does, for a kernel of attention whose
    output and log-normalisers a policy can name (splash).
    """

    model_bytes: int
    heads_bytes: int
    kv_heads_bytes: int
    ffn_bytes: int
    again: tuple[str, ...]
    keeps_weights: bool = False  # the layer's as they were multiplied, whole, in bfloat16; nothing is computed again


REMAT: dict[RematPolicy, Remat] = {
    # Both norms keep their input twice in float32 and their output; queries and keys are kept as projected and as the
    # kernel of attention reads them; values; attention's output by heads and as the rows of a product; and three of the
    # feed-forward block: gate, up, their units.
    "none": Remat(20, 8, 6, 6, again=(), keeps_weights=True),
    # All keep the layer's input. The sum after attention; attention's output; queries, keys, values as projected; gate
    # and up. The last product is needed by no gradient, so it is never computed again.
    "products": Remat(4, 4, 4, 4, again=()),
    "ffn": Remat(2, 2, 4, 4, again=("query", "output")),
    "gate": Remat(4, 4, 4, 2, again=("up",)),
    "qkv": Remat(4, 4, 4, 0, again=("gate", "up")),
    "attention": Remat(2, 2, 0, 0, again=("query", "kv", "output", "gate", "up")),
    "full": Remat(2, 0, 0, 0, again=("query", "kv", "attention", "output", "gate", "up")),
}

TURNED_BY_HALVES = dataclasses.replace(REMAT["none"], heads_bytes=14, kv_heads_bytes=12)
"""`none` where no kernel turns queries and keys by their positions: two more of them are kept, in float32, instead of
what was projected."""

AT_WORK = Remat(8, 8, 8, 12, again=())
"""One layer in its backward pass: inputs and outputs of its products, and their gradients."""

KERNEL_AGAIN = 0.5
"""A fused attention kernel computes the scores again in its backward pass: half of its forward FLOPs (Dao, "Flash
Attention 2", section 3.1)."""


@cache
def weights(a: Architecture) -> tuple[Weight, ...]:
    """Every tensor of the model."""
    L, D, N, K, H, F = a.num_layers, a.model_dim, a.num_heads, a.num_kv_heads, a.head_dim, a.ffn_dim

    def layer(name: str, part: Part, shape: tuple[int, ...], *axes: str) -> Weight:
        return Weight(f"layers.{name}", part, (L, *shape), ("layers", *axes))

    return (
        Weight("embedding", "embedding", (a.vocab_size, D), ("vocab", "model")),
        layer("attention_norm", "norms", (D,), "norm"),
        layer("attention.query", "attention", (D, N, H), "model", "heads", "head_dim"),
        layer("attention.key", "attention", (D, K, H), "model", "kv_heads", "head_dim"),
        layer("attention.value", "attention", (D, K, H), "model", "kv_heads", "head_dim"),
        layer("attention.output", "attention", (N, H, D), "heads", "head_dim", "model"),
        layer("attention.query_norm", "norms", (H,), "norm"),
        layer("attention.key_norm", "norms", (H,), "norm"),
        layer("ffn_norm", "norms", (D,), "norm"),
        layer("ffn.gate", "ffn", (D, F), "model", "ffn"),
        layer("ffn.up", "ffn", (D, F), "model", "ffn"),
        layer("ffn.down", "ffn", (F, D), "ffn", "model"),
        Weight("final_norm", "norms", (D,), ("norm",)),
    )


@cache
def count_parameters(a: Architecture) -> Parameters:
    """Parameters by part; the tied output layer is the embedding and counts once."""
    sizes = {"embedding": 0, "attention": 0, "ffn": 0, "norms": 0}
    for weight in weights(a):
        sizes[weight.part] += weight.size
    return Parameters(**sizes)


def training_flops(a: Architecture, sequence_length: int) -> TokenFlops:
    """FLOPs per token at a sequence length: 6 per matmul parameter (the head included, the look-up not), and
    attention's two products, three times (once forward, twice backward)."""
    parameters = count_parameters(a)
    matmuls = 6 * (parameters.attention + parameters.ffn + parameters.embedding)
    full = 3 * a.num_layers * 4 * sequence_length * a.num_heads * a.head_dim
    causal = full * (sequence_length + 1) / (2 * sequence_length)
    return TokenFlops(causal=matmuls + causal, full=matmuls + full)


def product_flops(a: Architecture, sequence_length: int) -> dict[str, float]:
    """Forward FLOPs of one token in one layer, by product; attention's two are causal."""
    D, query, key = a.model_dim, a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
    return {
        "query": 2 * D * query,
        "kv": 2 * D * 2 * key,
        "attention": 4 * query * (sequence_length + 1) / 2,
        "output": 2 * query * D,
        "gate": 2 * D * a.ffn_dim,
        "up": 2 * D * a.ffn_dim,
        "down": 2 * a.ffn_dim * D,
    }


def recomputed_flops(a: Architecture, sequence_length: int, again: Iterable[str]) -> float:
    """FLOPs of one training token, over all layers, beyond `training_flops`: the products that are computed again, and
    what the attention kernel repeats in its backward pass."""
    products = product_flops(a, sequence_length)
    return a.num_layers * (sum(products[name] for name in again) + KERNEL_AGAIN * products["attention"])


def activation_bytes(a: Architecture, kept: Remat, model_shards: int = 1) -> float:
    """Bytes per token and layer of what `kept` lists, where heads and feed-forward units are spread over
    `model_shards` devices; what is as wide as the model is on each of them."""
    spread = a.head_dim * (a.num_heads * kept.heads_bytes + a.num_kv_heads * kept.kv_heads_bytes)
    spread += a.ffn_dim * kept.ffn_bytes
    return a.model_dim * kept.model_bytes + spread / model_shards
