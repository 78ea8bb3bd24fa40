"""Slots whose attention is the kernel of TPUs, interpreted: what they say is what two products give."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pomona.infer.sample import choices
from pomona.infer.slots import Setting, Slots
from pomona.model.config import Architecture, Execution, resolve
from pomona.model.decoder import parameter_specs
from pomona.model.sampling import Sampling
from pomona.model.spec import initialize
from pomona.ops import attention_cached
from pomona.parallel import rules
from pomona.parallel.mesh import tensor_mesh

ARCHITECTURE = Architecture(96, 32, 2, 4, 2, 16, 48)
PROMPTS = [list(range(1, 30)), [1, 70], [1, 95, 95, 4, 8]]


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    called = []

    def attend(*given):
        called.append(given)
        return whole(*given, interpret=True)

    whole = attention_cached.attend
    monkeypatch.setattr(attention_cached, "attend", attend)
    monkeypatch.setattr(attention_cached, "COLUMNS_OF_FEW_ROWS", 16)
    return called


def said(attention, layers, cache_dtype=None, mesh=None):
    """The tokens after three prompts, read in pieces, of two dispatches of four steps, and their probabilities."""
    execution = dataclasses.replace(
        resolve(Execution(layers=layers), "cpu", mesh.size if mesh else 1), attention=attention
    )
    params = jax.tree.map(lambda x: x * 1.5, initialize(parameter_specs(ARCHITECTURE), jax.random.key(3)))
    if mesh is not None:
        place = lambda spec, x: jax.device_put(x, rules.sharding(mesh, spec.axes))
        params = jax.tree.map(place, parameter_specs(ARCHITECTURE), params, is_leaf=lambda x: hasattr(x, "axes"))
    setting = Setting(ARCHITECTURE, execution, 1e4)
    slots = Slots(params, setting, 4, 48, None if cache_dtype is None else jnp.dtype(cache_dtype), chunk=16, mesh=mesh)
    one, all_of_them = (slots.wanted(choices([Sampling(0)] * n, range(n)), [-1] * n, tell=True) for n in (1, 4))
    tokens = [[0]] * 4
    for slot, prompt in enumerate(PROMPTS):
        for first in range(0, len(prompt), 16):
            read = slots.read(slot, first, prompt[first : first + 16], one)
        tokens[slot] = [int(read.drawn.token[0])]
    told, places = [np.array(tokens)[:3].T], [*map(len, PROMPTS), 48]
    chances = []
    for steps in (4, 4):
        drawn = slots.decode(tokens, places, all_of_them, steps)
        told.append(np.asarray(drawn.token)[:, :3])
        chances.append(np.asarray(drawn.likely.own_B)[:, :3])
        tokens, places = np.asarray(drawn.token)[-1][:, None].tolist(), [place + steps for place in places[:3]] + [48]
    return np.concatenate(told), np.concatenate(chances)


def check(found, expected):
    assert np.array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], atol=1e-4)


def test_the_kernel_says_what_products_say(interpreted):
    found = said("splash", "unrolled")
    calls = len(interpreted)
    assert calls
    check(found, said("reference", "unrolled"))
    assert len(interpreted) == calls


def test_on_several_devices_each_has_its_own_heads_and_integers(interpreted):
    found = said("splash", "scanned", "int8", tensor_mesh(2))
    assert {given[1].keys.shape[2] for given in interpreted} == {1}, "one of two key-value heads"
    assert {given[1].keys.dtype for given in interpreted} == {jnp.dtype("int8")}
    check(found, said("reference", "scanned", "int8"))
