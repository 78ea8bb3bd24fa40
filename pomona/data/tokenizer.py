"""The tokenizer: SentencePiece BPE as AFM used it (AFM report, section 3.1).

No Unicode normalisation, every digit its own token, byte fallback, newline a piece of its own: any text comes back
exactly. Ids: 0 unknown (never produced), 1 begin, 2 end, as in every Llama-like export; padding needs no id, since
segment 0 marks it.
"""

import dataclasses
import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from pomona.core.errors import UserError
from pomona.core.files import write_bytes

MODEL_FILE = "tokenizer.model"
NEWLINE = "<n>"
# SentencePiece cannot carry three things as they are: the newline (it cuts its input there), its own marker for a
# space, and our newline piece where a text really says "<n>". The last two are written with a private escape.
SPACE_MARK = "\u2581"
ESCAPE = "\ue000"
ESCAPES = ((ESCAPE, ESCAPE + "0"), (SPACE_MARK, ESCAPE + "1"), (NEWLINE, ESCAPE + "2"), ("\x00", ESCAPE + "3"))
BEGIN, END = 1, 2


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A loaded tokenizer; see the functions of the same module for training one."""

    processor: sentencepiece.SentencePieceProcessor
    fingerprint: str
    path: Path

    @property
    def vocab_size(self) -> int:
        return self.processor.vocab_size()

    def encode(self, text: str) -> list[int]:
        """Token ids, without begin and end."""
        return self.processor.encode(_escape(text))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """As `encode`, for many texts in one call, on one thread."""
        return self.processor.encode([_escape(text) for text in texts], num_threads=1)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; begin and end vanish, and bytes that are no UTF-8 become U+FFFD."""
        return unescape(self.decode_bytes(ids).decode("utf-8", errors="replace"))

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The raw bytes of token ids, escapes as they are; ids beyond the vocabulary stand for none."""
        pieces = self.pieces()
        return b"".join(pieces[i] for i in ids if i < len(pieces))

    def pieces(self) -> list[bytes]:
        """The bytes each id stands for; control tokens stand for none."""
        cached = self.__dict__.get("_pieces")
        if cached is None:
            cached = [_piece_bytes(self.processor, i) for i in range(self.vocab_size)]
            object.__setattr__(self, "_pieces", cached)
        return cached

    def token_bytes(self) -> np.ndarray:
        """int32 [V]: the number of text bytes each token stands for, for bits per byte."""
        return np.array([len(piece) for piece in self.pieces()], np.int32)


def train_tokenizer(texts: Iterable[str], vocab_size: int, sample_bytes: int, folder: Path) -> None:
    """Trains on the first `sample_bytes` of `texts` and writes `tokenizer.model` into `folder`, atomically.

    Raises:
        UserError: the texts are too few for the vocabulary.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(texts, sample_bytes),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,  # indentation is one token: a third fewer tokens of Python
            user_defined_symbols=[NEWLINE],
            character_coverage=0.9999,
            max_sentence_length=1 << 20,
            num_threads=2,  # the result does not depend on it
            minloglevel=2,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"a vocabulary of {vocab_size} could not be trained: {_reason(error)}.",
            "the corpus has to hold more distinct pieces than the vocabulary; 259 pieces are taken by bytes "
            "and control tokens.",
            "a smaller --data.tokenizer.vocab-size (and --architecture.vocab-size), or more text.",
        ) from error
    write_bytes(folder / MODEL_FILE, model.getvalue())


def load_tokenizer(folder: Path) -> Tokenizer:
    """Reads `tokenizer.model` from a folder.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = folder / MODEL_FILE
    try:
        content = path.read_bytes()
        processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    except (OSError, RuntimeError, UnicodeDecodeError) as error:
        raise UserError(
            f"no tokenizer can be read from {path}: {error}.",
            f"a tokenizer is a folder with a SentencePiece model named {MODEL_FILE}.",
            "the folder `tokenizer` of a run.",
        ) from error
    return Tokenizer(processor, hashlib.sha256(content).hexdigest()[:12], path)


def _escape(text: str) -> str:
    for plain, escaped in ESCAPES:
        if plain in text:
            text = text.replace(plain, escaped)
    return text.replace("\n", NEWLINE)


def unescape(text: str) -> str:
    """A decoded text with what was written by the private escape."""
    if ESCAPE in text:
        for plain, escaped in reversed(ESCAPES):
            text = text.replace(escaped, plain)
    return text


def _lines(texts: Iterable[str], limit: int) -> Iterator[str]:
    """Training sentences: lines with their newline piece, until `limit` bytes are out."""
    used = 0
    for text in texts:
        for line in _escape(text).split(NEWLINE):
            if line:
                used += len(line.encode())
                yield line
        if used >= limit:
            return


def _piece_bytes(processor: sentencepiece.SentencePieceProcessor, token: int) -> bytes:
    if processor.is_control(token) or processor.is_unknown(token):
        return b""
    piece = processor.id_to_piece(token)
    if processor.is_byte(token):
        return bytes([int(piece[3:5], 16)])
    return b"\n" if piece == NEWLINE else piece.replace(SPACE_MARK, " ").encode()


def _reason(error: Exception) -> str:
    return str(error).split("] ")[-1].strip().rstrip(".") or "the corpus is empty"
