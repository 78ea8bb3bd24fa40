"""What a request gets does not depend on what else is computed: on three engines, the same tokens as alone."""

import json

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest

from pomona.device.speculate import Guess, LookUp
from pomona.model.config import resolve
from pomona.model.objective import TokenBatch, hidden_states
from pomona.serve.backend import allowed
from pomona.serve.grammar import Grammars, json_grammar
from pomona.serve.guess import Guesses
from pomona.serve.messages import Cancel, Submit
from pomona.train.load import load_model

SIZES = {"slots": 3, "context": 128, "chunk": 32, "draws": 4}
KINDS = ["mock", "device", "jax"]


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def backend(kind, build):
    return build(kind, **SIZES)


def prompt(seed, length):
    return [1, *np.random.default_rng(seed).integers(3, 400, length - 1).tolist()]


def order(id, length=20, max_tokens=14, seed=None, **more):
    """Every second one is greedy; the others have filters of all kinds."""
    tastes = [{}, {"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.8}, {"temperature": 1.5, "top_k": 20}]
    return Submit(id, prompt(id if seed is None else seed, length), max_tokens, seed=7 * id, **(tastes[id % 4] | more))


def changed(order, **changes):
    return msgspec.structs.replace(order, **changes)


@pytest.fixture(scope="module")
def alone(backend, talk):
    """alone(order): its tokens with nobody else there, and nothing kept."""

    def of(one):
        other = talk(backend, keep_prefixes=False)
        return other.ask(one).run().said(one.id)

    return of


def test_in_a_crowd_that_comes_and_goes(backend, talk, alone):
    orders = [order(i, 5 + 13 * i % 70, 6 + 5 * i % 20, adapter=[None, "red", "blue"][i % 3]) for i in range(10)]
    busy = talk(backend)
    for i, one in enumerate(orders):
        busy.ask(one).run(1 + i % 3)
        if i in (4, 7):
            busy.ask(Cancel(i - 1))
    busy.run()
    expected = {one.id: alone(one) for one in orders}
    assert len({tuple(tokens) for tokens in expected.values()}) == 10, "the same everywhere would hide mistakes"
    for one in orders:
        said = busy.said(one.id)
        if one.id in (3, 6):
            assert said == expected[one.id][: len(said)]
        else:
            assert said == expected[one.id], one.id
            assert busy.ending(one.id).reason in ("length", "stop")


def test_with_other_chunks_and_draws(kind, build, talk, alone):
    orders = [order(20 + i, 30 + 17 * i, 15) for i in range(3)]
    expected = [alone(one) for one in orders]
    for chunk, draws in ((7, 1), (100, 5)) if kind != "jax" else ((16, 3),):
        other = talk(build(kind, slots=2, context=128, chunk=chunk, draws=draws)).ask(*orders).run()
        assert [other.said(one.id) for one in orders] == expected


def test_with_what_is_kept_of_others(backend, talk, alone):
    first = order(30, 60, 10)
    longer = changed(first, id=31, tokens=first.tokens + alone(first) + prompt(5, 9))
    shorter = changed(first, id=32, tokens=first.tokens[:41] + prompt(6, 12))
    again = changed(first, id=33)
    with_adapter = changed(first, id=34, adapter="red")
    of_another = changed(first, id=35, sharing="someone else")
    keeping = talk(backend)
    cached = {}
    for one in (first, longer, shorter, again, with_adapter, of_another):
        keeping.ask(one).run()
        assert keeping.said(one.id) == alone(one), one.id
        cached[one.id] = keeping.prompted(one.id).cached
    assert cached[30] == 0 and cached[31] >= 60 and cached[32] == 41 and cached[33] >= 41
    assert cached[34] == 0 and cached[35] == 0, "neither another adapter's nor another's"


def test_with_a_copy_of_what_is_being_computed(kind, backend, talk, alone):
    if not backend.copies:
        pytest.skip("this engine copies nothing")
    first = order(40, 70, 20)
    second = changed(first, id=41, tokens=first.tokens[:50] + prompt(3, 8))
    both = talk(backend).ask(first).run(4).ask(second).run()
    assert both.prompted(41).cached == 50
    assert both.said(40) == alone(first) and both.said(41) == alone(second)


def test_put_back_for_a_higher_priority_and_taken_up_again(backend, talk, alone):
    low = [order(50 + i, 25, 24, principal=str(i)) for i in range(3)]
    high = [order(60 + i, 15, 8, priority=1) for i in range(2)]
    busy = talk(backend).ask(*low).run(4).ask(*high).run(3).ask(changed(high[0], id=64)).run()
    assert busy.engine.preempted >= 2
    for one in (*low, *high):
        assert busy.said(one.id) == alone(one)
    ends = [event.id for event in busy.events if type(event).__name__ == "Finished"]
    assert set(ends[:2]) == {60, 61}, "who came later is done first"


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "size": {"type": "integer", "maximum": 99}},
    "required": ["name", "size"],
    "additionalProperties": False,
}


