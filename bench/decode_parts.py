"""What `bench/decode.py` asks of the device runtime besides its plain speed; each part runs in a process of its own."""

import os
import statistics
import subprocess
import sys
import time

import numpy as np

SHORT = 128


def adapters(path, threads, tokens):
    """A token with an adapter of rank 16 over one without, in turns; milliseconds of a swap; a batch of 8."""
    from pomona.adapters.bundle import weight_shapes
    from pomona.device.adapter import DeviceAdapter, low_rank
    from pomona.device.engine import load
    from pomona.device.session import Part
    from pomona.model.config import PLACES

    model, rng = load(path), np.random.default_rng(0)
    a = model.file.architecture
    shapes = weight_shapes(a, 16)

    def random_adapter(name):
        draw = lambda place, side: rng.normal(size=shapes[f"{place}.{side}"][1:]).astype(np.float32) * 0.01
        layers = tuple(
            {place: low_rank(draw(place, "a"), draw(place, "b"), 1.0) for place in PLACES} for _ in range(a.num_layers)
        )
        return DeviceAdapter(name, model.file.about["fingerprint"], layers)

    one, other = random_adapter("one"), random_adapter("other")
    engine = model.engine(threads)
    text = rng.integers(3, a.vocab_size, SHORT + tokens).tolist()
    sessions = {"bare": engine.open(len(text)), "adapted": engine.open(len(text), one)}
    taken = {name: [] for name in sessions}
    for session in sessions.values():
        session.advance(text[:SHORT])
    for token in text[SHORT:]:
        for name, session in sessions.items():
            taken[name].append(seconds(session.advance, [token]))
    swap = sessions["adapted"]
    swaps = [seconds(swap.use, adapter) for adapter in (other, one) * 10]
    batch = [engine.open(64) for _ in range(8)]
    engine.advance([Part(session, text[:16]) for session in batch])
    eight = [seconds(engine.advance, [Part(s, [token]) for s in batch]) for token in text[: max(4, tokens // 4)]]
    middle = {name: statistics.median(each) for name, each in taken.items()}
    return {
        "adapter_cost": middle["adapted"] / middle["bare"] - 1,
        "adapter_swap_ms": 1000 * statistics.median(swaps),
        "adapter_bytes": one.nbytes,
        "batch_8_speedup": 8 * middle["bare"] / statistics.median(eight),
    }


def speculation(path, threads, tokens, rate):
    """Tokens a second with guesses that are right at a rate over those without."""
    from pomona.device import speculate
    from pomona.device.engine import load
    from pomona.model.sampling import Sampling

    model, rng = load(path), np.random.default_rng(0)
    a = model.file.architecture
    prompt, greedy = rng.integers(3, a.vocab_size, SHORT).tolist(), Sampling(0.0)
    plain, guessing = model.open(SHORT + tokens, threads), model.open(SHORT + tokens, threads)
    took, said = timed_after_first(plain.generate(prompt, tokens, greedy))
    whole = prompt + said

    class Guesses:
        """What comes, but for as many tokens as a real drafter does not know."""

        def guess(self, text, count):
            coming = whole[len(text) : len(text) + count]
            return [speculate.Guess(token if rng.random() < rate else 3) for token in coming]

    pace = speculate.Pace()
    guessed, same = timed_after_first(speculate.generate(guessing, prompt, Guesses(), tokens, greedy, pace=pace))
    assert same == said, "greedy text is the same with guesses"
    return {"speculation_speedup": took / guessed, "guessed": pace.guessed, "right": pace.right}


def timed_after_first(tokens):
    """Seconds from the first token to the last, and the tokens."""
    said = [next(tokens)]
    began = time.perf_counter()
    said.extend(tokens)
    return time.perf_counter() - began, said


def first_token(path):
    """Seconds of `pomona generate FILE` to its end after one token: with the file read before, and out of memory."""
    words = [sys.executable, "-m", "pomona.cli.main", "generate", str(path), "a", "--max-tokens", "1"]
    start = lambda: seconds(subprocess.run, words, check=True, stdout=subprocess.DEVNULL)
    start()
    warm = statistics.median(start() for _ in range(3))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return {"first_token_warm_seconds": warm, "first_token_cold_seconds": start()}


def quality(life):
    """The trained device model: bits a byte and KL beside JAX on held-out text, and how often a look-up is right."""
    from pomona.device import speculate
    from pomona.device.engine import load
    from pomona.model.sampling import Sampling

    base = life / "palettized"
    file = base.with_suffix(".pom")
    if not file.exists():
        from pomona.export.device import export_device

        export_device(base, file)
    rows, theirs = heldout_by_jax(base)
    model = load(file)
    nats, divergence, count = 0.0, 0.0, 0
    for row, theirs_TV in zip(rows, theirs):
        logits_TV = model.open(len(row)).advance(row[:-1], every=True).astype(np.float64)
        ours_TV = logits_TV - np.log(np.exp(logits_TV).sum(axis=1, keepdims=True))
        nats -= ours_TV[np.arange(len(row) - 1), row[1:]].sum()
        divergence += (np.exp(theirs_TV) * (theirs_TV - ours_TV)).sum()
        count += len(row) - 1
    nats_by_jax = -sum(each[np.arange(len(row) - 1), row[1:]].sum() for row, each in zip(rows, theirs))
    found = {"bits_per_byte_delta": nats / nats_by_jax - 1, "kl_nats": divergence / count, "heldout_tokens": count}
    pace, session = speculate.Pace(most=4), model.open(256)
    pace.count = lambda: pace.most
    for row in rows[:24]:
        prompt = session.keep(row[:96])
        list(speculate.generate(session, prompt, speculate.LookUp(), 96, Sampling(0.0), pace=pace))
    return found | {"acceptance": pace.right / max(1, pace.right + pace.wrong), "guesses": pace.guessed}


def heldout_by_jax(base, rows=40, length=256):
    """Windows of held-out documents, and float64 log-probabilities [T - 1, V] by JAX on the palettized weights."""
    import jax
    import jax.numpy as jnp

    from pomona.data.prepare import prepare, token_files
    from pomona.model.config import resolve
    from pomona.model.objective import TokenBatch, hidden_states
    from pomona.train.load import load_model

    one = load_model(base)
    run, execution = one.run, resolve(one.run.execution, "cpu")
    prepared = prepare(run.data, lambda line: print(line, file=sys.stderr))
    documents = token_files(prepared, run.data.sources[0].name, heldout=True)
    whole = zip(documents.starts, documents.lengths)
    places = [int(start) + skip for start, size in whole for skip in range(0, int(size) - length + 1, length)]
    chosen = np.random.default_rng(0).permutation(len(places))[:rows]
    found = [np.asarray(documents.read(places[i], length)).tolist() for i in chosen]

    @jax.jit
    def logs(row_T):
        ones, order = jnp.ones_like(row_T), jnp.arange(len(row_T))
        batch = TokenBatch(*(each[None] for each in (row_T, row_T, ones, order)))
        hidden_BTD = hidden_states(one.params, batch, run.architecture, execution, one.stage.rope_base)
        return jax.nn.log_softmax(hidden_BTD[0] @ one.params.embedding.T)

    return found, [np.asarray(logs(jnp.asarray(row[:-1])), np.float64) for row in found]


def seconds(function, *arguments, **options):
    """How long a call takes."""
    began = time.perf_counter()
    function(*arguments, **options)
    return time.perf_counter() - began
