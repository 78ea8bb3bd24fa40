"""What a text has to be: JSON of a schema, or a grammar, followed token by token with llguidance.

The grammar is over bytes as the tokenizer's pieces have them, before escapes are undone (pomona/data/tokenizer.py). One
escape stands for a NUL, which JSON does not allow, so no escape may be written under a grammar: that costs the private
characters U+E000 to U+EFFF, whose first byte in UTF-8 is that of the escape.
"""

import json
from typing import Any

import numpy as np

from pomona.core.errors import UserError
from pomona.data.tokenizer import BEGIN, END, ESCAPE, Tokenizer

ESCAPE_BYTE = ESCAPE.encode()[:1]


class Grammars:
    """A tokenizer as llguidance needs it."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int | None = None) -> None:
        """
        Args:
            vocab_size: the model's, which may be larger than the tokenizer's: tokens that are no text never follow.
        """
        import llguidance

        self.sizes = tokenizer.vocab_size, max(tokenizer.vocab_size, vocab_size or 0)
        self._llguidance = llguidance
        self._tokens = llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Pieces(tokenizer)))

    def check(self, grammar: str) -> None:
        """Raises `UserError` where a grammar cannot be compiled."""
        matcher = self._llguidance.LLMatcher(self._tokens, grammar, log_level=0)
        if matcher.is_error():
            problem = matcher.get_error().partition("\n")[0].strip()
            raise UserError(
                f"the schema cannot be compiled: {problem}.",
                "a schema is JSON Schema that a grammar can follow.",
                "a schema without what the message names.",
            )

    def follow(self, grammar: str) -> "Follower":
        """Begins a text of a grammar that `check` has let pass."""
        return Follower(self._llguidance.LLMatcher(self._tokens, grammar, log_level=0), *self.sizes)


class Follower:
    """Where in its grammar a text is."""

    def __init__(self, matcher: Any, tokens: int, vocab_size: int) -> None:
        self._matcher = matcher
        self._mask = np.zeros(-(-vocab_size // 32), np.int32)
        self._own = self._mask[: -(-tokens // 32)]

    def mask(self) -> np.ndarray:
        """int32 [V / 32]: a bit for each token that may come next; the end among them where the text may end."""
        self._matcher.unsafe_compute_mask_ptr(self._own.ctypes.data, self._own.nbytes)
        if self._matcher.is_error():
            raise UserError(
                f"the schema cannot be followed: {self._matcher.get_error().partition(chr(10))[0]}.",
                "a grammar has limits of size.",
                "a smaller schema",
            )
        return self._mask

    def take(self, token: int) -> bool:
        """Goes on by a token; True where nothing can follow it."""
        self._matcher.consume_token(token)
        return self._matcher.is_stopped()


def json_grammar(schema: Any) -> str:
    """Any JSON object for `True`; otherwise what a schema describes. Without white space that nobody asked for.

    Raises:
        UserError: the schema is no JSON object.
    """
    import llguidance

    if not isinstance(schema, dict | bool):
        raise UserError("the schema is no object.", "JSON Schema is an object.", '{"type": "object"}')
    text = json.dumps({"type": "object"} if schema is True else schema)
    return llguidance.LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_flexible": False})


def lark_grammar(text: str) -> str:
    """A grammar in llguidance's form of Lark."""
    import llguidance

    return llguidance.LLMatcher.grammar_from_lark(text)


class _Pieces:
    """The vocabulary in bytes, with what may not be written as special tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        pieces = tokenizer.pieces()
        self.eos_token_id, self.bos_token_id = END, BEGIN
        self.special_token_ids = [i for i, piece in enumerate(pieces) if not piece or ESCAPE_BYTE in piece]
        special = set(self.special_token_ids)
        self.tokens = [f"<|{i}|>".encode() if i in special else piece for i, piece in enumerate(pieces)]
        self._encode = tokenizer.encode

    def __call__(self, text: bytes | str) -> list[int]:
        return self._encode(text.decode() if isinstance(text, bytes) else text)
