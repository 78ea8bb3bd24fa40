"""A model on a device: open a file, run tokens, continue text.

    model = load("model.pom")
    for piece in model.stream("def main():"): print(piece, end="")
    model.score("some text")           # nats of every token

Shapes: T tokens, V vocabulary.
"""

import dataclasses
import os
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from ctypes import c_float, c_int32
from pathlib import Path
from typing import Any

import numpy as np

from pomona.core.errors import UserError
from pomona.data.tokenizer import BEGIN, END, MODEL_FILE, Tokenizer, load_tokenizer
from pomona.device import library
from pomona.device.file import DeviceFile, read_file, verify
from pomona.device.portable import PortableSession
from pomona.device.sample import draw
from pomona.model.sampling import Sampling, check_sampling

PORTABLE = "numpy"
DEFAULT_CONTEXT = 4096


@dataclasses.dataclass(frozen=True)
class DeviceModel:
    """An open model; sessions share its weights."""

    file: DeviceFile
    tokenizer: Tokenizer

    def open(self, context: int = DEFAULT_CONTEXT, threads: int | None = None, instruction_set: str = "") -> "Session":
        """Room for one sequence of `context` tokens.

        Args:
            threads: those that the process may use, by default.
            instruction_set: one of `instruction_sets()`; the first of them by default.

        Raises:
            UserError: an instruction set that is not here, no threads, no context, or no memory for it.
        """
        return Session(self, context, threads or len(os.sched_getaffinity(0)), instruction_set or instruction_sets()[0])

    def encode(self, text: str) -> list[int]:
        """Token ids of the beginning of a document."""
        return [BEGIN, *self.tokenizer.encode(text)]

    def stream(
        self, prompt: str, max_tokens: int = 100, sampling: Sampling | None = None, seed: int = 0, **options: Any
    ) -> Iterator[str]:
        """The text that follows a prompt, as it comes; `options` are those of `open`.

        Raises:
            UserError: as `open` and `Session.generate`.
        """
        tokens = self.encode(prompt)
        context = options.pop("context", len(tokens) + max_tokens)
        session, said, told = self.open(context, **options), [], ""
        for token in session.generate(tokens, max_tokens, sampling, seed):
            said.append(token)
            text = self.tokenizer.decode(said)
            if not text.endswith("\ufffd"):  # the rest of a character is still to come
                yield text[len(told) :]
                told = text
        yield self.tokenizer.decode(said)[len(told) :]

    def score(self, text: str, **options: Any) -> np.ndarray:
        """float64 [T]: -log p of every token of a text, given those before it; `options` are those of `open`."""
        tokens = self.encode(text)
        session = self.open(options.pop("context", len(tokens)), **options)
        logits_TV = session.advance(tokens[:-1], every=True).astype(np.float64) if len(tokens) > 1 else np.zeros((0, 1))
        top = logits_TV.max(axis=-1, initial=-np.inf)
        normalizer = top + np.log(np.sum(np.exp(logits_TV - top[:, None]), axis=-1))
        return normalizer - logits_TV[np.arange(len(tokens) - 1), tokens[1:]]


def load(path: str | Path, check: bool = False) -> DeviceModel:
    """Opens a device file in milliseconds; with `check`, reads all of it against its checksums.

    Raises:
        UserError: the file cannot be read, or is damaged.
    """
    file = read_file(Path(path))
    if check:
        verify(file)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / MODEL_FILE).write_bytes(file.tokenizer)
        tokenizer = load_tokenizer(Path(folder))
    return DeviceModel(file, tokenizer)


def instruction_sets() -> tuple[str, ...]:
    """What a session can compute with here, best first; `numpy` where nothing was compiled is the last."""
    return (*library.instruction_sets(), PORTABLE)


