"""Guessed tokens: the same text when greedy, the same distribution when drawn, and none where they do not pay."""

import numpy as np
import pytest

from pomona.data.tokenizer import BEGIN
from pomona.device.engine import load
from pomona.device.speculate import DraftModel, Guess, LookUp, Pace, _check, generate
from pomona.model.sampling import Sampling

PROMPT = [BEGIN, *np.random.default_rng(3).integers(3, 400, 20).tolist()]
GREEDY = Sampling(0.0)


@pytest.fixture(scope="module")
def model(pom):
    return load(pom)


class Oracle:
    """Knows what the model says, but for some tokens."""

    def __init__(self, text, wrong=()):
        self.text, self.wrong, self.asked = text, wrong, 0

    def guess(self, text, count):
        self.asked += 1
        places = range(len(text), min(len(text) + count, len(self.text)))
        return [Guess(3 if place in self.wrong else self.text[place]) for place in places]


class Fixed(Pace):
    """Always the same number of guesses."""

    def count(self):
        return self.most


def greedy(model, count):
    return list(model.open(400).generate(PROMPT, count, GREEDY))


@pytest.mark.parametrize("most", [1, 3, 7])
@pytest.mark.parametrize("wrong", [(), (22, 25, 26, 31), tuple(range(21, 200))])
def test_greedy_text_is_the_same(model, most, wrong):
    expected = greedy(model, 60)
    session, pace = model.open(400), Fixed(most=most)
    oracle = Oracle([*PROMPT, *expected], wrong)
    assert list(generate(session, PROMPT, oracle, 60, GREEDY, pace=pace)) == expected
    assert pace.right == pace.guessed if not wrong else pace.right < pace.guessed
    assert session.tokens == [*PROMPT, *expected][: session.length], "what was guessed wrongly is forgotten"
    steps = 59 if len(wrong) > 100 else 0 if wrong else -(-59 // (most + 1))
    assert not steps or abs(oracle.asked - steps) <= 2


def test_a_draft_model_and_the_text_itself_change_nothing(model):
    expected = greedy(model, 80)
    for drafter in (LookUp(), DraftModel(model.open(400)), DraftModel(model.open(40))):
        for pace in (Fixed(), Pace()):
            assert list(generate(model.open(400), PROMPT, drafter, 80, GREEDY, pace=pace)) == expected
    pace = Fixed()
    list(generate(model.open(400), PROMPT, DraftModel(model.open(400)), 80, GREEDY, pace=pace))
    assert pace.right == pace.guessed > 60, "a model guesses itself"


def test_it_ends_where_plain_decoding_ends(model):
    expected = list(model.open(40).generate(PROMPT, 100, GREEDY))
    assert len(expected) == 40 - len(PROMPT) + 1
    for drafter in (Oracle([*PROMPT, *greedy(model, 100)]), DraftModel(model.open(40)), LookUp()):
        assert list(generate(model.open(40), PROMPT, drafter, 100, GREEDY, pace=Fixed())) == expected
    for count in (1, 2, 9):
        oracle = Oracle([*PROMPT, *expected])
        assert list(generate(model.open(40), PROMPT, oracle, count, GREEDY, pace=Fixed())) == expected[:count]


def test_look_up_finds_what_followed_the_longest_match():
    text = [5, 6, 7, 8, 1, 9, 7, 8, 2, 5, 6, 7, 8]
    assert [guess.token for guess in LookUp().guess(text, 3)] == [1, 9, 7]
    assert [guess.token for guess in LookUp(longest=2).guess(text, 3)] == [2, 5, 6], "the last place of two"
    drafter = LookUp()
    for end in range(2, len(text)):  # token by token is the same
        drafter.guess(text[:end], 1)
    assert [guess.token for guess in drafter.guess(text, 3)] == [1, 9, 7]
    assert drafter.guess([1, 2, 3], 3) == [] and drafter.guess([4], 3) == []


@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(0.7, top_k=4), Sampling(1.5, top_p=0.8)])
@pytest.mark.parametrize("certain", [True, False])
def test_what_is_kept_and_what_replaces_it_has_the_models_distribution(sampling, certain):
    """The first token after a guess, and the second given the first: chi-squared against plain draws."""
    from pomona.device.sample import probabilities

    rng, V, count = np.random.default_rng(7), 8, 30_000
    logits = rng.normal(size=(3, V)) * 1.5
    p, q = (probabilities(row, sampling) for row in (logits[0], rng.normal(size=V)))
    first, second = np.zeros(V), np.zeros(V)
    for _ in range(count):
        token = 2 if certain else int(rng.choice(V, p=q))
        guesses = [Guess(token, None if certain else q)]
        right, then = _check(logits[:2], guesses, sampling, rng)
        first[token if right else then] += 1
        if right:
            second[then] += 1
    for seen, expected in ((first, p), (second, probabilities(logits[1], sampling))):
        assert not seen[expected == 0].any()
        there = expected > 0
        if seen.sum() < 100:
            continue
        chi = np.sum((seen - seen.sum() * expected)[there] ** 2 / (seen.sum() * expected[there]))
        assert chi < 35, "a chance of about 1e-5 with 7 degrees of freedom"


def test_the_whole_has_the_distribution_of_plain_decoding(model):
    """Two tokens after a prompt, drawn 600 times either way, from the same narrow distribution."""
    sampling = Sampling(0.8, top_k=3)

    def seen(draw):
        found = {}
        for seed in range(600):
            pair = tuple(draw(seed))
            found[pair] = found.get(pair, 0) + 1
        return found

    session, guessing, small = model.open(60), model.open(60), model.open(60)
    plain = seen(lambda seed: session.generate(session.keep(PROMPT), 2, sampling, seed))
    drafter = DraftModel(small, Sampling(1.3, top_k=3), seed=1)
    guessed = seen(
        lambda seed: generate(guessing, guessing.keep(PROMPT), drafter, 2, sampling, 10_000 + seed, Fixed(most=2))
    )
    every = set(plain) | set(guessed)
    assert len(every) <= 9
    far = sum((plain.get(k, 0) - guessed.get(k, 0)) ** 2 / (plain.get(k, 0) + guessed.get(k, 0)) for k in every)
    assert far < 35, "two samples of one distribution: chi-squared with 8 degrees of freedom"


def paced(pace, steps, right_of, plain, each):
    """Steps that take what they take; returns the guesses of the last quarter of them."""
    counts = []
    for _ in range(steps):
        count = pace.count()
        right = min(count, right_of())
        pace.learn(count, right, plain + each * count)
        counts.append(count)
    return counts[-steps // 4 :]


def test_the_pace_follows_what_pays():
    rng = np.random.default_rng(0)
    assert np.mean(paced(Pace(), 200, lambda: 7, 1.0, 0.05)) > 6, "always right and nearly free"
    off = paced(Pace(), 400, lambda: 0, 1.0, 0.3)
    assert sum(off) <= len(off) / 16, "never right: looked at again only now and then"
    dear = paced(Pace(), 400, lambda: int(rng.random() < 0.5), 1.0, 0.9)
    assert sum(dear) <= len(dear) / 8, "right half of the time, at nearly the price of a token"
    pace = Pace()
    paced(pace, 200, lambda: 0, 1.0, 0.3)
    assert np.mean(paced(pace, 600, lambda: 7, 1.0, 0.05)) > 4, "comes back when it pays"
