"""What a remat policy keeps and computes again, `model.count.REMAT`, beside what JAX's autodiff really does.

Shapes: B batch, T tokens.
"""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import jaxprs_in_params

from pomona.core.chips import CHIPS
from pomona.core.fleet import parse_fleet
from pomona.model import spec
from pomona.model.config import KEPT, Execution
from pomona.model.count import REMAT, activation_bytes, product_flops
from pomona.model.decoder import layer, parameter_specs
from pomona.model.presets import AFM_DEVICE
from pomona.ops.rope import rotation
from pomona.parallel.config import MeshConfig
from pomona.plan.roofline import compute_seconds
from pomona.plan.work import lay_out
from pomona.recipes.registry import RECIPES

B, T = 2, 32


@jax.custom_vjp
def fused_attention(q, k, v):
    return forward(q, k, v)[0]


def forward(q, k, v):
    """What splash keeps: its inputs, and its output and log-normalisers by their name. The cosine is to be counted."""
    out = checkpoint_name(jnp.cos(q) + k.mean() + v.mean(), "attention")
    return out, (q, k, v, out, checkpoint_name(jnp.zeros(q.shape[:3]), "attention"))


fused_attention.defvjp(forward, lambda saved, d_out: (d_out * saved[0] * saved[3] * saved[4][..., None], *saved[1:3]))


def one_layer(policy, way):
    """(function of the layer's input, weights and rotary tables, as `run_layers` wraps it; its abstract arguments)."""
    execution = Execution("bfloat16", layers="scanned", weight_gradients="plain", remat=policy, rotation=way)
    specs = parameter_specs(AFM_DEVICE).layers
    weights = spec.map_specs(lambda s: jax.ShapeDtypeStruct(s.shape[1:], jnp.float32), specs)
    x = jax.ShapeDtypeStruct((B, T, AFM_DEVICE.model_dim), jnp.bfloat16)
    rotary = jax.eval_shape(lambda: rotation(jnp.zeros((B, T), jnp.int32), AFM_DEVICE.head_dim, 5e5))

    def function(x, weights, rotary):
        attend = lambda q, k, v, state: (fused_attention(q, k, v), state)
        body = partial(layer, attend=attend, architecture=AFM_DEVICE, execution=execution)
        call = lambda x, w, rotary: body(x, w, None, rotary=rotary)[0]
        if policy != "none":
            call = jax.checkpoint(call, policy=jax.checkpoint_policies.save_only_these_names(*KEPT[policy]))
        return call(x, weights, rotary)

    return function, (x, weights, rotary)


@pytest.mark.parametrize("way", ["split", "kernel"])
@pytest.mark.parametrize("policy", REMAT)
def test_what_a_policy_keeps_is_what_autodiff_keeps(policy, way):
    function, arguments = one_layer(policy, way)
    kept = jax.eval_shape(lambda x, w, r: jax.vjp(lambda x, w: function(x, w, r), x, w)[1], *arguments)
    # What has a head's width but no heads are rotary tables: once for all layers, or a hundredth of what `none` keeps.
    tables = {(*one, width) for width in (64, 128) for one in ((), (1,))}
    of_tokens = [leaf for leaf in jax.tree.leaves(kept) if leaf.shape[:2] == (B, T) and leaf.shape[2:] not in tables]
    real = sum(leaf.size * leaf.dtype.itemsize for leaf in of_tokens) / (B * T)
    chip = {"kernel": "v5p-8", "split": "h100-8"}[way]  # as `auto` decides
    run = dataclasses.replace(RECIPES["afm_device"](), mesh=MeshConfig(), execution=Execution(remat=policy))
    counted = lay_out(run, run.stages[0], parse_fleet(chip)).kept
    assert activation_bytes(AFM_DEVICE, counted) == pytest.approx(real, rel=0.01)


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


@pytest.mark.parametrize("policy", REMAT)
def test_what_a_policy_computes_again_is_what_autodiff_computes_again(policy):
    function, arguments = one_layer(policy, "split")

    def gradient(dy, x, weights, rotary):
        return jax.vjp(lambda x, w: function(x, w, rotary), x, weights)[1](dy)

    program = list(equations(jax.make_jaxpr(gradient)(arguments[0], *arguments).jaxpr))
    kernels = sum(equation.primitive.name == "cos" for equation in program)
    assert kernels == 1 + ("attention" in REMAT[policy].again)
    products = product_flops(AFM_DEVICE, T)
    del products["attention"]
    again = sum(products.get(name, 0) for name in REMAT[policy].again)
    flops = sum(flops_of(equation) for equation in program if equation.primitive.name == "dot_general")
    assert flops / (B * T) == 3 * sum(products.values()) + again


def flops_of(product):
    left, out = product.invars[0].aval, product.outvars[0].aval
    (contracted, _), _ = product.params["dimension_numbers"]
    return 2 * out.size * math.prod(left.shape[i] for i in contracted)


def test_a_gpu_computes_attention_again_with_every_policy_that_keeps_by_name():
    """tests/ops/test_attention_paths.py sees it in the program."""
    run, stage = RECIPES["afm_device"](), RECIPES["afm_device"]().stages[0]

    def seconds(chips, policy):
        changed = dataclasses.replace(run, mesh=MeshConfig(), execution=Execution(remat=policy))
        return compute_seconds(lay_out(changed, stage, parse_fleet(chips)))

    tpu, gpu = ({p: seconds(chips, p) for p in REMAT} for chips in ("v5p-256", "h100-128"))
    kernel = product_flops(AFM_DEVICE, stage.sequence_length)["attention"]
    more = AFM_DEVICE.num_layers * kernel * stage.batch_tokens / 128 / CHIPS["h100"].flops_per_second
    ratio = CHIPS["v5p"].flops_per_second / CHIPS["h100"].flops_per_second
    assert {p: gpu[p] - ratio * tpu[p] for p in REMAT} == pytest.approx(
        {p: 0 if p in ("none", "full") else more for p in REMAT}, abs=1e-9
    )