def test_under_a_grammar_beside_one_without(backend, talk, alone, tokenizer):
    bound = [order(70 + i, 12, 60, grammar=json_grammar(SCHEMA)) for i in range(2)]
    free = order(74, 30, 20)
    busy = talk(backend).ask(free, *bound).run()
    assert busy.said(74) == alone(free)
    for one in bound:
        said = busy.said(one.id)
        assert said == alone(one)
        found = json.loads(tokenizer.decode(said))
        assert list(found) == ["name", "size"] and found["size"] <= 99 and busy.ending(one.id).reason == "stop"


class Oracle:
    """Knows what will be said, and is wrong now and then."""

    def __init__(self, expected, wrong):
        self.expected, self.rng, self.wrong = expected, np.random.default_rng(0), wrong

    def guess(self, text, count):
        whole = next((each for each in self.expected if each[: len(text)] == list(text)), [])
        known = whole[len(text) : len(text) + count]
        return [Guess(token if self.rng.random() > self.wrong else 5) for token in known]


@pytest.mark.parametrize("wrong", [0.0, 0.3, 1.0])
def test_with_guesses(kind, build, talk, alone, wrong):
    backend = build(kind, **SIZES, guesses=3) if kind == "jax" else build(kind, **SIZES)
    orders = [order(130 + i, 20 + 9 * i, 40, adapter=[None, "red"][i % 2], logprobs=i or None) for i in range(5)]
    bound = order(139, 12, 60, grammar=json_grammar(SCHEMA))
    expected = {one.id: alone(one) for one in (*orders, bound)}
    whole = [one.tokens + expected[one.id] for one in orders]
    guesses = Guesses(lambda: Oracle(whole, wrong), backend.slots, backend.guesses)
    busy = talk(backend, guesses=guesses).ask(*orders, bound).run()
    for one in (*orders, bound):
        assert busy.said(one.id) == expected[one.id], one.id
        assert len(busy.likely(one.id)) == (len(busy.said(one.id)) if one.logprobs else 0)
    assert guesses.guessed > 5
    assert guesses.right == guesses.guessed if not wrong else guesses.right < guesses.guessed


def test_on_several_devices(build, talk):
    """With an int8 cache, whose scales are shared too."""
    orders = [order(150 + i, 20 + 20 * i, 15, adapter=[None, "red", "blue"][i]) for i in range(3)]
    texts = []
    for tensor in (1, 2):
        backend = build("jax", **(SIZES | {"chunk": 16}), cache="int8", tensor=tensor, guesses=2)
        busy = talk(backend, guesses=Guesses(LookUp, backend.slots, backend.guesses)).ask(*orders).run()
        texts.append([busy.said(one.id) for one in orders])
        (first, *_) = jax.tree.leaves(backend._slots.cache)
        assert first.sharding.shard_shape(first.shape)[-3] == first.shape[-3] // tensor, "each has its own heads"
    assert texts[0] == texts[1]


def test_with_guesses_of_what_came_before(kind, build, talk, alone):
    backend = build(kind, **SIZES, guesses=3) if kind == "jax" else build(kind, **SIZES)
    again = Submit(140, prompt(3, 12) * 4, 30)
    busy = talk(backend, guesses=Guesses(LookUp, backend.slots, backend.guesses)).ask(again, order(141)).run()
    assert busy.said(140) == alone(again) and busy.said(141) == alone(order(141))


def test_what_is_told_of_tokens(backend, talk, alone):
    """Own log-probabilities are among the most likely where the draw was greedy; nothing is told where nobody asks."""
    asked, plain = order(80, 20, 9, logprobs=5), order(82, 20, 9)
    busy = talk(backend).ask(asked, plain).run()
    told = busy.likely(80)
    assert len(told) == len(busy.said(80)) and not busy.likely(82)
    for token, one in zip(busy.said(80), told):
        assert one.tokens[0] == token and one.logprob == one.logprobs[0] and len(one.tokens) == 5
        assert sorted(one.logprobs, reverse=True) == one.logprobs
    assert busy.said(80) == alone(changed(asked, logprobs=None))


def test_a_prompt_is_told_of_in_pieces_as_in_one(backend, talk):
    whole = Submit(90, prompt(1, 70), 2, echo=True, logprobs=2)
    busy = talk(backend).ask(order(91, 50, 20), whole).run()
    told = busy.prompted(90).likely
    assert len(told) == 69 and len(busy.said(90)) == 2
    other = talk(backend).ask(Submit(92, whole.tokens[:40], 0, echo=True, logprobs=2)).run()
    for one, same in zip(other.prompted(92).likely, told):
        assert one.tokens == same.tokens and one.logprob == pytest.approx(same.logprob, abs=1e-4)
    assert other.ending(92).reason == "length" and not other.said(92)


