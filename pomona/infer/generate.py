"""Text from a trained model: prompts of different lengths, each in a slot of its own (pomona/infer/slots.py)."""

from collections.abc import Sequence
from typing import Any

from pomona.core.errors import UserError
from pomona.infer.sample import choices
from pomona.infer.slots import Setting, Slots
from pomona.model.adapter import at_hand
from pomona.model.config import Architecture, Execution
from pomona.model.decoder import Decoder
from pomona.model.sampling import Sampling, check_sampling

STEPS = 8
"""Tokens of every sequence in one dispatch."""
CHUNK = 256


def generate(
    params: Decoder,
    prompts: Sequence[Sequence[int]],
    architecture: Architecture,
    execution: Execution,
    *,
    rope_base: float,
    max_tokens: int,
    sampling: Sampling,
    stop_tokens: Sequence[int] = (),
    seed: int = 0,
    cache_dtype: Any = None,
    adapters: Sequence[int] | None = None,
) -> list[list[int]]:
    """The tokens that follow each prompt, up to `max_tokens` or the first stop token, which is left out.

    Args:
        seed: of the first prompt; the next has the next.
        cache_dtype: of keys and values, int8 among others; the compute dtype by default.
        adapters: with a bank of adapters in `params`, its slot for each prompt; -1 for none.

    Raises:
        UserError: an empty prompt, a token the model does not have, sampling values out of range, or a slot that the
            bank does not have.
    """
    check_sampling(sampling)
    _check_prompts(prompts, architecture, max_tokens)
    own = list(adapters or [-1] * len(prompts))
    _check_adapters(own, at_hand(params))
    if not max_tokens:
        return [[] for _ in prompts]
    B, chosen = len(prompts), lambda first, last: choices([sampling] * (last - first), range(seed + first, seed + last))
    room = max(map(len, prompts)) + -(-max_tokens // STEPS) * STEPS
    slots = Slots(params, Setting(architecture, execution, rope_base), B, room, cache_dtype, CHUNK)
    out: list[list[int]] = []
    for i, prompt in enumerate(prompts):
        wanted = slots.wanted(chosen(i, i + 1), own[i : i + 1])
        for first in range(0, len(prompt), CHUNK):
            found = slots.read(i, first, prompt[first : first + CHUNK], wanted)
        out.append([int(found.drawn.token[0])])
    wanted = slots.wanted(chosen(0, B), own)
    done = lambda said: len(said) >= max_tokens or any(token in stop_tokens for token in said)
    while not all(map(done, out)):
        positions = [slots.context if done(said) else len(p) + len(said) - 1 for p, said in zip(prompts, out)]
        drawn = slots.decode([said[-1:] for said in out], positions, wanted, STEPS)
        for said, more, position in zip(out, drawn.token.T.tolist(), positions):
            if position < slots.context:
                said += more
    return [_until(said[:max_tokens], stop_tokens) for said in out]


def _until(said: list[int], stop_tokens: Sequence[int]) -> list[int]:
    return said[: min((said.index(token) for token in stop_tokens if token in said), default=None)]


def _check_prompts(prompts: Sequence[Sequence[int]], architecture: Architecture, max_tokens: int) -> None:
    if not prompts or any(len(prompt) == 0 for prompt in prompts):
        raise UserError("a prompt is empty.", "generation continues at least one token.", "begin with the begin token")
    if any(not 0 <= token < architecture.vocab_size for prompt in prompts for token in prompt):
        raise UserError(
            "a prompt holds a token the model does not have.",
            f"tokens are 0 to {architecture.vocab_size - 1}.",
            "encode it with the run's own tokenizer",
        )
    if max_tokens < 0:
        raise UserError(f"{max_tokens} tokens.", "the number of tokens is not negative.", "--max-tokens 100")


def _check_adapters(chosen: Sequence[int], available: int) -> None:
    wrong = [slot for slot in chosen if not -1 <= slot < available]
    if wrong:
        raise UserError(
            f"a sequence asks for the adapter in slot {wrong[0]}.",
            f"there are {available} at hand, from 0 on; -1 is the base alone.",
            "one of these.",
        )
