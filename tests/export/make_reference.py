"""Writes what stock `transformers` answers for the reference models: the values the tests without PyTorch compare with.

    make test-peers && PYTHONPATH=tests/export .venv/bin/python tests/export/make_reference.py

Run again only when the models of `reference_models.py` change; the tests notice when the stored values are not theirs.
"""

import itertools
import json
import tempfile
from pathlib import Path

import numpy as np
from reference_models import PROMPTS, SHAPES, STORED, TEXTS, VOCAB, digest, model, tokenizer

from pomona.data import stdlib
from pomona.data.tokenizer import MODEL_FILE, train_tokenizer
from pomona.export.hf import export_hf


def hf_logits(peer, tokens):
    """[T, V] of one prompt."""
    import torch

    with torch.no_grad():
        return peer(torch.tensor([tokens])).logits[0].numpy()


def hf_greedy(peer, prompt, max_tokens=16):
    """Ids after the prompt."""
    import torch

    out = peer.generate(torch.tensor([prompt]), max_new_tokens=max_tokens, do_sample=False, eos_token_id=None)
    return out[0].tolist()[len(prompt) :]


def load_peer(folder):
    """The exported folder in `transformers`, float32."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def main():
    """Exports each model, asks `transformers`, stores the answers."""
    from transformers import AutoTokenizer

    STORED.mkdir(exist_ok=True)
    if not (STORED / MODEL_FILE).exists():
        plain = (text for _, text in stdlib.documents() if text.isascii())
        train_tokenizer(itertools.islice(plain, 40), VOCAB, 500_000, STORED)
    about, logits = {}, {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in SHAPES:
            one, folder = model(name), Path(scratch) / name
            export_hf(one, folder)
            peer = load_peer(folder)
            greedy = [hf_greedy(peer, prompt) for prompt in PROMPTS]
            about[name] = {"weights_sha256": digest(one), "greedy": greedy, "class": type(peer).__name__}
            logits[name] = hf_logits(peer, PROMPTS[0])
        peer_tokenizer = AutoTokenizer.from_pretrained(folder)
        about["texts"] = [[text, peer_tokenizer(text)["input_ids"]] for text in TEXTS]
        about["tokenizer"] = tokenizer().fingerprint
    (STORED / "transformers.json").write_text(json.dumps(about, ensure_ascii=True) + "\n")
    np.savez_compressed(STORED / "transformers.npz", **logits)


if __name__ == "__main__":
    main()
