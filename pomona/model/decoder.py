"""The decoder of the AFM report, section 3.1: one definition for training, generation, export and planning.

Pre-norm RMSNorm, grouped-query attention with an RMSNorm on every query and key head before rotary positions,
SwiGLU, tied embedding, no biases. Shapes: B batch, T tokens, D model, N query heads, K key-value heads, H head,
F feed-forward, V vocabulary, L layers.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from pomona.model.config import KEPT, Architecture, Execution
from pomona.model.projection import meet, prepare, project
from pomona.model.spec import Spec, map_specs
from pomona.ops.norm import rms_norm
from pomona.ops.rope import norm_rope, rotation
from pomona.ops.swiglu import swiglu
from pomona.parallel import rules

P = TypeVar("P")
"""The kind of leaf: Spec, jax.Array, jax.ShapeDtypeStruct, NamedSharding, ... The seven linear weights of a layer may
also be `ops.palette.Palettized` or `ops.low_rank.Adapted`, whose leaves are stacked over layers as arrays are."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Attention(Generic[P]):
    """Weights of one attention block; the first dimension of each is the layer."""

    query: P  # L D N H
    key: P  # L D K H
    value: P  # L D K H
    output: P  # L N H D
    query_norm: P  # L H
    key_norm: P  # L H


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FeedForward(Generic[P]):
    """Weights of one SwiGLU block."""

    gate: P  # L D F
    up: P  # L D F
    down: P  # L F D


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Layer(Generic[P]):
    """Weights of one decoder layer, stacked over layers."""

    attention_norm: P  # L D
    attention: Attention[P]
    ffn_norm: P  # L D
    ffn: FeedForward[P]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Decoder(Generic[P]):
    """All weights. `embedding` is both the input table and the output layer."""

    embedding: P  # V D
    layers: Layer[P]
    final_norm: P  # D


