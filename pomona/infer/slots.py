"""Sequences in slots, each at its own place: a prompt in pieces into one of them, the next tokens of all at once.

Two programs, both with the cache as a buffer that is changed in place. Sizes come in buckets, so that a handful of
compiled programs serve every length; everything else is data. What a sequence gets does not depend on the others.

Shapes: B slots, T tokens of this call, R sequences of this call, S cache columns, K steps of a dispatch, D model, V
vocabulary, C most likely tokens, W words of 32 bits.
"""

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pomona.core.errors import UserError
from pomona.infer.attention import over_cache
from pomona.infer.cache import Cache, empty_cache, write
from pomona.infer.sample import Array, Choices, Likely, likely, sample
from pomona.model.config import Architecture, Execution
from pomona.model.decoder import Decoder, embed, parameter_specs, run_layers
from pomona.model.projection import merged
from pomona.model.sampling import MOST_LIKELY
from pomona.model.spec import Spec, map_specs
from pomona.ops.low_rank import Adapted
from pomona.ops.palette import Palettized
from pomona.parallel import rules
from pomona.parallel.config import shards

SMALLEST_CHUNK, SMALLEST_SPAN = 16, 256


class Setting(NamedTuple):
    """What a program is compiled for, beside sizes."""

    architecture: Architecture
    execution: Execution
    rope_base: float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is drawn, told and allowed."""

    choices: Choices
    adapter_R: Array  # int32, -1 for none
    tell: Any  # bool: whether log-probabilities are asked for
    masked: Any  # bool: whether the mask says anything
    mask_RW: Array  # int32, a bit for each token that may be drawn


class Drawn(NamedTuple):
    """Tokens, and what is told of them; nothing is, and zeros stand there, where nobody asks."""

    token: jax.Array  # int32 [R], or [K, R]
    likely: Likely


class Read(NamedTuple):
    """What a piece of a prompt gives: the token after it, and of its own tokens what was asked for."""

    drawn: Drawn  # [1]
    prompt: Likely  # of the tokens that follow each of the piece, [T]
    hidden_D: jax.Array
    """The sum of the last hidden states, float32."""


def _hidden(
    params: Decoder,
    tokens_RT: jax.Array,
    slot_R: jax.Array | None,
    first_R: jax.Array,
    cache: Cache,
    setting: Setting,
    span: int,
) -> tuple[jax.Array, Cache]:
    """Runs T more tokens of some slots (None: of all, in their order), of which fewer than `span` are there already.

    Returns:
        hidden_RTD after the final norm, and the longer cache.
    """
    architecture, execution, rope_base = setting
    x_RTD = embed(params, tokens_RT, jnp.dtype(execution.compute_dtype))
    positions_RT = first_R[:, None] + jnp.arange(tokens_RT.shape[1])
    attend, state = over_cache(cache, slot_R, first_R, span, execution)
    hidden_RTD, (keys, values) = run_layers(
        params, x_RTD, positions_RT, attend, state, architecture, execution, rope_base
    )
    sequence_R = jnp.arange(len(first_R)) if slot_R is None else slot_R
    put = lambda old, new: write(old, new, sequence_R, first_R)
    return hidden_RTD, Cache(put(cache.keys, keys), put(cache.values, values))


def _logits(params: Decoder, hidden: jax.Array) -> jax.Array:
    """float32 [..., V], whole on every device."""
    rows_RD, table_VD = hidden.reshape(-1, hidden.shape[-1]), params.embedding.astype(hidden.dtype)
    logits_RV = rules.project("rd,vd->rv", rows_RD, table_VD, (None, "vocab"), jnp.float32)
    return rules.place(logits_RV, (None, None)).reshape(*hidden.shape[:-1], -1)


def _draw(logits_RV: jax.Array, position_R: jax.Array, wanted: Wanted) -> Drawn:
    """The tokens for some positions. What is told of them is the model's own opinion, before choices and masks."""
    V = logits_RV.shape[-1]
    words, bits = jnp.arange(V) // 32, jnp.arange(V) % 32
    forbid = lambda: jnp.where((jnp.asarray(wanted.mask_RW)[:, words] >> bits) & 1, logits_RV, -jnp.inf)
    token_R = sample(jax.lax.cond(wanted.masked, forbid, lambda: logits_RV), position_R, wanted.choices)
    return Drawn(token_R, _told(logits_RV, token_R, wanted.tell))


def _told(logits_RV: jax.Array, token_R: jax.Array, tell: Any) -> Likely:
    find = lambda: likely(logits_RV, token_R, MOST_LIKELY)
    nothing = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(find))
    return jax.lax.cond(tell, find, nothing)


