"""Sequences that are being computed, and the threads that compute them.

Shapes: T tokens, V vocabulary.
"""

import weakref
from collections.abc import Iterator, Sequence
from ctypes import c_float, c_int32
from typing import NamedTuple

import numpy as np

from pomona.core.errors import UserError
from pomona.core.machine import available_memory
from pomona.data.tokenizer import END
from pomona.device import library
from pomona.device.adapter import DeviceAdapter
from pomona.device.file import DeviceFile
from pomona.device.layout import padded
from pomona.device.portable import PortableSession
from pomona.device.sample import draw
from pomona.model.sampling import Sampling, check_sampling

PORTABLE = "numpy"
DEFAULT_CONTEXT = 4096


def instruction_sets() -> tuple[str, ...]:
    """What an engine can compute with here, best first; `numpy` where nothing was compiled is the last."""
    return (*library.instruction_sets(), PORTABLE)


class Part(NamedTuple):
    """Tokens that come next in a session."""

    session: "Session"
    tokens: Sequence[int]
    every: bool = False
    """Logits after each token, not only after the last."""
    hidden: bool = False
    """In place of logits, the last hidden state of each token."""


class Engine:
    """Threads, and what they compute in. Not to be used by two callers at once."""

    def __init__(self, file: DeviceFile, threads: int, instruction_set: str) -> None:
        """Raises `UserError` for an instruction set that is not here, no threads, or no memory."""
        self.file, self.threads, self.instruction_set = file, threads, instruction_set
        if instruction_set not in instruction_sets():
            raise UserError(
                f"this processor has no {instruction_set!r}.",
                f"it computes with {', '.join(instruction_sets())}.",
                f"--instruction-set {instruction_sets()[0]}",
            )
        if threads < 1:
            raise UserError(f"{threads} threads.", "there is one at least.", "--threads 1")
        self._handle = None
        if instruction_set != PORTABLE:
            self._native, self._model = library.native(), library.as_model(file)
            self._handle = self._native.pomona_engine(self._model, threads, instruction_set.encode())
            if not self._handle:
                raise UserError(
                    f"{threads} threads and their memory are not to be had.", "each has its own.", "--threads 1"
                )
            weakref.finalize(self, self._native.pomona_close_engine, self._handle)

    def open(self, context: int = DEFAULT_CONTEXT, adapter: DeviceAdapter | None = None) -> "Session":
        """Room for one sequence of `context` tokens.

        Raises:
            UserError: no context, no memory for it, or an adapter for another model.
        """
        return Session(self, context, adapter)

    def advance(self, parts: Sequence[Part]) -> list[np.ndarray]:
        """Runs the next tokens of several sessions together: what is read of the weights serves all of them.

        Returns:
            For each part float32 logits [V] after its last token, or [T, V] after each, or hidden states [T, D]; the
            same, bit for bit, as if it had been run alone.

        Raises:
            UserError: no tokens, tokens that the model does not have, no room for them, or numbers that are not finite;
                then all sessions are as before.
        """
        ids = [_checked(part, self) for part in parts]
        assert len({id(part.session) for part in parts}) == len(parts), "a session comes once"
        found = self._numpy(parts) if self._handle is None else self._compute(parts, ids)
        for part, own in zip(parts, ids):
            part.session.tokens += own.tolist()
        if not all(np.isfinite(numbers).all() for numbers in found):
            for part, own in zip(parts, ids):
                part.session.forget(part.session.length - len(own))
            raise UserError(
                "the model's logits are not finite numbers.",
                "a sound model gives every token a probability.",
                "pomona export RUN --format pomona, from a checkpoint before training diverged.",
            )
        return found

    def _compute(self, parts: Sequence[Part], ids: list[np.ndarray]) -> list[np.ndarray]:
        a = self.file.architecture
        rows = [0 if p.hidden else len(own) if p.every else 1 for p, own in zip(parts, ids)]
        felt = [len(own) if p.hidden else 0 for p, own in zip(parts, ids)]
        logits_RV = np.empty((sum(rows), a.vocab_size), np.float32)
        hidden_RD = np.empty((sum(felt), a.model_dim), np.float32)
        given = (library.Part * len(parts))()
        for place, part, own in zip(given, parts, ids):
            part.session.forget(part.session.length)  # where an interrupt came between a step and its tokens
            place.sequence, place.count = part.session.handle, len(own)
            place.wanted = library.HIDDEN if part.hidden else library.EVERY if part.every else library.LAST
            place.tokens = library.pointer(own, c_int32)
            if part.session.native_adapter is not None:
                place.adapter = part.session.native_adapter
        logits, hidden = library.pointer(logits_RV, c_float), library.pointer(hidden_RD, c_float)
        self._native.pomona_advance(self._handle, given, len(parts), logits, hidden)
        each = zip(parts, np.split(logits_RV, np.cumsum(rows)[:-1]), np.split(hidden_RD, np.cumsum(felt)[:-1]))
        return [states if part.hidden else own if part.every else own[0] for part, own, states in each]

    def _numpy(self, parts: Sequence[Part]) -> list[np.ndarray]:
        return [p.session.portable.advance(p.tokens, p.every, p.hidden) for p in parts if p.session.portable]


