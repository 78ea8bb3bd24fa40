"""From logits to the next token: greedy, temperature, top-k, top-p. Shapes: B sequences, V vocabulary."""

import dataclasses

import jax
import jax.numpy as jnp

from pomona.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 0.8
    """0 always takes the most likely token."""
    top_k: int = 0
    """Only the k most likely tokens; 0 for all."""
    top_p: float = 1.0
    """Only the most likely tokens that together have this probability."""


def check_sampling(sampling: Sampling) -> None:
    """Raises `UserError` for values outside their ranges."""
    if sampling.temperature < 0 or sampling.top_k < 0 or not 0 < sampling.top_p <= 1:
        raise UserError(
            f"temperature {sampling.temperature}, top-k {sampling.top_k}, top-p {sampling.top_p}.",
            "the temperature and top-k are not negative, and top-p is above 0 and at most 1.",
            "--temperature 0.8 --top-k 0 --top-p 0.95",
        )


def sample(logits_BV: jax.Array, key: jax.Array, sampling: Sampling) -> jax.Array:
    """Token ids [B], int32. The filters apply in the usual order: temperature, then top-k, then top-p."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits_BV = logits_BV.astype(jnp.float32) / sampling.temperature
    if sampling.top_k:
        kth_B1 = jax.lax.top_k(logits_BV, min(sampling.top_k, logits_BV.shape[-1]))[0][:, -1:]
        logits_BV = jnp.where(logits_BV < kth_B1, -jnp.inf, logits_BV)
    if sampling.top_p < 1:
        logits_BV = jnp.where(_nucleus(logits_BV, sampling.top_p), logits_BV, -jnp.inf)
    return jax.random.categorical(key, logits_BV, axis=-1).astype(jnp.int32)


def _nucleus(logits_BV: jax.Array, top_p: float) -> jax.Array:
    """True for the smallest set of most likely tokens that reaches `top_p` (Holtzman et al. 2020); never empty."""
    sorted_BV = -jnp.sort(-logits_BV, axis=-1)
    probabilities = jax.nn.softmax(sorted_BV, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    last = jnp.sum(before < top_p, axis=-1, keepdims=True) - 1
    return logits_BV >= jnp.take_along_axis(sorted_BV, last, axis=-1)
