"""A model on a device: open a file, run tokens, continue text.

    model = load("model.pom")
    for piece in model.stream("def main():"): print(piece, end="")
    model.score("some text")           # nats of every token

Shapes: T tokens, V vocabulary.
"""

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pomona.core.errors import UserError
from pomona.core.machine import usable_cores
from pomona.data.stream import stream_text
from pomona.data.tokenizer import BEGIN, MODEL_FILE, Tokenizer, load_tokenizer
from pomona.device.adapter import DeviceAdapter, read_adapter
from pomona.device.file import DeviceFile, read_file, verify
from pomona.device.session import DEFAULT_CONTEXT, Engine, Session, instruction_sets
from pomona.device.speculate import Drafter, generate
from pomona.model.sampling import Sampling


@dataclasses.dataclass(frozen=True)
class DeviceModel:
    """An open model; sessions share its weights."""

    file: DeviceFile
    tokenizer: Tokenizer

    def engine(self, threads: int | None = None, instruction_set: str = "") -> Engine:
        """The threads that compute, for any number of sessions.

        Args:
            threads: those that the process may use, by default.
            instruction_set: one of `instruction_sets()`; the first of them by default.

        Raises:
            UserError: an instruction set that is not here, or no threads.
        """
        return Engine(
            self.file,
            usable_cores() if threads is None else threads,
            instruction_set or instruction_sets()[0],
        )

    def open(
        self,
        context: int = DEFAULT_CONTEXT,
        threads: int | None = None,
        instruction_set: str = "",
        adapter: DeviceAdapter | None = None,
    ) -> Session:
        """One session with an engine of its own; see `engine` and `Engine.open`."""
        return self.engine(threads, instruction_set).open(context, adapter)

    def adapter(self, path: str | Path) -> DeviceAdapter:
        """Reads an adapter for this model; sessions may share it.

        Raises:
            UserError: it belongs to another base, or is damaged.
        """
        return read_adapter(Path(path), self.file)

    def encode(self, text: str) -> list[int]:
        """Token ids of the beginning of a document."""
        return [BEGIN, *self.tokenizer.encode(text)]

    def stream(
        self,
        prompt: str,
        max_tokens: int = 100,
        sampling: Sampling | None = None,
        seed: int = 0,
        stops: Sequence[str] = (),
        drafter: Drafter | None = None,
        **options: Any,
    ) -> Iterator[str]:
        """The text that follows a prompt, as it comes, up to one of `stops`; `options` are those of `open`.

        Raises:
            UserError: as `open` and `Session.generate`.
        """
        tokens = self.encode(prompt)
        session = self.open(options.pop("context", len(tokens) + max_tokens), **options)
        if drafter is None:
            said = session.generate(tokens, max_tokens, sampling, seed)
        else:
            said = generate(session, tokens, drafter, max_tokens, sampling, seed)
        yield from stream_text(self.tokenizer, said, stops)

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


def load_drafter(speculate: str, tokenizer: Tokenizer) -> DeviceModel:
    """The smaller model of a file, which guesses what a model with this tokenizer says.

    Args:
        speculate: as an option has it: the path of a device file.

    Raises:
        UserError: it is none, is damaged, or has another tokenizer.
    """
    if not Path(speculate).is_file():
        raise UserError(
            f"--speculate {speculate}.", "it is none, lookup, or the path of a device file.", "--speculate lookup"
        )
    smaller = load(speculate, check=True)
    if smaller.tokenizer.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"{speculate} has another tokenizer than the model.",
            "a guess is a token of both models.",
            "a model that was trained with the same tokenizer, or --speculate lookup",
        )
    return smaller