class Session:
    """One sequence: its tokens, their keys and values, and its adapter."""

    def __init__(self, engine: Engine, context: int, adapter: DeviceAdapter | None) -> None:
        self.engine, self.context = engine, context
        self.tokens: list[int] = []
        """Those that are kept."""
        if context < 1:
            raise UserError(f"a context of {context} tokens.", "there is one at least.", "a context of 4096")
        if kept_bytes(engine.file, context) > available_memory():
            raise _no_memory(engine.file, context)
        self.handle, self.portable = None, None
        if engine.instruction_set == PORTABLE:
            self.portable = PortableSession(engine.file, context)
        else:
            native = library.native()
            self.handle = native.pomona_sequence(engine._handle, context)
            if not self.handle:
                raise _no_memory(engine.file, context)
            weakref.finalize(self, native.pomona_close_sequence, self.handle)
        self.use(adapter)

    @property
    def length(self) -> int:
        """Tokens that are kept."""
        return len(self.tokens)

    def use(self, adapter: DeviceAdapter | None) -> None:
        """Forgets everything and goes on with an adapter, or with the bare model.

        Raises:
            UserError: the adapter was read for another model.
        """
        base = self.engine.file.about["fingerprint"]
        if adapter is not None and adapter.base != base:
            raise UserError(
                f"the adapter {adapter.name!r} belongs to the base {adapter.base}, and this base is {base}.",
                "an adapter corrects the weights it was trained on, and no others.",
                "read it with the model that it is for.",
            )
        self.forget(0)
        self.adapter = adapter
        if self.portable:
            self.portable.adapter = adapter
        self.native_adapter = library.as_adapter(adapter) if adapter is not None and self.handle else None

    def advance(self, tokens: Sequence[int], every: bool = False) -> np.ndarray:
        """Runs more tokens; see `Engine.advance`."""
        return self.engine.advance([Part(self, tokens, every)])[0]

    def forget(self, length: int) -> None:
        """Keeps the first `length` tokens alone, so that another text with the same beginning goes on from there."""
        del self.tokens[max(0, length) :]
        if self.portable:
            self.portable.length = self.length
        else:
            library.native().pomona_forget(self.handle, self.length)

    def keep(self, tokens: Sequence[int]) -> list[int]:
        """Keeps the beginning that a text shares with what is here; returns the rest of it, one token at least."""
        same = 0
        while same < min(self.length, len(tokens) - 1) and self.tokens[same] == tokens[same]:
            same += 1
        self.forget(same)
        return list(tokens[same:])

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


def kept_bytes(file: DeviceFile, context: int) -> int:
    """What keys and values of `context` tokens take."""
    a = file.architecture
    return a.num_layers * a.num_kv_heads * padded(context) * (padded(a.head_dim) + a.head_dim + 8)


def _no_memory(file: DeviceFile, context: int) -> UserError:
    needed, free = kept_bytes(file, context) / 2**30, available_memory() / 2**30
    return UserError(
        f"there is no memory for a context of {context} tokens: {needed:.1f} GiB.",
        f"keys and values of all tokens are kept while a session is open, and {free:.1f} GiB are free.",
        f"a context of {max(1, context // 4)}",
    )


def _checked(part: Part, engine: Engine) -> np.ndarray:
    V, session = engine.file.architecture.vocab_size, part.session
    assert session.engine is engine, "a session is computed by its own engine"
    ids = np.asarray(part.tokens, np.int64)
    if not len(ids) or ids.min() < 0 or ids.max() >= V:
        raise UserError(
            "there are no tokens to run." if not len(ids) else f"token {ids.max()} or {ids.min()} is none.",
            f"tokens are 0 to {V - 1}, one at least.",
            "text encoded by the model's own tokenizer",
        )
    if session.length + len(ids) > session.context:
        raise UserError(
            f"{session.length} tokens are kept and {len(ids)} are to come.",
            f"this session has room for {session.context}.",
            f"a context of {session.length + len(ids)}, or forget() the older ones.",
        )
    return np.ascontiguousarray(ids, np.int32)
