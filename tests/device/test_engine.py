"""The device runtime: one model by every instruction set, any number of threads, any way of feeding it, and by JAX."""

import dataclasses
import subprocess
import sys
from operator import attrgetter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pomona.cli.main import main
from pomona.compress.recover import recovery_run
from pomona.core.config import to_json
from pomona.core.errors import UserError
from pomona.core.files import write_json
from pomona.data.tokenizer import BEGIN
from pomona.device import library, portable
from pomona.device.engine import instruction_sets, load
from pomona.device.layout import integers
from pomona.device.sample import draw, probabilities
from pomona.export.device import export_device
from pomona.infer.sample import choices, sample
from pomona.model.config import PROJECTIONS, resolve
from pomona.model.decoder import parameter_specs
from pomona.model.objective import TokenBatch, hidden_states
from pomona.model.sampling import Sampling
from pomona.train.load import load_model

TOKENS = [BEGIN, *np.random.default_rng(0).integers(3, 400, 99).tolist()]


@pytest.fixture(scope="module")
def model(pom):
    return load(pom)


@pytest.fixture(scope="module")
def logits(model):
    """float32 [100, 400], by the best instruction set."""
    return model.open(context=100, threads=1).advance(TOKENS, every=True)


@pytest.mark.parametrize("name", [name for name in instruction_sets() if name != "numpy"])
@pytest.mark.parametrize("threads", [1, 3])
def test_instruction_sets_and_threads_change_no_bit(model, logits, name, threads):
    found = model.open(context=128, threads=threads, instruction_set=name).advance(TOKENS, every=True)
    np.testing.assert_array_equal(found, logits)


def test_numpy_computes_the_same(model, logits):
    found = model.open(context=100, instruction_set="numpy").advance(TOKENS, every=True)
    close = np.abs(found - logits).max(axis=1) < 1e-4 * np.abs(logits).max()
    assert close[:8].any() and close.mean() > 0.05, "until a sum in another order rounds one int8 otherwise"
    assert away(found, logits) < 1e-4


def away(found, expected):
    """The KL divergence of a distribution from the expected one, in nats a token."""
    ours, theirs = (jax.nn.log_softmax(jnp.asarray(x)) for x in (found, expected))
    return float(jnp.mean(jnp.sum(jnp.exp(theirs) * (theirs - ours), axis=-1)))


def by_jax(one, params):
    """float32 [100, 400]: the logits of a run's decoder with some weights."""
    rows = (TOKENS, TOKENS, [1] * len(TOKENS), list(range(len(TOKENS))))
    batch = TokenBatch(*(jnp.asarray([row], jnp.int32) for row in rows))
    execution = resolve(one.run.execution, "cpu")
    hidden_BTD = hidden_states(params, batch, one.run.architecture, execution, one.stage.rope_base)
    return np.asarray(hidden_BTD[0] @ params.embedding.T)


def test_rounding_moves_the_distribution_of_jax_a_little(palettized, logits):
    one = load_model(palettized)
    assert 0 < away(logits, by_jax(one, one.params)) < 1e-3


def test_without_rounding_it_is_the_decoder_of_jax_on_the_same_weights(palettized, model, monkeypatch):
    one = load_model(palettized)
    dense = {name: integers(m) * m.factors[:, None] for name, m in model.file.matrices.items()}
    layers = one.params.layers
    for place in PROJECTIONS:
        weights = np.stack([dense[f"layers.{layer:02}.{place}"].T for layer in range(2)])
        spec = attrgetter(place)(parameter_specs(one.run.architecture).layers)
        block, name = place.split(".")
        changed = dataclasses.replace(getattr(layers, block), **{name: jnp.asarray(weights.reshape(spec.shape))})
        layers = dataclasses.replace(layers, **{block: changed})
    params = dataclasses.replace(one.params, embedding=jnp.asarray(dense["embedding"][:400]), layers=layers)
    monkeypatch.setattr(portable, "narrow", lambda x: (x, np.ones(x.shape[:-1], np.float32)))
    session = portable.PortableSession(model.file, 100)
    session.kept = session.kept.astype(np.float32)
    np.testing.assert_allclose(session.advance(TOKENS, every=True), by_jax(one, params), atol=2e-4)