def test_the_mean_of_hidden_states(backend, talk):
    text = Submit(95, prompt(2, 50), 0, embed=True)
    one = talk(backend).ask(text).run().prompted(95).embedding
    other = talk(backend).ask(order(96, 60, 5), text).run().prompted(95).embedding
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
    assert np.abs(one).max() > 0


def test_to_the_end_of_the_context(backend, talk, alone):
    full = order(108, 120, 50)
    busy = talk(backend).ask(full, order(109, 10, 12)).run()
    assert len(busy.said(108)) == 8 and busy.ending(108).reason == "length" and busy.said(108) == alone(full)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"tokens": []}, "no tokens"),
        ({"tokens": [1, 400]}, "does not have"),
        ({"tokens": [1] * 128}, "the context is 128"),
        ({"adapter": "green"}, "no adapter 'green'"),
    ],
)
def test_what_cannot_be_computed_fails_alone(backend, talk, alone, change, text):
    good = order(110)
    busy = talk(backend).ask(changed(good, id=111, **change), good).run()
    assert busy.ending(111).reason == "failed" and text in busy.ending(111).text
    assert busy.said(110) == alone(good)


def test_nothing_is_left_behind(backend, talk):
    busy = talk(backend)
    for i in range(12):
        busy.ask(order(120 + i, 10 + 5 * i, 10))
    busy.run(5)
    busy.ask(*(Cancel(120 + i) for i in range(12)))
    assert busy.engine.idle and not busy.engine.scheduler.running and not busy.engine.scheduler.waiting
    busy.ask(*(order(140 + i, 20, 5) for i in range(backend.slots))).run(1)
    assert len(busy.engine.scheduler.running) == backend.slots, "every slot can be had again"


def test_log_probabilities_are_those_of_the_training_forward(kind, both, backend, talk):
    if kind == "mock":
        pytest.skip("it has no model")
    model = load_model(both[0])
    tokens = prompt(4, 90)
    row = lambda ids: jnp.asarray([ids], jnp.int32)
    batch = TokenBatch(row(tokens), row(tokens), row([1] * 90), row(list(range(90))))
    execution = resolve(model.run.execution, "cpu")
    hidden = jax.jit(lambda p, b: hidden_states(p, b, model.run.architecture, execution, model.stage.rope_base))
    exact = np.asarray(jax.nn.log_softmax(hidden(model.params, batch)[0] @ model.params.embedding.T))
    told = talk(backend).ask(Submit(160, tokens, 0, echo=True, logprobs=3)).run().prompted(160).likely
    own = np.array([one.logprob for one in told])
    error = np.abs(own - exact[np.arange(89), tokens[1:]])
    assert error.max() < (1e-4 if kind == "jax" else 0.15), "the device runtime rounds vectors to 8 bits"
    assert error.mean() < (1e-5 if kind == "jax" else 0.03)


def test_nothing_is_compiled_after_warming_up(build, talk):
    """Every kind of request, with more columns than one bucket has: before, at and after its end."""
    backend = build("jax", slots=2, context=320, chunk=16, draws=2)
    backend.warm()
    before, busy = backend.compiled, talk(backend)
    extras = [{}, {"logprobs": 3}, {"adapter": "red"}, {"echo": True}, {"grammar": json_grammar(SCHEMA)}]
    lengths = (3, 240, 255, 256, 257, 290, 312)
    for number, length in enumerate(lengths):
        busy.ask(order(170 + number, length, 7, **extras[number % 5])).run(30 * (number % 2))
    busy.ask(Submit(180, prompt(1, 77), 0, embed=True), *(order(181 + i, 90, 9, seed=5) for i in range(4))).run()
    assert all(busy.ending(170 + number).reason != "failed" for number in range(len(lengths)))
    assert backend.compiled == before


def test_a_model_with_more_rows_than_its_tokenizer_has_tokens(tokenizer):
    narrow, wide = Grammars(tokenizer), Grammars(tokenizer, tokenizer.vocab_size + 100)
    masks = [grammars.follow(json_grammar(SCHEMA)).mask() for grammars in (narrow, wide)]
    bits = [allowed(mask, size) for mask, size in zip(masks, (tokenizer.vocab_size, tokenizer.vocab_size + 100))]
    assert np.array_equal(bits[0], bits[1][: tokenizer.vocab_size]) and bits[0].any()
    assert not bits[1][tokenizer.vocab_size :].any(), "what is no text is never drawn"