Attend = Callable[[jax.Array, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]
"""(q_BTNH, k_BTKH, v_BTKH, this layer's state) -> (out_BTNH, this layer's new state)."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What the linear weights of a layer multiply, in the compute dtype."""

    attention: jax.Array  # B T D, by query, key and value
    output: jax.Array  # B T NH
    ffn: jax.Array  # B T D, by gate and up
    units: jax.Array  # B T F, by down

    def of(self, projection: str) -> jax.Array:
        """What one of `PROJECTIONS` multiplies."""
        own = {"attention.output": self.output, "ffn.down": self.units}
        return own.get(projection, self.attention if projection.startswith("attention.") else self.ffn)


Observe = Callable[[Inputs], Any]
"""What the linear weights of a layer multiply -> what is wanted of it."""


def parameter_specs(architecture: Architecture) -> Decoder[Spec]:
    """The parameters of a decoder as `Spec`s: nothing is allocated."""
    a, L = architecture, architecture.num_layers
    D, N, K, H, F = a.model_dim, a.num_heads, a.num_kv_heads, a.head_dim, a.ffn_dim

    def linear(axes: tuple[str, ...], *shape: int, fan: int) -> Spec:
        return Spec((L, *shape), ("layers", *axes), "linear", fan)

    def norm(width: int) -> Spec:
        return Spec((L, width), ("layers", "norm"), "norm")

    return Decoder(
        embedding=Spec((a.vocab_size, D), ("vocab", "model"), "embedding", fan=D),
        layers=Layer(
            attention_norm=norm(D),
            attention=Attention(
                query=linear(("model", "heads", "head_dim"), D, N, H, fan=D),
                key=linear(("model", "kv_heads", "head_dim"), D, K, H, fan=D),
                value=linear(("model", "kv_heads", "head_dim"), D, K, H, fan=D),
                output=linear(("heads", "head_dim", "model"), N, H, D, fan=N * H),
                query_norm=norm(H),
                key_norm=norm(H),
            ),
            ffn_norm=norm(D),
            ffn=FeedForward(
                gate=linear(("model", "ffn"), D, F, fan=D),
                up=linear(("model", "ffn"), D, F, fan=D),
                down=linear(("ffn", "model"), F, D, fan=F),
            ),
        ),
        final_norm=Spec((D,), ("norm",), "norm"),
    )


def embed(params: Decoder, tokens_BT: jax.Array, dtype: Any) -> jax.Array:
    """The input vectors of tokens, x_BTD; every device looks up its own part of the vocabulary."""

    def look_up(tokens_BT: jax.Array, shard_VD: jax.Array) -> jax.Array:
        table_VD = rules.whole(shard_VD, ("vocab", "model"), dtype)
        local_BT = tokens_BT - rules.shard_index("vocab") * table_VD.shape[0]
        mine_BT1 = ((local_BT >= 0) & (local_BT < table_VD.shape[0]))[..., None]
        found_BTD = table_VD.at[local_BT].get(mode="clip")
        return rules.sum_over(jnp.where(mine_BT1, found_BTD, 0), "vocab")

    specs = [("batch", "tokens"), ("vocab", "model")]
    return rules.on_shards(look_up, specs, ("batch", "tokens", None))(tokens_BT, params.embedding)


def run_layers(
    params: Decoder,
    x_BTD: jax.Array,
    positions_BT: jax.Array,
    attend: Attend,
    state: Any,
    architecture: Architecture,
    execution: Execution,
    rope_base: float,
    observe: Observe | None = None,
) -> tuple[jax.Array, Any]:
    """All layers and the final norm. `state` (a tree stacked over layers, or None) is handed to `attend` by layer.

    Where layers are unrolled, `params.layers` and `state` may also be lists of one tree per layer: then nothing is cut
    out of anything larger.

    Args:
        observe: what is wanted of every layer's inputs; it takes the place of the new state.

    Returns:
        hidden_BTD after the final norm, and the new state.
    """
    body: Callable[..., tuple[jax.Array, Any]] = partial(
        layer,
        attend=attend,
        rotary=rotation(positions_BT, architecture.head_dim, rope_base),
        architecture=architecture,
        execution=execution,
        observe=observe,
    )
    if execution.remat != "none":
        body = jax.checkpoint(body, policy=jax.checkpoint_policies.save_only_these_names(*KEPT[execution.remat]))
    if execution.layers == "scanned":
        x_BTD, state = jax.lax.scan(lambda x, xs: body(x, *xs), x_BTD, (params.layers, state))
    else:
        states = []
        for weights, layer_state in zip(_unstack(params.layers), _unstack(state, architecture.num_layers)):
            x_BTD, layer_state = body(x_BTD, weights, layer_state)
            states.append(layer_state)
        state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    return rms_norm(x_BTD, params.final_norm, architecture.norm_epsilon), state


def layer(
    x_BTD: jax.Array,
    weights: Layer,
    state: Any,
    *,
    attend: Attend,
    rotary: tuple[jax.Array, jax.Array],
    architecture: Architecture,
    execution: Execution,
    observe: Observe | None = None,
) -> tuple[jax.Array, Any]:
    """One decoder layer: x + attention(norm(x)), then x + ffn(norm(x)). `weights` have no layer dimension."""
    w = map_specs(partial(prepare, x_BTD.dtype), parameter_specs(architecture).layers, weights)
    epsilon = architecture.norm_epsilon
    linear = partial(project, execution)
    split = lambda y_BTM: y_BTM.reshape(*y_BTM.shape[:2], -1, architecture.head_dim)

    turn = partial(_turn, execution, rotary, epsilon)
    h_BTD = rms_norm(x_BTD, w.attention_norm, epsilon)
    query, key, value = meet(h_BTD, (w.attention.query, w.attention.key, w.attention.value))
    q_BTNH = split(checkpoint_name(linear(h_BTD, query, "heads"), "query"))
    k_BTKH = split(checkpoint_name(linear(h_BTD, key, "kv_heads"), "key"))
    v_BTKH = split(checkpoint_name(linear(h_BTD, value, "kv_heads"), "value"))
    q_BTNH, k_BTKH = turn("heads", q_BTNH, w.attention.query_norm), turn("kv_heads", k_BTKH, w.attention.key_norm)
    out_BTNH, state = attend(q_BTNH, k_BTKH, v_BTKH, state)
    out_BTM = out_BTNH.reshape(*out_BTNH.shape[:2], -1)
    x_BTD = checkpoint_name(x_BTD + linear(out_BTM, w.attention.output, None), "middle")

    middle_BTD = rms_norm(x_BTD, w.ffn_norm, epsilon)
    gate, up = meet(middle_BTD, (w.ffn.gate, w.ffn.up))
    gate_BTF = checkpoint_name(linear(middle_BTD, gate, "ffn"), "gate")
    up_BTF = checkpoint_name(linear(middle_BTD, up, "ffn"), "up")
    units_BTF = swiglu(gate_BTF, up_BTF)
    x_BTD = x_BTD + linear(units_BTF, w.ffn.down, None)
    return x_BTD, observe(Inputs(h_BTD, out_BTM, middle_BTD, units_BTF)) if observe else state


def _turn(
    execution: Execution,
    rotary: tuple[jax.Array, jax.Array],
    epsilon: float,
    heads: str,
    x_BTNH: jax.Array,
    weight_H: jax.Array,
) -> jax.Array:
    """Heads normalised and turned by their positions; `heads` is the logical axis they are sharded along."""
    way = execution.rotation
    assert way != "auto", "resolve() the execution first"
    axes, table = ("batch", "tokens", heads, "head_dim"), ("batch", "tokens", None)
    local = lambda x, weight, cos, sin: norm_rope(x, weight, (cos, sin), epsilon, way)
    turn = rules.on_shards(local, [axes, ("norm",), table, table], axes) if way == "kernel" else local
    return turn(x_BTNH, weight_H, *rotary)


def _unstack(stacked: Any, count: int | None = None) -> list[Any]:
    """One tree per layer; a list is already that. `split` rather than indexing: its transpose is one concatenation, not
    L padded sums."""
    if isinstance(stacked, list):
        return stacked
    leaves, structure = jax.tree.flatten(stacked)
    if not leaves:
        return [stacked] * (count or 0)
    columns = [[p.squeeze(0) for p in jax.lax.split(x, (1,) * x.shape[0], axis=0)] for x in leaves]
    return [jax.tree.unflatten(structure, list(parts)) for parts in zip(*columns)]
