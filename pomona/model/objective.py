"""From parameters and a batch to the quantities every objective is made of.

Shapes: B batch, T tokens, D model, V vocabulary, N query heads, K key-value heads, H head,
L layers, F feed-forward.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from pomona.model.config import Architecture, Execution
from pomona.model.decoder import Attend, Decoder, Inputs, Observe, embed, run_layers
from pomona.ops.attention import attention
from pomona.ops.cross_entropy import cross_entropy
from pomona.parallel import rules, zigzag
from pomona.parallel.config import ZIGZAG

Z_LOSS = 1e-6
"""Weight of the squared log-normaliser (AFM report, section 3.1)."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenBatch:
    """Packed records on the device; every field is int32 [B, T], and `labels` absent where there is no teacher.

    On a mesh that shards the sequence, a record's tokens lie in the order of `parallel/zigzag.py`."""

    tokens: jax.Array
    targets: jax.Array
    segments: jax.Array  # 0 is padding; documents of a record are 1, 2, ...
    positions: jax.Array  # restart at 0 in every document
    labels: jax.Array | None = None  # what a teacher expects in place of the targets
    counted: jax.Array | None = None  # 1 where a prediction counts; absent: wherever segments are above 0

    @property
    def counts(self) -> jax.Array:
        """Where a prediction counts: above 0."""
        return self.segments if self.counted is None else self.counted


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossSums:
    """Sums over the target tokens of a batch, float32 scalars, so that shards and micro-batches add up."""

    total: jax.Array  # what is minimised: nll + z where there is no teacher
    nll: jax.Array  # nats
    z: jax.Array  # the z-loss, weighted
    tokens: jax.Array


def hidden_states(
    params: Decoder, batch: TokenBatch, architecture: Architecture, execution: Execution, rope_base: float
) -> jax.Array:
    """hidden_BTD after the final norm, in the compute dtype."""
    return observed(params, batch, architecture, execution, rope_base)[0]


def unit_sums(
    params: Decoder, batch: TokenBatch, architecture: Architecture, execution: Execution, rope_base: float
) -> jax.Array:
    """The absolute values of the feed-forward units, summed over the tokens of real documents, float32 [L, F]."""
    real_BT = (batch.segments > 0).astype(jnp.float32)

    def sizes(inputs: Inputs) -> jax.Array:
        return rules.project("btf,bt->f", jnp.abs(inputs.units.astype(jnp.float32)), real_BT, ("ffn",))

    return observed(params, batch, architecture, execution, rope_base, sizes)[1]


def observed(
    params: Decoder,
    batch: TokenBatch,
    architecture: Architecture,
    execution: Execution,
    rope_base: float,
    observe: Observe | None = None,
) -> tuple[jax.Array, Any]:
    """hidden_BTD after the final norm, and what was observed of every layer, stacked."""
    x_BTD, attend = embed(params, batch.tokens, jnp.dtype(execution.compute_dtype)), self_attention(batch, execution)
    return run_layers(params, x_BTD, batch.positions, attend, None, architecture, execution, rope_base, observe)


def self_attention(batch: TokenBatch, execution: Execution) -> Attend:
    """Attention within the documents of a batch; it has no state."""

    def attend(q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, _: None) -> tuple[jax.Array, None]:
        def local(q, k, v, segments):
            assert execution.attention != "auto", "resolve() the execution first"
            way, block_tokens = execution.attention, execution.attention_block_tokens
            attend = partial(attention, implementation=way, block_tokens=block_tokens)
            if rules.shard_count("tokens") > 1:
                return _of_shard(attend, q, k, v, segments)
            return attend(q, k, v, segments, segments)

        queries, keys = (("batch", "tokens", heads, "head_dim") for heads in ("heads", "kv_heads"))
        run = rules.on_shards(local, [queries, keys, keys, ("batch", "tokens")], queries)
        return run(q_BTNH, k_BTKH, v_BTKH, batch.segments), None

    return attend


def _of_shard(
    attend: Callable[..., jax.Array], q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, segments_BT: jax.Array
) -> jax.Array:
    """Attention of the two parts of a sequence that a shard holds, each over what comes before it: keys and values are
    gathered, queries stay where they are."""
    shards, index, size = rules.shard_count("tokens"), rules.shard_index("tokens"), q_BTNH.shape[1] // zigzag.PARTS
    whole = lambda x: zigzag.restored(rules.gathered(x, "tokens", 1), shards)
    # Side by side they travel as one.
    k_BSKH, v_BSKH = jnp.split(whole(jnp.concatenate([k_BTKH, v_BTKH], axis=2)), 2, axis=2)
    segments_BS, length = whole(segments_BT), k_BSKH.shape[1]

    def part(name: str, own: slice, seen: int, place: jax.Array | int) -> jax.Array:
        keys = k_BSKH[:, :seen], v_BSKH[:, :seen], segments_BT[:, own], segments_BS[:, :seen]
        with jax.named_scope(name):  # the cost model tells by it how many blocks there are
            return attend(q_BTNH[:, own], *keys, q_offset=place * size)

    first = part(ZIGZAG[0], slice(size), length // zigzag.PARTS, index)  # in the first half, whatever the shard
    last = part(ZIGZAG[1], slice(size, None), length, zigzag.PARTS * shards - 1 - index)
    return jnp.concatenate([first, last], axis=1)


def next_token_loss(
    params: Decoder,
    batch: TokenBatch,
    architecture: Architecture,
    execution: Execution,
    rope_base: float,
    taught_share: float = 0.0,
) -> LossSums:
    """Cross-entropy of the next token and z-loss, summed over the tokens of real documents that count.

    Args:
        taught_share: how much of the target is the batch's labels, where it has any.
    """
    hidden_BTD = hidden_states(params, batch, architecture, execution, rope_base)
    return loss_of(hidden_BTD, params.embedding, batch, execution, taught_share)


def loss_of(
    hidden_BTD: jax.Array,
    embedding_VD: jax.Array,
    batch: TokenBatch,
    execution: Execution,
    taught_share: float = 0.0,
) -> LossSums:
    """`next_token_loss` from the hidden states on."""
    labels = [] if batch.labels is None else [batch.labels]

    def local(hidden_BTD, shard_VD, targets_BT, counts_BT, *labels):
        table_VD = rules.whole(shard_VD, ("vocab", "model"), hidden_BTD.dtype)
        weights_M = (counts_BT > 0).astype(jnp.float32).reshape(-1)
        axes = rules.manual_axes("vocab")
        total, nll, z = cross_entropy(
            hidden_BTD.reshape(-1, hidden_BTD.shape[-1]),
            table_VD,
            targets_BT.reshape(-1),
            weights_M,
            z_loss=Z_LOSS,
            chunk_tokens=execution.loss_chunk_tokens,
            vocab_axis=axes[0] if axes else None,
            taught_M=labels[0].reshape(-1) if labels else None,
            taught_share=taught_share,
        )
        sums = LossSums(total, nll, z, jnp.sum(weights_M))
        return rules.sum_over(rules.sum_over(sums, "batch"), "tokens")

    token_axes = ("batch", "tokens")
    arguments = [(*token_axes, None), ("vocab", "model"), *[token_axes] * (2 + len(labels))]
    return rules.on_shards(local, arguments, ())(hidden_BTD, embedding_VD, batch.targets, batch.counts, *labels)
