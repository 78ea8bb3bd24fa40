"""An exported file is the same model in llama.cpp, by stored answers about the very bytes that we write."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from make_llama_reference import TEXTS_THERE, export
from reference_models import PROMPTS, SHAPES, STORED, model, our_logits, tokenizer

from pomona.data.tokenizer import BEGIN

ANOTHER_WAY = ("<n>", "\u2581", "\ue000", "\x00")
"""What SentencePiece cannot carry as it is. We escape it; llama.cpp takes it as text, or for a space."""


@pytest.fixture(scope="module")
def stored():
    return json.loads((STORED / "llama.json").read_text())


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_logits_are_what_llama_cpp_said(name, stored, tmp_path):
    _, digest = export(name, tmp_path)
    assert stored[name]["file_sha256"] == digest, "other bytes: run make_llama_reference.py again"
    logits = np.load(STORED / "llama.npz")[name]
    assert logits.std() > 0.5, "flat logits would compare nothing"
    np.testing.assert_allclose(our_logits(model(name), PROMPTS[0]), logits, atol=1e-4)


def test_token_ids_and_texts_are_what_llama_cpp_said(stored):
    assert stored["tokenizer"] == tokenizer().fingerprint
    assert [text for text, *_ in stored["texts"]] == list(TEXTS_THERE)
    for text, ids, back in stored["texts"]:
        same = [BEGIN, *tokenizer().encode(text)] == ids
        assert same == (not any(each in text for each in ANOTHER_WAY)), repr(text)
        assert bytes.fromhex(back).decode() == text.replace("\u2581", " ")
