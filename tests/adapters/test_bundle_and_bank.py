"""Bundles: out and in bit for bit, refused on another base, every damage one sentence. Banks: each sequence its own."""

import json

import jax
import numpy as np
import pytest

from pomona.adapters.bank import NONE, attached, empty_bank, load
from pomona.adapters.bundle import Bundle, read_bundle, weight_shapes, write_bundle
from pomona.core.errors import UserError
from pomona.infer.generate import generate
from pomona.infer.slots import decode, read
from pomona.model.adapter import adapter_specs, attach, densify, from_named, named
from pomona.model.config import Architecture, Execution, resolve
from pomona.model.decoder import parameter_specs
from pomona.model.sampling import Sampling
from pomona.model.spec import initialize

SMALL = Architecture(97, 32, 2, 4, 2, 16, 48)
EXECUTION = resolve(Execution(), "cpu")
BASE = "0123456789abcdef"


def bundle(seed, rank=4, alpha=8.0, base=BASE):
    rng = np.random.default_rng(seed)
    weights = {name: (rng.normal(size=shape) * 0.3).astype(np.float32) for name, shape in shapes(rank).items()}
    return Bundle(f"task {seed}", weights, rank, alpha, base, {"bits_per_byte": 1.5})


def shapes(rank):
    return {name: spec.shape for name, spec in named(adapter_specs(SMALL, rank)).items()}


def test_the_shapes_are_those_of_the_tree():
    assert weight_shapes(SMALL, 4) == shapes(4)


def same(a, b):
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


@pytest.fixture(scope="module")
def params():
    return initialize(parameter_specs(SMALL), jax.random.key(3))


def test_out_and_in_again_is_bit_for_bit(tmp_path):
    one = bundle(1)
    write_bundle(tmp_path / "a", one)
    back = read_bundle(tmp_path / "a", BASE, SMALL)
    assert same(back.weights, one.weights)
    fields = ("name", "rank", "alpha", "base", "metric", "scale")
    assert [getattr(back, f) for f in fields] == [getattr(one, f) for f in fields] and back.scale == 2.0
    about = json.loads((tmp_path / "a" / "adapter.json").read_text())
    assert about["projections"] == ["query", "key", "value", "output", "gate", "up", "down"]
    write_bundle(tmp_path / "half", one, "bfloat16")
    halved = read_bundle(tmp_path / "half", BASE, SMALL).weights
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2**-8), halved, one.weights)
    sizes = [(tmp_path / name / "adapter.safetensors").stat().st_size for name in ("a", "half")]
    assert sizes[1] < 0.6 * sizes[0]


def test_another_base_is_refused_by_both_names(tmp_path):
    write_bundle(tmp_path / "a", bundle(1))
    with pytest.raises(UserError, match=f"belongs to the base {BASE}, and this base is fedcba9876543210"):
        read_bundle(tmp_path / "a", "fedcba9876543210", SMALL)


def damage(folder, how):
    weights, about = folder / "adapter.safetensors", folder / "adapter.json"
    if how == "no json":
        about.unlink()
    elif how == "no weights":
        weights.unlink()
    elif how == "a flipped bit":
        content = bytearray(weights.read_bytes())
        content[-5] ^= 1
        weights.write_bytes(content)
    else:
        about.write_text(json.dumps(json.loads(about.read_text()) | how))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no json", "is no adapter"),
        ("no weights", "adapter.safetensors is missing"),
        ("a flipped bit", "adapter.safetensors is damaged"),
        ({"rank": 5}, r"query.a of the shape \(2, 32, 4\)"),
        ({"rank": "4"}, "rank is '4'"),
        ({"format": 2}, "format 2"),
    ],
)
def test_a_damaged_bundle_is_one_sentence(tmp_path, how, message):
    write_bundle(tmp_path / "a", bundle(1))
    damage(tmp_path / "a", how)
    with pytest.raises(UserError, match=message):
        read_bundle(tmp_path / "a", BASE, SMALL)


def test_a_weight_that_is_not_finite_is_never_written(tmp_path):
    one = bundle(1)
    one.weights["key.b"][0, 0, 0] = np.nan
    with pytest.raises(UserError, match=r"key\.b has values that are not finite"):
        write_bundle(tmp_path / "a", one)
    assert list(tmp_path.iterdir()) == []


PROMPTS = [[1, 5, 9, 60, 33], [1, 70], [1, 96, 96, 4], [1, 5, 9, 60, 33]]
OPTIONS = {"rope_base": 1e4, "max_tokens": 6, "sampling": Sampling(temperature=0)}


def run(params, adapters=None):
    return generate(params, PROMPTS, SMALL, EXECUTION, adapters=adapters, **OPTIONS)


def test_a_mixed_batch_is_each_sequence_alone_and_no_swap_compiles(params):
    bundles = [bundle(1), bundle(2, rank=2), bundle(3, alpha=2.0)]
    bank = empty_bank(SMALL, 2, 4)
    bank = load(load(bank, 0, bundles[0]), 1, bundles[1])
    alone = [run(densify(attach(params, from_named(b.weights), b.scale), SMALL)) for b in bundles]
    bare = run(params)
    assert len({str(a) for a in [*alone, bare]}) == 4, "adapters that change nothing would hide mistakes"
    assert run(attached(params, bank), [0, 1, NONE, 1]) == [alone[0][0], alone[1][1], bare[2], alone[1][3]]
    compiled = [program._cache_size() for program in (decode, read)]
    assert run(attached(params, bank), [1, NONE, 0, 0]) == [alone[1][0], bare[1], alone[0][2], alone[0][3]]
    bank = load(bank, 1, bundles[2])
    assert run(attached(params, bank), [0, 1, 1, 1]) == [alone[0][0], alone[2][1], alone[2][2], alone[2][3]]
    assert [program._cache_size() for program in (decode, read)] == compiled


def test_a_slot_that_is_not_there_is_refused(params):
    bank = empty_bank(SMALL, 2, 4)
    with pytest.raises(UserError, match="the adapter in slot 2"):
        run(attached(params, bank), [0, 2, 0, 0])
    with pytest.raises(UserError, match="is to go into slot 2"):
        load(bank, 2, bundle(1))
    with pytest.raises(UserError, match="of rank 5"):
        load(bank, 0, bundle(1, rank=5))
