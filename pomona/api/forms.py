"""Answers in OpenAI's forms, whole and in pieces."""

import base64
import time
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np

from pomona.api.answers import Entry, Piece
from pomona.data.tokenizer import Tokenizer
from pomona.serve.messages import Likely


def head(kind: str, prefix: str, model: str) -> dict[str, Any]:
    """What every piece of an answer begins with."""
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def usage(prompt: int, cached: int, said: int) -> dict[str, Any]:
    """How many tokens it took."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": said,
        "total_tokens": prompt + said,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def usage_of(found: Sequence[Piece], prompts: Sequence[int]) -> dict[str, Any]:
    """Of some choices; a prompt counts once, whatever the number of its choices."""
    each = max(1, len(found) // len(prompts))
    cached = sum(piece.prompted.cached for piece in found[::each] if piece.prompted)
    return usage(sum(prompts), cached, sum(piece.tokens for piece in found))


def chat_logprobs(tokenizer: Tokenizer, entries: Sequence[Entry]) -> dict[str, Any]:
    """As chats have it."""

    def one(token: int, logprob: float) -> dict[str, Any]:
        content = tokenizer.decode_bytes((token,))
        return {"token": content.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(content)}

    def entry(own: Entry) -> dict[str, Any]:
        assert own.likely is not None
        others = [one(token, logprob) for token, logprob in zip(own.likely.tokens, own.likely.logprobs)]
        return one(own.token, own.likely.logprob) | {"top_logprobs": others}

    return {"content": [entry(own) for own in entries], "refusal": None}


def plain_logprobs(
    tokenizer: Tokenizer, tokens: Sequence[int], likely: Sequence[Likely | None], offset: int = 0
) -> dict[str, Any]:
    """As plain completions have it; nothing is known of a token without `likely`.

    Args:
        offset: where in the text the first token begins.
    """
    texts = [tokenizer.decode_bytes((token,)).decode("utf-8", "replace") for token in tokens]
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    name = lambda token: tokenizer.decode_bytes((token,)).decode("utf-8", "replace")
    top = [one and {name(token): p for token, p in zip(one.tokens, one.logprobs)} for one in likely]
    return {
        "tokens": texts,
        "token_logprobs": [one and one.logprob for one in likely],
        "top_logprobs": top,
        "text_offset": offsets,
    }


def embedding(vector: Sequence[float], encoding: str) -> list[float] | str:
    """A vector of length 1."""
    numbers = np.array(vector, np.float32)
    numbers /= max(float(np.linalg.norm(numbers)), 1e-30)
    return numbers.tolist() if encoding == "float" else base64.b64encode(numbers.astype("<f4").tobytes()).decode()
