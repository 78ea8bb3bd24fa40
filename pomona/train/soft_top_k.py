"""Pruning as an objective: masks over the hidden units of the feed-forward blocks, learned by the one loop.

A unit's mask scales its row of `down`, which is the same as scaling the unit: a tree map over the ordinary decoder.
Every layer keeps the same number of units, for layers are stacked and scanned, so the pruned model is dense.

Shapes: L layers, D model, F feed-forward.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from pomona.model.config import Execution
from pomona.model.decoder import Decoder, FeedForward, parameter_specs
from pomona.model.objective import LossSums, TokenBatch, next_token_loss
from pomona.model.spec import Spec, abstract
from pomona.ops.soft_top_k import ranks, soft_top_k
from pomona.parallel import rules
from pomona.train.config import Run
from pomona.train.objective import Objective, nothing
from pomona.train.objective_config import SoftTopK
from pomona.train.origin import begin_at
from pomona.train.unit_scores import scores_of


def learned_masks(run: Run) -> Objective:
    """The objective of a run that learns masks.

    The trained tree is {"scores": [L, F]}, in units of `score_rate`, and {"weights": Decoder} where the weights are
    trained along; otherwise these are the frozen tree.
    """
    config, specs = run.objective, parameter_specs(run.architecture)
    assert isinstance(config, SoftTopK) and run.origin is not None, "check_run has seen it"
    parent = begin_at(run.origin, specs)

    def begin(mesh: Mesh) -> dict[str, Any]:
        weights = parent(mesh)
        begun = {"scores": scores_of(run, weights, mesh) / config.score_rate}
        return begun | ({"weights": weights} if config.train_weights else {})

    def model(trained: dict[str, Any], frozen: Any, done: jax.Array) -> Decoder:
        weights = trained["weights"] if config.train_weights else frozen
        return masked(weights, mask_at(config, trained["scores"] * config.score_rate, done))

    def loss(
        trained: dict[str, Any], frozen: Any, batch: TokenBatch, done: jax.Array, execution: Execution, rope_base: float
    ) -> LossSums:
        return next_token_loss(model(trained, frozen, done), batch, run.architecture, execution, rope_base)

    scores = Spec((run.architecture.num_layers, run.architecture.ffn_dim), ("layers", None), "score")
    return Objective(
        trained={"scores": scores} | ({"weights": specs} if config.train_weights else {}),
        frozen=None if config.train_weights else abstract(specs),
        load_frozen=nothing if config.train_weights else parent,
        begin=begin,
        model=model,
        loss=loss,
    )


def budget_at(config: SoftTopK, ffn_dim: int, done: Any) -> Any:
    """Units kept per layer, not necessarily whole, when a share `done` of the stage's updates is done."""
    return ffn_dim + (config.ffn - ffn_dim) * jnp.clip(done / config.narrow_until, 0.0, 1.0)


def temperature_at(config: SoftTopK, done: Any) -> Any:
    """The masks' temperature, which falls by equal factors after the budget has fallen."""
    span = max(config.cool_until - config.narrow_until, 1e-6)
    return config.hot * (config.cold / config.hot) ** jnp.clip((done - config.narrow_until) / span, 0.0, 1.0)


def mask_at(config: SoftTopK, scores_LF: jax.Array, done: Any) -> jax.Array:
    """The masks, float32 [L, F], when a share `done` of the updates is done; hard from `cool_until` on."""
    budget = budget_at(config, scores_LF.shape[-1], done)
    soft_LF = soft_top_k(scores_LF, budget, temperature_at(config, done))
    return jnp.where(done < config.cool_until, soft_LF, hard_mask(scores_LF, config.ffn))


def hard_mask(scores_LF: jax.Array, ffn: int) -> jax.Array:
    """One for the `ffn` units of each layer with the highest scores, zero for the others; float32 [L, F]."""
    return (ranks(jax.lax.stop_gradient(scores_LF)) < ffn).astype(jnp.float32)


def masked(params: Decoder, mask_LF: jax.Array) -> Decoder:
    """The decoder whose feed-forward units are scaled by the mask."""
    ffn = params.layers.ffn
    scaled = dataclasses.replace(ffn, down=ffn.down * rules.place(mask_LF, ("layers", "ffn"))[..., None])
    return dataclasses.replace(params, layers=dataclasses.replace(params.layers, ffn=scaled))


def narrowed(params: Decoder, mask_LF: jax.Array, ffn: int) -> Decoder:
    """The dense decoder of the `ffn` units that a hard mask keeps in each layer, in their old order."""
    kept_LK = jnp.argsort(mask_LF < 0.5, axis=-1, stable=True)[:, :ffn]

    def take(weight: jax.Array, axes: tuple[str, ...]) -> jax.Array:
        at = axes.index("ffn")
        whole = [None if axis == "ffn" else axis for axis in axes]  # a kept unit may come from any device
        choose = lambda weight, kept: jnp.take_along_axis(weight, jnp.expand_dims(kept, 3 - at), axis=at)
        chosen = rules.on_shards(choose, [whole, ("layers", None)], whole)(rules.place(weight, whole), kept_LK)
        return rules.place(chosen, axes)

    narrow = FeedForward(
        gate=take(params.layers.ffn.gate, ("layers", "model", "ffn")),
        up=take(params.layers.ffn.up, ("layers", "model", "ffn")),
        down=take(params.layers.ffn.down, ("layers", "ffn", "model")),
    )
    return dataclasses.replace(params, layers=dataclasses.replace(params.layers, ffn=narrow))
