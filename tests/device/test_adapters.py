"""Adapters in the device runtime: what they add, mixed batches, and swaps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.adapters.bundle import Bundle, weight_shapes, write_bundle
from pomona.cli.main import main
from pomona.core.errors import UserError
from pomona.data.tokenizer import BEGIN
from pomona.device.adapter import low_rank
from pomona.device.engine import load
from pomona.device.layout import integers
from pomona.device.session import Part, instruction_sets
from pomona.model.adapter import attach, densify, from_named
from pomona.model.config import resolve
from pomona.model.objective import TokenBatch, hidden_states
from pomona.train.load import load_model

TOKENS = [BEGIN, *np.random.default_rng(0).integers(3, 400, 79).tolist()]


@pytest.fixture(scope="module")
def model(pom):
    return load(pom)


@pytest.fixture(scope="module")
def bundles(model, tmp_path_factory):
    """Three adapters of different ranks, strong enough to change what is said."""
    folder, found = tmp_path_factory.mktemp("adapters"), []
    for number, rank in enumerate((4, 16, 40)):
        rng = np.random.default_rng(number)
        shapes = weight_shapes(model.file.architecture, rank)
        weights = {name: (rng.normal(size=shape) * 0.06).astype(np.float32) for name, shape in shapes.items()}
        bundle = Bundle(f"task {number}", weights, rank, 2.0 * rank, model.file.about["fingerprint"], {})
        write_bundle(folder / str(number), bundle)
        found.append((folder / str(number), bundle))
    return found


@pytest.fixture(scope="module")
def adapters(model, bundles):
    return [model.adapter(path) for path, _ in bundles]


def alone(model, tokens, adapter=None, name="", threads=1):
    return model.open(len(tokens), threads, name, adapter).advance(tokens, every=True)


def test_factors_are_the_bundles_within_half_a_step():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(48, 5)), rng.normal(size=(5, 32))
    found = low_rank(a.astype(np.float32), b.astype(np.float32), 2.0)
    back_a = integers(found.a) * found.a.factors[:, None].astype(np.float64)
    assert back_a.shape == (16, 48) and not back_a[5:].any(), "a rank is filled up to 16 with zeros"
    assert np.all(np.abs(back_a[:5] - a.T) <= np.abs(a.T).max(axis=1, keepdims=True) / 253)
    back_b = found.b.transpose(0, 2, 1).reshape(32, 16) * found.factors[:, None].astype(np.float64)
    assert np.all(np.abs(back_b[:, :5] - 2 * b.T) <= 2 * np.abs(b.T).max(axis=1, keepdims=True) / 253)


def test_with_an_adapter_it_is_the_decoder_of_jax_with_it(palettized, model, bundles, adapters):
    """KL in nats a token: rounding, as without an adapter, against what the adapter itself changes."""
    one = load_model(palettized)
    batch = TokenBatch(*(jnp.asarray([row]) for row in (TOKENS, TOKENS, [1] * len(TOKENS), list(range(len(TOKENS))))))
    for (_, bundle), adapter in zip(bundles, adapters):
        attached = densify(attach(one.params, from_named(bundle.weights), bundle.scale), one.run.architecture)
        hidden = hidden_states(
            attached, batch, one.run.architecture, resolve(one.run.execution, "cpu"), one.stage.rope_base
        )
        theirs = jax.nn.log_softmax(hidden[0] @ attached.embedding.T)
        away = lambda logits, theirs=theirs: float(
            jnp.mean(jnp.sum(jnp.exp(theirs) * (theirs - jax.nn.log_softmax(jnp.asarray(logits))), axis=-1))
        )
        assert away(alone(model, TOKENS, adapter)) < 2e-3
        assert away(alone(model, TOKENS)) > 0.1, "an adapter that changes nothing would hide mistakes"


@pytest.mark.parametrize("name", instruction_sets())
@pytest.mark.parametrize("threads", [1, 3])
def test_instruction_sets_and_threads_agree(model, adapters, name, threads):
    for adapter in adapters:
        found, expected = alone(model, TOKENS, adapter, name, threads), alone(model, TOKENS, adapter)
        if name == "numpy":
            assert np.abs(found - expected).mean() < 5e-3 * np.abs(expected).max(), "see test_engine.py"
        else:
            np.testing.assert_array_equal(found, expected)


@given(st.lists(st.tuples(st.integers(-1, 2), st.integers(1, 70), st.booleans()), min_size=1, max_size=5), st.data())
@settings(deadline=None, max_examples=25)
def test_a_batch_is_every_sequence_alone(model, adapters, asked, data):
    """Any number of sequences of any lengths, each with its own adapter or none, in one call after another."""
    engine = model.engine(data.draw(st.integers(1, 3)))
    chosen = [adapters[number] if number >= 0 else None for number, _, _ in asked]
    sessions = [engine.open(80, adapter) for adapter in chosen]
    texts = [TOKENS[number : number + length] for number, (_, length, _) in enumerate(asked)]
    expected = [alone(model, text, adapter) for text, adapter in zip(texts, chosen)]
    done = [data.draw(st.integers(0, len(text) - 1)) for text in texts]
    first = [Part(session, text[:end]) for session, text, end in zip(sessions, texts, done) if end]
    if first:
        engine.advance(first)
    rest = [Part(session, text[end:], every) for session, text, end, (_, _, every) in zip(sessions, texts, done, asked)]
    for found, every, part, end in zip(engine.advance(rest), expected, rest, done):
        np.testing.assert_array_equal(found, every[end:] if part.every else every[-1])
    assert [session.tokens for session in sessions] == texts


def test_a_swap_forgets_and_coming_back_says_the_same(model, adapters):
    session = model.open(80)
    plain, first = session.advance(TOKENS), None
    for _ in range(2):
        for adapter in adapters:
            session.use(adapter)
            assert session.length == 0
            found = session.advance(TOKENS)
            assert not np.array_equal(found, plain)
        first = found if first is None else first
        np.testing.assert_array_equal(found, first)
    session.use(None)
    np.testing.assert_array_equal(session.advance(TOKENS), plain)


@pytest.mark.parametrize("name", instruction_sets())
def test_an_adapter_that_overflows_leaves_nothing_behind(model, adapters, name):
    """Scales of forgotten positions that are no numbers lie beside those of the next text, within 16."""
    wild = dict(adapters[0].layers[0])
    wild["value"] = dataclasses.replace(wild["value"], factors=np.full_like(wild["value"].factors, 3e38))
    wrong = dataclasses.replace(adapters[0], layers=(wild, *adapters[0].layers[1:]))
    session = model.open(80, 1, name, wrong)
    with np.errstate(all="ignore"), pytest.raises(UserError, match="not finite"):
        session.advance(TOKENS[:12])
    session.use(None)
    np.testing.assert_array_equal(session.advance(TOKENS[:3], every=True), alone(model, TOKENS[:3], None, name))


def test_what_is_refused(model, adapters, bundles, tmp_path):
    other = dataclasses.replace(adapters[0], base="fedcba98")
    with pytest.raises(UserError, match="belongs to the base fedcba98"):
        model.open(8, adapter=other)
    changed = dataclasses.replace(bundles[0][1], base="fedcba98")
    write_bundle(tmp_path / "other", changed)
    with pytest.raises(UserError, match="belongs to the base fedcba98"):
        model.adapter(tmp_path / "other")
    shapes = weight_shapes(model.file.architecture, 300)
    wide = Bundle("wide", {n: np.ones(s, np.float32) for n, s in shapes.items()}, 300, 1.0, changed.base, {})
    write_bundle(tmp_path / "wide", dataclasses.replace(wide, base=model.file.about["fingerprint"]))
    with pytest.raises(UserError, match="rank 300"):
        model.adapter(tmp_path / "wide")
    with pytest.raises(UserError, match="is no adapter"):
        model.adapter(tmp_path)


def test_the_command_gives_each_prompt_its_adapter(pom, bundles, capsys):
    def say(*words):
        assert main(["generate", str(pom), *words, "--temperature", "0", "--max-tokens", "8"]) == 0
        return capsys.readouterr().out

    first, second = (str(path) for path, _ in bundles[:2])
    both = say("the quick", "the quick", "--adapter", first, "--adapter", second).split("\n---\n")
    assert both == [say("the quick", "--adapter", path) for path in (first, second)]
    assert say("the quick") not in both