@pytest.mark.parametrize("name", instruction_sets())
def test_token_by_token_and_in_pieces_it_is_the_same(model, name):
    own = model.open(context=100, instruction_set=name).advance(TOKENS, every=True)

    def close(found, expected):
        if name == "numpy":  # whose sums depend on how many rows there are
            assert away(found, expected) < 1e-4
        else:
            np.testing.assert_array_equal(found, expected)

    session = model.open(context=100, instruction_set=name)
    close(session.advance(TOKENS[:70]), own[69])
    for index in range(70, 75):
        close(session.advance(TOKENS[index : index + 1]), own[index])
    assert session.length == 75
    session.forget(30)  # another text with the same beginning
    close(session.advance(TOKENS[30:80], every=True), own[30:80])
    session.forget(500)
    assert session.length == 80


def test_score_is_the_loss_of_every_token(model):
    text = "the quick brown fox"
    tokens = model.encode(text)
    logits = model.open(context=len(tokens)).advance(tokens[:-1], every=True).astype(np.float64)
    expected = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(tokens) - 1), tokens[1:]]
    np.testing.assert_allclose(model.score(text), expected, rtol=1e-9)
    assert model.score("").shape == (0,)


def test_generation_goes_on_to_the_end_of_the_context_and_no_further(model):
    session = model.open(context=20)
    said = list(session.generate(TOKENS[:10], max_tokens=50, sampling=Sampling(0.0)))
    assert len(said) == 11 and session.length == 20, "the last token needs no room"
    again = model.open(context=40)
    assert list(again.generate(TOKENS[:10], max_tokens=11, sampling=Sampling(0.0))) == said
    with pytest.raises(UserError, match="10 are to come"):
        list(model.open(context=9).generate(TOKENS[:10]))


def test_what_streams_is_the_text_of_the_tokens(model):
    tokens = list(model.open(context=64).generate(model.encode("the"), 40, Sampling(1.0), seed=3))
    pieces = list(model.stream("the", 40, Sampling(1.0), seed=3))
    assert "".join(pieces) == model.tokenizer.decode(tokens) and len(pieces) > 3


@pytest.mark.parametrize(
    "sampling", [Sampling(0.7), Sampling(1.3, top_k=5), Sampling(1.0, top_p=0.6), Sampling(2.0, 7, 0.8)]
)
def test_draws_have_the_distribution_that_jax_samples_from(sampling):
    logits = np.random.default_rng(4).normal(size=12).astype(np.float32) * 2
    rng, count = np.random.default_rng(5), 20_000
    ours = np.bincount([draw(logits, sampling, rng) for _ in range(count)], minlength=12) / count
    rows = jnp.broadcast_to(jnp.asarray(logits), (count, 12))
    theirs = np.asarray(sample(rows, jnp.arange(count), choices([sampling] * count, [6] * count)))
    theirs = np.bincount(theirs, minlength=12) / count
    if sampling.top_k or sampling.top_p < 1:
        assert np.array_equal(ours > 0, theirs > 0), "the same tokens are left"
    assert np.abs(ours - theirs).max() < 0.02, "five standard deviations"


@pytest.mark.parametrize(
    "sampling", [Sampling(0.5, top_p=0.9), Sampling(1.0, 700), Sampling(1.0, 0, 0.97), Sampling(4.0, 0, 0.99)]
)
def test_of_a_large_vocabulary_it_looks_at_few_and_keeps_the_same(sampling):
    """Against sorting all: few, thousands, and nearly all of the tokens are kept; ties go to the lower id."""
    logits = np.round(np.random.default_rng(8).normal(size=20_000) * 3, 2).astype(np.float32)
    scaled = logits.astype(np.float64) / sampling.temperature
    order = np.argsort(-scaled, kind="stable")[: sampling.top_k or None]
    shares = np.exp(scaled[order] - scaled.max())
    shares /= shares.sum()
    shares = np.where(np.cumsum(shares) - shares < sampling.top_p, shares, 0)
    expected = np.zeros(20_000)
    expected[order] = shares / shares.sum()
    np.testing.assert_allclose(probabilities(logits, sampling), expected, rtol=1e-9)


def test_bad_requests_are_one_clear_error(model):
    for wrong, problem in (
        (lambda: model.open(instruction_set="neon9"), "has no 'neon9'"),
        (lambda: model.open(context=0), "context of 0"),
        (lambda: model.open(context=1 << 30), "no memory for a context"),
        (lambda: model.open(context=8).advance([]), "no tokens"),
        (lambda: model.open(context=8).advance([1, 400]), "token 400"),
        (lambda: model.open(context=8).advance([-1]), "-1"),
        (lambda: model.open(context=8).advance(TOKENS[:9]), "room for 8"),
        (lambda: list(model.open(context=8).generate([1], 2, Sampling(-1.0))), "temperature -1"),
    ):
        with pytest.raises(UserError, match=problem):
            wrong()


