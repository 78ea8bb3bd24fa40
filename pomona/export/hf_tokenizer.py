"""Our SentencePiece model as a Hugging Face `tokenizer.json`: the same ids for the same text.

SentencePiece's BPE joins the pair whose piece has the best score; `tokenizers` joins the pair that stands first in a
list of merges. So the merges are all ways to cut a piece into two pieces, ordered by the piece's score.
"""

from typing import Any

import sentencepiece

from pomona.data.tokenizer import BEGIN, END, ESCAPES, NEWLINE, SPACE_MARK, Tokenizer

UNKNOWN = 0


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of `tokenizer.json`."""
    processor = tokenizer.processor
    pieces = [processor.id_to_piece(i) for i in range(processor.vocab_size())]
    escape = [_replace(plain, escaped) for plain, escaped in ESCAPES]
    unescape = [_replace(escaped, plain) for plain, escaped in reversed(ESCAPES)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_special(i, pieces[i]) for i in (UNKNOWN, BEGIN, END)],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [*escape, _replace("\n", NEWLINE), _replace(" ", SPACE_MARK)],
        },
        # The newline piece stands alone in SentencePiece; cut out here, `ignore_merges` finds it whole.
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": NEWLINE},
            "behavior": "Isolated",
            "invert": False,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [_begin(pieces[BEGIN], 0), _sequence("A", 0)],
            "pair": [_begin(pieces[BEGIN], 0), _sequence("A", 0), _begin(pieces[BEGIN], 1), _sequence("B", 1)],
            "special_tokens": {pieces[BEGIN]: {"id": pieces[BEGIN], "ids": [BEGIN], "tokens": [pieces[BEGIN]]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                _replace(SPACE_MARK, " "),
                _replace(NEWLINE, "\n"),
                *unescape,
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": pieces[UNKNOWN],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": True,
            "ignore_merges": True,
            "vocab": {piece: i for i, piece in enumerate(pieces)},
            "merges": merges(processor),
        },
    }


def merges(processor: sentencepiece.SentencePieceProcessor) -> list[list[str]]:
    """Every pair of pieces that makes a piece, the best-scored piece first."""
    ids = {processor.id_to_piece(i): i for i in range(processor.vocab_size()) if _is_normal(processor, i)}
    found = []
    for piece, i in ids.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in ids and right in ids:
                found.append((-processor.get_score(i), ids[left], ids[right], left, right))
    return [[left, right] for *_, left, right in sorted(found)]


def _is_normal(processor: sentencepiece.SentencePieceProcessor, i: int) -> bool:
    special = processor.is_control(i) or processor.is_unknown(i) or processor.is_byte(i)
    return not special and processor.id_to_piece(i) != NEWLINE


def _replace(old: str, new: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def _special(i: int, content: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": i, "content": content, **flags}


def _begin(piece: str, kind: int) -> dict[str, Any]:
    return {"SpecialToken": {"id": piece, "type_id": kind}}


def _sequence(name: str, kind: int) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": kind}}