class Session:
    """One sequence: its keys and values, and the threads that compute. Not to be used by two callers at once."""

    def __init__(self, model: DeviceModel, context: int, threads: int, instruction_set: str) -> None:
        self.model, self.context, self.instruction_set = model, context, instruction_set
        self._check(context, threads, instruction_set)
        self._portable = PortableSession(model.file, context) if instruction_set == PORTABLE else None
        if self._portable is None:
            self._native, self._model = library.native(), library.as_model(model.file)
            self._handle = self._native.pomona_open(self._model, context, threads, instruction_set.encode())
            if not self._handle:
                raise UserError(
                    f"there is no memory for a context of {context} tokens.",
                    "keys and values of all tokens are kept while a session is open.",
                    f"a context of {max(1, context // 4)}",
                )
            weakref.finalize(self, self._native.pomona_close, self._handle)

    @property
    def length(self) -> int:
        """Tokens that are kept."""
        return self._portable.length if self._portable else self._native.pomona_length(self._handle)

    def advance(self, tokens: Sequence[int], every: bool = False) -> np.ndarray:
        """Runs more tokens; float32 logits [V] after the last one, or [T, V] after each.

        Raises:
            UserError: no tokens, tokens that the model does not have, no room for them, or numbers that are not finite.
        """
        V = self.model.file.architecture.vocab_size
        ids = np.asarray(tokens, np.int64)
        if not len(ids) or ids.min() < 0 or ids.max() >= V:
            raise UserError(
                "there are no tokens to run." if not len(ids) else f"token {ids.max()} or {ids.min()} is none.",
                f"tokens are 0 to {V - 1}, one at least.",
                "text encoded by the model's own tokenizer",
            )
        if self.length + len(ids) > self.context:
            raise UserError(
                f"{self.length} tokens are kept and {len(ids)} are to come.",
                f"this session has room for {self.context}.",
                f"a context of {self.length + len(ids)}, or forget() the older ones.",
            )
        if self._portable:
            logits = self._portable.advance(tokens, every)
        else:
            logits = np.empty((len(ids), V) if every else V, np.float32)
            narrow = np.ascontiguousarray(ids, np.int32)
            failed = self._native.pomona_advance(
                *(self._handle, library.pointer(narrow, c_int32), len(narrow), int(every)),
                library.pointer(logits, c_float),
            )
            assert not failed, "there is room, as was asked above"
        if not np.isfinite(logits).all():
            raise UserError(
                "the model's logits are not finite numbers.",
                "a sound model gives every token a probability.",
                "pomona export RUN --format pomona, from a checkpoint before training diverged.",
            )
        return logits

    def forget(self, length: int) -> None:
        """Keeps the first `length` tokens alone, so that another text with the same beginning goes on from there."""
        if self._portable:
            self._portable.length = max(0, min(length, self._portable.length))
        else:
            self._native.pomona_forget(self._handle, length)

    def generate(
        self, tokens: Sequence[int], max_tokens: int = 100, sampling: Sampling | None = None, seed: int = 0
    ) -> Iterator[int]:
        """The tokens that follow, up to `max_tokens`, the end of a document or the end of the context.

        Raises:
            UserError: as `advance`, or sampling values out of range.
        """
        sampling, rng = sampling or Sampling(), np.random.default_rng(seed)
        check_sampling(sampling)
        waiting = list(tokens)
        for _ in range(max_tokens):
            if self.length + len(waiting) > self.context and self.length:
                return
            token = draw(self.advance(waiting), sampling, rng)
            if token == END:
                return
            yield token
            waiting = [token]

    def _check(self, context: int, threads: int, instruction_set: str) -> None:
        if instruction_set not in instruction_sets():
            raise UserError(
                f"this processor has no {instruction_set!r}.",
                f"it computes with {', '.join(instruction_sets())}.",
                f"--instruction-set {instruction_sets()[0]}",
            )
        if context < 1 or threads < 1:
            raise UserError(
                f"a context of {context} tokens and {threads} threads.", "there is one of each at least.", "--threads 1"
            )