def test_without_a_compiler_numpy_computes(model, monkeypatch):
    monkeypatch.setattr(library, "_library", lambda: None)
    assert instruction_sets() == ("numpy",)
    assert model.open(context=8).advance(TOKENS[:8]).shape == (400,)


def test_the_commands(palettized, tmp_path, capsys):
    file = str(tmp_path / "m.pom")
    assert main(["export", str(palettized), "--format", "pomona", "--output", file]) == 0
    assert f"pomona generate {file}" in capsys.readouterr().out

    def say(*words):
        assert main(["generate", file, *words, "--max-tokens", "12"]) == 0
        return capsys.readouterr().out

    greedy = say("the quick", "--temperature", "0", "--threads", "1")
    assert greedy.startswith("the quick") and greedy == say(
        "the quick", "--temperature", "0", "--instruction-set", "portable"
    )
    assert say("a", "b", "--seed", "1").count("\n---\n") == 1
    added = greedy.removeprefix("the quick").rstrip("\n")
    cut = say("the quick", "--temperature", "0", "--stop", added[3:6])
    assert cut.rstrip("\n") == "the quick" + added[: added.index(added[3:6])]
    for words, problem in (
        (["generate", file, "a", "--keep"], "--keep with a device file"),
        (["generate", str(palettized), "a", "--threads", "2"], "--threads with a run folder"),
        (["export", str(palettized), "--format", "pomona", "--output", file], "exists already"),
        (["export", str(palettized), "--format", "pomona", "--step", "7", "--output", "new.pom"], "has no step 7"),
        (["export", str(palettized), "--format", "pomona", "--dtype", "bfloat16"], "--dtype bfloat16 with"),
    ):
        assert main(words) == 2
        assert problem in capsys.readouterr().err


def test_a_run_that_was_not_palettized_is_exported_at_8_bits(palettized, tmp_path):
    """Every weight within half a step of itself; beside JAX on the weights as they are, the distributions differ by
    little more than by rounding vectors, which is 4e-4 nats for a model as narrow as this."""
    dense, target = palettized.with_name("dense"), tmp_path / "dense.pom"
    assert main(["export", str(dense), "--format", "pomona", "--output", str(target)]) == 0
    found, source = load(target, check=True), load_model(dense)
    assert {matrix.bits for matrix in found.file.matrices.values()} == {8} and found.file.about["bits_per_weight"] == 8
    tokens = jnp.asarray([TOKENS])
    batch = TokenBatch(tokens, tokens, jnp.ones_like(tokens), jnp.arange(len(TOKENS))[None])
    execution = resolve(source.run.execution, "cpu")
    hidden = jax.jit(lambda p, b: hidden_states(p, b, source.run.architecture, execution, source.stage.rope_base))
    exact = jax.nn.log_softmax(hidden(source.params, batch)[0] @ source.params.embedding.T)
    ours = jax.nn.log_softmax(found.open(len(TOKENS), 1).advance(TOKENS, every=True))
    kl = jnp.sum(jnp.exp(exact) * (exact - ours), axis=-1)
    assert 0 < float(kl.mean()) < 1e-3 and float(kl.max()) < 1e-2
    for name, matrix in found.file.matrices.items():
        if name.startswith("layers.01"):
            weight = np.asarray(attrgetter(name.split(".", 2)[2])(source.params.layers)[1])
            weight_OI = weight.reshape(-1, matrix.outputs).T
            back = integers(matrix) * matrix.factors[:, None]
            assert (np.abs(back - weight_OI) <= matrix.factors[:, None] * 0.5001).all()


def test_an_adapter_alone_is_not_exported(palettized, tmp_path):
    folder = tmp_path / "recovered"
    folder.mkdir()
    write_json(folder / "config.json", to_json(recovery_run(palettized)))
    with pytest.raises(UserError, match=f"holds an adapter for {palettized}"):
        export_device(folder, tmp_path / "new.pom")
    assert not (tmp_path / "new.pom").exists()


def test_a_device_needs_no_jax(pom):
    code = (
        "import sys; from pomona.cli.main import main; main(['generate', sys.argv[1], 'the', '--max-tokens', '3']);"
        "assert 'jax' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, str(pom)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
