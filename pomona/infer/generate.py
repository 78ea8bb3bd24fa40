"""Generation with a cache of keys and values, in batches of prompts of different lengths.

Prompts are padded on the left, so that all sequences end together and every decoding step writes one column of the
cache. Shapes: B sequences, T tokens of this call, S cache columns, K key-value heads, N query heads, H head, D model, V
vocabulary.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pomona.core.errors import UserError
from pomona.infer.cache import Cache, attend, empty_cache, write
from pomona.infer.sample import sample
from pomona.model.config import Architecture, Execution
from pomona.model.decoder import Decoder, embed, run_layers
from pomona.model.sampling import Sampling, check_sampling


def advance(
    params: Decoder,
    tokens_BT: jax.Array,
    cache: Cache,
    architecture: Architecture,
    execution: Execution,
    rope_base: float,
) -> tuple[jax.Array, Cache]:
    """Runs T more tokens. Returns the float32 logits_BV after the last of them, and the longer cache."""
    T, columns = tokens_BT.shape[1], cache.columns
    column_T = cache.used + jnp.arange(T)
    positions_BT = jnp.maximum(column_T[None, :] - cache.padding[:, None], 0)
    key_column_S = jnp.arange(columns)
    visible_BTS = (key_column_S <= column_T[:, None])[None] & ((key_column_S >= cache.padding[:, None])[:, None, :])

    def attend_cache(q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        keys, values = (write(old, new, cache.used) for old, new in zip(state, (k_BTKH, v_BTKH)))
        return attend(q_BTNH, keys, values, visible_BTS), (keys, values)

    x_BTD = embed(params, tokens_BT, jnp.dtype(execution.compute_dtype))
    hidden_BTD, (keys, values) = run_layers(
        params, x_BTD, positions_BT, attend_cache, (cache.keys, cache.values), architecture, execution, rope_base
    )
    logits_BV = jnp.einsum(
        "bd,vd->bv",
        hidden_BTD[:, -1],
        params.embedding.astype(hidden_BTD.dtype),
        preferred_element_type=jnp.float32,
    )
    return logits_BV, Cache(keys, values, cache.used + T, cache.padding)


def generate(
    params: Decoder,
    prompts: Sequence[Sequence[int]],
    architecture: Architecture,
    execution: Execution,
    *,
    rope_base: float,
    max_tokens: int,
    sampling: Sampling,
    stop_tokens: Sequence[int] = (),
    seed: int = 0,
    cache_dtype: Any = None,
) -> list[list[int]]:
    """The tokens that follow each prompt, up to `max_tokens` or the first stop token, which is left out.

    Args:
        cache_dtype: of keys and values, jnp.int8 among others; the compute dtype by default.

    Raises:
        UserError: an empty prompt, a token the model does not have, or sampling values out of range.
    """
    check_sampling(sampling)
    _check_prompts(prompts, architecture, max_tokens)
    longest = max(map(len, prompts))
    tokens_BT = np.array([[0] * (longest - len(p)) + list(p) for p in prompts], np.int32)
    padding_B = np.array([longest - len(p) for p in prompts], np.int32)
    if not max_tokens:
        return [[] for _ in prompts]
    cache = empty_cache(
        architecture, jnp.asarray(padding_B), longest + max_tokens, cache_dtype or jnp.dtype(execution.compute_dtype)
    )
    key = jax.random.key(seed)
    step = partial(_step, architecture=architecture, execution=execution, rope_base=rope_base, sampling=sampling)
    next_B, cache = step(params, jnp.asarray(tokens_BT), cache=cache, key=jax.random.fold_in(key, 0))
    out: list[list[int]] = [[] for _ in prompts]
    done = [False] * len(prompts)
    for number in range(1, max_tokens + 1):
        for i, token in enumerate(np.asarray(next_B).tolist()):
            done[i] = done[i] or token in stop_tokens
            if not done[i]:
                out[i].append(token)
        if all(done) or number == max_tokens:
            break
        next_B, cache = step(params, next_B[:, None], cache=cache, key=jax.random.fold_in(key, number))
    return out


@partial(jax.jit, static_argnames=("architecture", "execution", "rope_base", "sampling"), donate_argnames="cache")
def _step(
    params: Decoder,
    tokens_BT: jax.Array,
    *,
    cache: Cache,
    key: jax.Array,
    architecture: Architecture,
    execution: Execution,
    rope_base: float,
    sampling: Sampling,
) -> tuple[jax.Array, Cache]:
    logits_BV, cache = advance(params, tokens_BT, cache, architecture, execution, rope_base)
    return sample(logits_BV, key, sampling), cache


def _check_prompts(prompts: Sequence[Sequence[int]], architecture: Architecture, max_tokens: int) -> None:
    if not prompts or any(len(prompt) == 0 for prompt in prompts):
        raise UserError("a prompt is empty.", "generation continues at least one token.", "begin with the begin token")
    if any(not 0 <= token < architecture.vocab_size for prompt in prompts for token in prompt):
        raise UserError(
            "a prompt holds a token the model does not have.",
            f"tokens are 0 to {architecture.vocab_size - 1}.",
            "encode it with the run's own tokenizer",
        )
    if max_tokens < 0:
        raise UserError(f"{max_tokens} tokens.", "the number of tokens is not negative.", "--max-tokens 100")
