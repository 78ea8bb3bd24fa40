"""Generation with a cache gives what the whole forward pass gives, for each prompt as if it were alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pomona.core.errors import UserError
from pomona.infer.generate import generate
from pomona.infer.sample import choices
from pomona.infer.slots import Setting, Slots, _hidden, _logits
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


def slots_of(params, execution, count=3, context=40, **options):
    return Slots(params, Setting(ARCHITECTURE, execution, ROPE_BASE), count, context, **options)


step = jax.jit(lambda *given: _hidden(*given[:5], *given[5:]), static_argnums=(5, 6))


@pytest.mark.parametrize("layers", ["scanned", "unrolled"])
def test_every_step_has_the_logits_of_the_whole_sequence(params, layers):
    tokens = np.random.default_rng(0).integers(0, 97, 20).tolist()
    expected, execution = whole(params, tokens), resolve(Execution(layers=layers), "cpu")
    slots, first = slots_of(params, execution), 0
    cache, slot = slots.cache, jnp.asarray([1])
    for width in (7, 1, 1, 4, 1, 6):  # a prompt, then single steps and longer pieces
        piece = jnp.asarray([tokens[first : first + width]])
        hidden, cache = step(slots.params, piece, slot, jnp.asarray([first]), cache, slots.setting, 32)
        logits = _logits(slots.params, hidden[0])
        np.testing.assert_allclose(logits, expected[first : first + width], atol=1e-5)
        first += width


@pytest.mark.parametrize("layers", ["scanned", "unrolled"])
def test_a_slot_that_waits_is_left_as_it_is(params, layers):
    slots = slots_of(params, resolve(Execution(layers=layers), "cpu"))
    wanted = slots.wanted(choices([GREEDY], [0]), [-1])
    said = [int(slots.read(slot, 0, prompt, wanted).drawn.token[0]) for slot, prompt in enumerate(PROMPTS)]
    before = jax.tree.map(np.asarray, slots.cache)
    every = slots.wanted(choices([GREEDY] * 3, [0] * 3), [-1] * 3)
    slots.decode([[0], [said[1]], [0]], [40, len(PROMPTS[1]), 40], every, 4)
    axis = 0 if layers == "unrolled" else 1
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(slots.cache)):
        old, new = np.moveaxis(old, axis, 0), np.moveaxis(np.asarray(new), axis, 0)
        assert np.array_equal(old[0], new[0]) and np.array_equal(old[2], new[2])
        assert not np.array_equal(old[1], new[1])


def test_the_slot_of_another_can_be_copied(params):
    slots = slots_of(params, resolve(Execution(), "cpu"))
    wanted = slots.wanted(choices([GREEDY], [0]), [-1])
    alone = int(slots.read(0, 0, PROMPTS[0], wanted).drawn.token[0])
    slots.copy(0, 2)
    assert int(slots.read(2, 6, PROMPTS[0][6:], wanted).drawn.token[0]) == alone


def test_log_probabilities_of_a_prompt_are_those_of_the_training_path(params):
    tokens = np.random.default_rng(0).integers(0, 97, 20).tolist()
    exact = jax.nn.log_softmax(whole(params, tokens))
    slots = slots_of(params, resolve(Execution(), "cpu"))
    wanted = slots.wanted(choices([GREEDY], [0]), [-1], tell=True)
    for first, last in ((0, 9), (9, 20)):
        found = slots.read(0, first, tokens[first:last], wanted, tokens[first + 1 : last + 1])
        own = np.asarray(found.prompt.own_B)[: last - first]
        follows = [*tokens, 0][first + 1 : last + 1]
        np.testing.assert_allclose(own, exact[np.arange(first, last), follows], atol=1e-5)
        np.testing.assert_array_equal(found.prompt.tokens_BC[: last - first, 0], exact[first:last].argmax(-1))
    np.testing.assert_allclose(found.drawn.likely.own_B[0], exact[-1].max(), atol=1e-5)


def test_a_mask_forbids(params):
    slots = slots_of(params, resolve(Execution(), "cpu"))
    allowed = np.zeros(128, bool)
    allowed[[3, 40, 96]] = True
    masks = np.packbits(allowed, bitorder="little").view(np.int32)[None]
    logits = whole(params, PROMPTS[0])[-1]
    wanted = slots.wanted(choices([GREEDY], [0]), [-1], masks=masks)
    assert int(slots.read(0, 0, PROMPTS[0], wanted).drawn.token[0]) == max((3, 40, 96), key=lambda i: logits[i])


def run(params, prompts=PROMPTS, **changes):
    options = {"rope_base": ROPE_BASE, "max_tokens": 12, "sampling": GREEDY} | changes
    execution = resolve(Execution(layers="scanned"), "cpu")  # half the time to compile
    return generate(params, prompts, ARCHITECTURE, execution, **options)


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


def test_pieces_of_a_prompt_and_steps_of_a_dispatch_do_not_show(params, monkeypatch):
    long = [np.random.default_rng(1).integers(0, 97, 70).tolist(), *PROMPTS]
    hot = Sampling(1.0, 20)
    expected = [run(params, long), run(params, long, sampling=hot, seed=2)]
    for chunk, steps in ((16, 1), (64, 12)):
        monkeypatch.setattr("pomona.infer.generate.CHUNK", chunk)
        monkeypatch.setattr("pomona.infer.generate.STEPS", steps)
        assert [run(params, long), run(params, long, sampling=hot, seed=2)] == expected


def test_the_seed_decides_the_sample(params):
    hot = Sampling(temperature=1.0)
    assert run(params, sampling=hot, seed=1) == run(params, sampling=hot, seed=1)
    assert run(params, sampling=hot, seed=1) != run(params, sampling=hot, seed=2)
    assert run(params, sampling=Sampling(temperature=5.0, top_k=1)) == run(params)


def test_bfloat16_changes_little(params):
    slots = slots_of(params, dataclasses.replace(resolve(Execution(), "cpu"), compute_dtype="bfloat16"))
    wanted = slots.wanted(choices([GREEDY], [0]), [-1], tell=True)
    found = slots.read(0, 0, PROMPTS[0], wanted)
    assert slots.cache.keys[0].dtype == jnp.bfloat16 == slots.params.layers[0].ffn.gate.dtype
    exact = jax.nn.log_softmax(whole(params, PROMPTS[0])[-1])
    assert np.abs(np.asarray(found.drawn.likely.others_BC[0]) - exact[found.drawn.likely.tokens_BC[0]]).max() < 0.3


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
