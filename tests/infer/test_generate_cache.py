"""Generation with a cache gives what the whole forward pass gives, for each prompt as if it were alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pomona.core.errors import UserError
from pomona.infer.generate import advance, empty_cache, generate
from pomona.model.config import Architecture, Execution, resolve
from pomona.model.decoder import parameter_specs
from pomona.model.objective import TokenBatch, hidden_states
from pomona.model.sampling import Sampling
from pomona.model.spec import initialize

ARCHITECTURE = Architecture(97, 32, 3, 4, 2, 16, 48)
ROPE_BASE = 1e4
GREEDY = Sampling(temperature=0)
PROMPTS = [[1, 5, 9, 60, 33, 2, 8], [1, 70], [1, 96, 96, 4]]


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda x: x * 1.5, initialize(parameter_specs(ARCHITECTURE), jax.random.key(3)))


@jax.jit
def whole_logits(params, batch):
    execution = resolve(Execution(attention="reference"), "cpu")
    return hidden_states(params, batch, ARCHITECTURE, execution, ROPE_BASE)[0] @ params.embedding.T


def whole(params, tokens, length=24):
    """Logits [T, V] of one sequence by the training path; what is padded on the right is not seen."""
    padded = [*tokens, *[0] * (length - len(tokens))]
    rows = (padded, padded, [1] * length, list(range(length)))
    batch = TokenBatch(*(jnp.asarray([row], jnp.int32) for row in rows))
    return np.asarray(whole_logits(params, batch))[: len(tokens)]


@pytest.mark.parametrize("layers", ["scanned", "unrolled"])
def test_every_step_has_the_logits_of_the_whole_sequence(params, layers):
    tokens = np.random.default_rng(0).integers(0, 97, 20).tolist()
    expected, execution = whole(params, tokens), resolve(Execution(layers=layers), "cpu")
    cache = empty_cache(ARCHITECTURE, jnp.zeros(1, jnp.int32), 24)
    step, first = jax.jit(advance, static_argnums=(3, 4, 5)), 0
    for width in (7, 1, 1, 4, 1, 6):  # a prompt, then single steps and longer pieces
        piece = jnp.asarray([tokens[first : first + width]])
        logits, cache = step(params, piece, cache, ARCHITECTURE, execution, ROPE_BASE)
        first += width
        np.testing.assert_allclose(logits[0], expected[first - 1], atol=1e-5)
    assert int(cache.used) == 20


def run(params, prompts=PROMPTS, **changes):
    options = {"rope_base": ROPE_BASE, "max_tokens": 12, "sampling": GREEDY} | changes
    return generate(params, prompts, ARCHITECTURE, resolve(Execution(), "cpu"), **options)


def test_greedy_text_is_the_argmax_of_the_whole_forward_pass(params):
    (out,) = run(params, PROMPTS[:1])
    tokens = list(PROMPTS[0])
    for token in out:
        assert token == whole(params, tokens)[-1].argmax()
        tokens.append(token)
    assert len(set(out)) > 3, "a model that repeats one token would hide mistakes"


def test_prompts_of_a_batch_do_not_see_each_other(params):
    assert run(params) == [run(params, [prompt])[0] for prompt in PROMPTS]


def test_a_stop_token_ends_its_sequence_alone_and_is_left_out(params):
    free = run(params)
    stop = free[0][4]
    cut = [tokens[: tokens.index(stop)] if stop in tokens else tokens for tokens in free]
    assert run(params, stop_tokens=(stop,)) == cut
    assert len(cut[0]) <= 4 and max(map(len, cut)) == 12


def test_the_seed_decides_the_sample(params):
    hot = Sampling(temperature=1.0)
    assert run(params, sampling=hot, seed=1) == run(params, sampling=hot, seed=1)
    assert run(params, sampling=hot, seed=1) != run(params, sampling=hot, seed=2)
    assert run(params, sampling=Sampling(temperature=5.0, top_k=1)) == run(params)


def test_a_bfloat16_cache_changes_little(params):
    execution = dataclasses.replace(resolve(Execution(), "cpu"), compute_dtype="bfloat16")
    cache = empty_cache(ARCHITECTURE, jnp.zeros(1, jnp.int32), 8, jnp.bfloat16)
    step = jax.jit(advance, static_argnums=(3, 4, 5))
    logits, cache = step(params, jnp.asarray([PROMPTS[0]]), cache, ARCHITECTURE, execution, ROPE_BASE)
    assert cache.keys.dtype == jnp.bfloat16
    assert np.abs(np.asarray(logits[0]) - whole(params, PROMPTS[0])[-1]).max() < 0.3


def test_nothing_is_asked_for_and_nothing_comes(params):
    assert run(params, max_tokens=0) == [[], [], []]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": [[1, 2], []]}, "a prompt is empty"),
        ({"prompts": []}, "a prompt is empty"),
        ({"prompts": [[1, 97]]}, "a token the model does not have"),
        ({"prompts": [[-1]]}, "a token the model does not have"),
        ({"max_tokens": -1}, "-1 tokens"),
        ({"sampling": Sampling(temperature=-0.1)}, "temperature -0.1"),
        ({"sampling": Sampling(top_k=-1)}, "top-k -1"),
        ({"sampling": Sampling(top_p=0.0)}, "top-p 0.0"),
        ({"sampling": Sampling(top_p=1.1)}, "top-p 1.1"),
    ],
)
def test_bad_requests_are_refused(params, changes, message):
    with pytest.raises(UserError, match=message):
        run(params, **changes)