def _choosing(params: Decoder, adapter_R: Array) -> Decoder:
    """The decoder whose sequences have these adapters, if it has a bank of them."""

    def one(weight: Any) -> Any:
        if not isinstance(weight, Adapted) or weight.choice is None:
            return weight
        shape = adapter_R.shape if weight.scale.ndim == 1 else (weight.scale.shape[0], *adapter_R.shape)
        return dataclasses.replace(weight, choice=jnp.broadcast_to(adapter_R, shape))

    return jax.tree.map(one, params, is_leaf=lambda leaf: isinstance(leaf, Adapted))


@partial(jax.jit, static_argnames=("setting", "span", "steps"), donate_argnames="cache")
def decode(
    params: Decoder,
    cache: Cache,
    token_BT: jax.Array,
    position_B: jax.Array,
    wanted: Wanted,
    *,
    setting: Setting,
    span: int,
    steps: int,
) -> tuple[Drawn, Cache]:
    """The next `steps` tokens of every slot, or the ones after each of T; a slot whose position is S or beyond is left
    as it is.

    Args:
        token_BT: the last token of each, which is not in the cache yet, and guesses after it, for one step.
        position_B: the place of the first of them.
        span: columns that are looked at: every position is below `span - steps + 1`.

    Returns:
        Drawn of [steps, B] or [T, B], and the longer cache.
    """
    params = _choosing(params, wanted.adapter_R)
    B, T = token_BT.shape
    if T > 1:
        assert steps == 1, "guesses are for one step"
        hidden_BTD, cache = _hidden(params, token_BT, None, position_B, cache, setting, span)
        each = jax.tree.map(lambda x: jnp.repeat(x, T, axis=0), wanted.choices)
        place_R = (position_B[:, None] + 1 + jnp.arange(T)).reshape(-1)
        many = dataclasses.replace(wanted, choices=each, masked=False, mask_RW=jnp.repeat(wanted.mask_RW, T, axis=0))
        drawn = _draw(_logits(params, hidden_BTD).reshape(B * T, -1), place_R, many)
        return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(B, T, *x.shape[1:]), 1, 0), drawn), cache

    def step(carry: tuple[jax.Array, jax.Array, Cache], _: None) -> tuple[Any, Drawn]:
        token_B, position_B, cache = carry
        hidden_B1D, cache = _hidden(params, token_B[:, None], None, position_B, cache, setting, span)
        drawn = _draw(_logits(params, hidden_B1D[:, 0]), position_B + 1, wanted)
        return (drawn.token, position_B + 1, cache), drawn

    (_, _, cache), drawn = jax.lax.scan(step, (token_BT[:, 0], position_B, cache), None, length=steps)
    return drawn, cache


@partial(jax.jit, static_argnames=("setting", "span", "every"), donate_argnames="cache")
def read(
    params: Decoder,
    cache: Cache,
    token_T: jax.Array,
    follows_T: jax.Array,
    place: jax.Array,
    wanted: Wanted,
    *,
    setting: Setting,
    span: int,
    every: bool,
) -> tuple[Read, Cache]:
    """A piece of a prompt into one slot.

    Args:
        token_T: filled up at its end.
        follows_T: with `every`, the token that follows each of them in the prompt.
        place: int32 [3]: the slot, the position of the first token, how many tokens there are.
        span: columns that are looked at: the position is below it, or it.
    """
    slot, first, count = place
    params = _choosing(params, wanted.adapter_R)
    hidden_1TD, cache = _hidden(params, token_T[None], slot[None], first[None], cache, setting, span)
    hidden_TD = hidden_1TD[0]
    last_1D = jax.lax.dynamic_slice_in_dim(hidden_TD, count - 1, 1)
    drawn = _draw(_logits(params, last_1D), (first + count)[None], wanted)
    prompt = _told(_logits(params, hidden_TD if every else hidden_TD[:1]), follows_T if every else follows_T[:1], every)
    real_T1 = (jnp.arange(len(token_T)) < count)[:, None]
    return Read(drawn, prompt, jnp.sum(jnp.where(real_T1, hidden_TD.astype(jnp.float32), 0), axis=0)), cache


@partial(jax.jit, donate_argnames="cache")
def copy(cache: Cache, source: jax.Array, target: jax.Array) -> Cache:
    """All columns of a slot into another."""
    axis = 0 if isinstance(cache.keys, list) else 1

    def one(x: jax.Array) -> jax.Array:
        row = jax.lax.dynamic_slice_in_dim(x, source, 1, axis)
        return jax.lax.dynamic_update_slice_in_dim(x, row, target, axis)

    return jax.tree.map(one, cache)


def ready(params: Decoder, architecture: Architecture, execution: Execution) -> Decoder:
    """Parameters as a step reads them: matrices in the compute dtype (out of a stack of heads, TPUs would copy every
    layer's once a step), and layer by layer where layers are unrolled. What is in few bits stays so."""
    dtype = jnp.dtype(execution.compute_dtype)

    def one(spec: Spec, weight: Any) -> Any:
        if isinstance(weight, Adapted):
            return dataclasses.replace(
                weight, base=one(spec, weight.base), a=weight.a.astype(dtype), b=weight.b.astype(dtype)
            )
        if spec.role == "norm" or isinstance(weight, Palettized):
            return weight
        return weight.astype(dtype).reshape(merged(spec).shape)

    params = map_specs(one, parameter_specs(architecture), params)
    if execution.layers == "scanned":
        return params
    layers: Any = [jax.tree.map(lambda x, i=i: x[i], params.layers) for i in range(architecture.num_layers)]
    return dataclasses.replace(params, layers=layers)


