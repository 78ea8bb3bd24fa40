"""Two decoders and one batch: what a teacher expects, and how far a student is from it.

Shapes: B batch, T tokens, D model (the teacher's may be another), V vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp

from pomona.model.config import Architecture, Execution
from pomona.model.decoder import Decoder
from pomona.model.objective import Z_LOSS, LossSums, TokenBatch, hidden_states
from pomona.ops.teacher import taught_cross_entropy, top_token
from pomona.parallel import rules

TOKENS, HIDDEN, TABLE = ("batch", "tokens"), ("batch", "tokens", None), ("vocab", "model")


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a decoder reads: what it is, how it is computed and its rotary base."""

    architecture: Architecture
    execution: Execution
    rope_base: float

    def hidden(self, params: Decoder, batch: TokenBatch) -> jax.Array:
        """hidden_BTD after the final norm."""
        return hidden_states(params, batch, self.architecture, self.execution, self.rope_base)


def top_tokens(params: Decoder, batch: TokenBatch, reading: Reading) -> jax.Array:
    """The most likely token of every prediction, int32 [B, T]; anything where there is padding."""

    def local(hidden_BTD: jax.Array, shard_VD: jax.Array) -> jax.Array:
        top_M = top_token(
            hidden_BTD.reshape(-1, hidden_BTD.shape[-1]),
            rules.whole(shard_VD, TABLE, hidden_BTD.dtype),
            chunk_tokens=reading.execution.loss_chunk_tokens,
            vocab_axis=_vocab_axis(),
        )
        return top_M.reshape(hidden_BTD.shape[:2])

    return rules.on_shards(local, [HIDDEN, TABLE], TOKENS)(reading.hidden(params, batch), params.embedding)


def divergence_loss(
    student: tuple[Decoder, Reading],
    teacher: tuple[Decoder, Reading],
    batch: TokenBatch,
    share: float,
    temperature: float,
) -> LossSums:
    """The sums of `ops.teacher.taught_cross_entropy` over the tokens of real documents; the student alone learns."""
    params, reading = student
    teacher_params = jax.lax.stop_gradient(teacher[0])

    def local(hidden_BTD, shard_VD, teacher_BTD, teacher_shard_VD, targets_BT, segments_BT):
        weights_M = (segments_BT > 0).astype(jnp.float32).reshape(-1)
        total, nll, z = taught_cross_entropy(
            hidden_BTD.reshape(-1, hidden_BTD.shape[-1]),
            rules.whole(shard_VD, TABLE, hidden_BTD.dtype),
            teacher_BTD.reshape(-1, teacher_BTD.shape[-1]),
            rules.whole(teacher_shard_VD, TABLE, teacher_BTD.dtype),
            targets_BT.reshape(-1),
            weights_M,
            share=share,
            temperature=temperature,
            z_loss=Z_LOSS,
            chunk_tokens=reading.execution.loss_chunk_tokens,
            vocab_axis=_vocab_axis(),
        )
        sums = LossSums(total, nll, z, jnp.sum(weights_M))
        return rules.sum_over(rules.sum_over(sums, "batch"), "tokens")

    return rules.on_shards(local, [HIDDEN, TABLE, HIDDEN, TABLE, TOKENS, TOKENS], ())(
        *(reading.hidden(params, batch), params.embedding),
        *(teacher[1].hidden(teacher_params, batch), teacher_params.embedding),
        *(batch.targets, batch.segments),
    )


def _vocab_axis() -> str | None:
    axes = rules.manual_axes("vocab")
    return axes[0] if axes else None