def buckets(smallest: int, largest: int) -> tuple[int, ...]:
    """Sizes by fours up to the largest."""
    sizes = []
    while smallest < largest:
        sizes.append(smallest)
        smallest *= 4
    return (*sizes, largest)


class Slots:
    """Parameters and a cache for some sequences at a time. The caller knows what is in which slot."""

    def __init__(
        self,
        params: Decoder,
        setting: Setting,
        slots: int,
        context: int,
        cache_dtype: Any = None,
        chunk: int = 256,
        mesh: Mesh | None = None,
    ) -> None:
        """
        Args:
            cache_dtype: of keys and values, int8 among others; the compute dtype by default.
            chunk: tokens that one `read` takes at most.
            mesh: the devices that the parameters lie on, where they are several.

        Raises:
            UserError: the heads of keys and values do not divide over the mesh.
        """
        self.setting, self.slots, self.context, self.mesh = setting, slots, context, mesh
        if mesh is not None:
            heads, parts = setting.architecture.num_kv_heads, shards("kv_heads", mesh.shape)
            if heads % parts:
                raise UserError(
                    f"{heads} key-value heads do not divide over {parts} devices.",
                    "each device keeps the keys and values of its own heads.",
                    f"--tensor-parallel {math.gcd(heads, parts)}",
                )
        with self._here():
            self.params = ready(params, setting.architecture, setting.execution)
        dtype = jnp.dtype(cache_dtype or setting.execution.compute_dtype)
        # Where the parameters are, like what every program gives back: from elsewhere it would be compiled once more.
        own = params.final_norm.sharding
        where = (lambda axes: rules.sharding(mesh, axes)) if mesh is not None else (lambda axes: own)
        self.cache = empty_cache(setting.architecture, slots, context, dtype, setting.execution.layers, where)
        self.chunks, self.spans = buckets(SMALLEST_CHUNK, min(chunk, context)), buckets(SMALLEST_SPAN, context)
        self._words = -(-setting.architecture.vocab_size // 32)
        self._open = {rows: jnp.zeros((rows, self._words), jnp.int32) for rows in (1, slots)}

    def _here(self) -> Any:
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    @property
    def nbytes(self) -> int:
        """Bytes of parameters and cache."""
        return sum(x.nbytes for x in jax.tree.leaves((self.params, self.cache)))

    def wanted(
        self, chosen: Choices, adapters: Sequence[int], tell: bool = False, masks: np.ndarray | None = None
    ) -> Wanted:
        """What some sequences want; `masks` is int32 [R, W], or None where every token may be drawn."""
        open_RW = self._open[len(adapters)] if masks is None else masks
        return Wanted(chosen, np.array(adapters, np.int32), np.bool_(tell), np.bool_(masks is not None), open_RW)

    def read(
        self, slot: int, position: int, tokens: Sequence[int], wanted: Wanted, follows: Sequence[int] | None = None
    ) -> Read:
        """At most `chunk` tokens of a prompt into a slot, after the `position` tokens that are there.

        Args:
            follows: where their log-probabilities are asked for, the tokens that follow each of these in the prompt.
        """
        every, count = follows is not None, len(tokens)
        size = self.chunks[-1] if every else next(size for size in self.chunks if size >= count)
        padded = lambda ids: np.pad(np.array(ids, np.int32), (0, size - len(ids)))
        span = self.spans[-1] if every else next(span for span in self.spans if span >= position)
        with self._here():
            found, self.cache = read(
                self.params,
                self.cache,
                padded(tokens),
                padded(follows or ()),
                np.array([slot, position, count], np.int32),
                wanted,
                setting=self.setting,
                span=span,
                every=every,
            )
        return found

    def decode(self, tokens: Sequence[Sequence[int]], positions: Sequence[int], wanted: Wanted, steps: int) -> Drawn:
        """The next tokens of all slots, [steps, B], or [T, B] where each has T tokens: its last, and guesses after it.
        A slot at position `context` is left as it is."""
        here = [position for position in positions if position < self.context]
        span = next((span for span in self.spans if span >= max(here) + steps), self.spans[-1])
        with self._here():
            drawn, self.cache = decode(
                self.params,
                self.cache,
                np.array(tokens, np.int32),
                np.array(positions, np.int32),
                wanted,
                setting=self.setting,
                span=span,
                steps=steps,
            )
        return drawn

    def copy(self, source: int, target: int) -> None:
        """All that a slot holds into another."""
        with self._here():
            self.cache = copy(self.cache, np.int32(source), np.int32(target))
