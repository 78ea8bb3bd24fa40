"""An exported model is the same model in `transformers`: by stored values here, live under the marker `peers`."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from make_reference import hf_greedy, hf_logits, load_peer
from reference_models import PROMPTS, SHAPES, STORED, TEXTS, digest, model, our_greedy, our_logits, tokenizer

from pomona.data.tokenizer import BEGIN, MODEL_FILE
from pomona.export import hf
from pomona.export.hf import export_hf, import_hf
from pomona.train.load import load_model


@pytest.fixture(scope="module")
def stored():
    return json.loads((STORED / "transformers.json").read_text())


@pytest.fixture(params=sorted(SHAPES))
def one(request):
    return model(request.param)


def test_logits_and_greedy_text_are_what_transformers_said(stored, one):
    expected = stored[one.run.name]
    assert expected["class"] == "Qwen3ForCausalLM"
    assert expected["weights_sha256"] == digest(one), "other weights: run make_reference.py again"
    logits = np.load(STORED / "transformers.npz")[one.run.name]
    assert logits.std() > 0.5, "flat logits would compare nothing"
    np.testing.assert_allclose(our_logits(one, PROMPTS[0]), logits, atol=1e-4)
    assert our_greedy(one, PROMPTS) == expected["greedy"]


def test_token_ids_are_what_transformers_said(stored):
    assert stored["tokenizer"] == tokenizer().fingerprint
    assert [text for text, _ in stored["texts"]] == list(TEXTS)
    for text, ids in stored["texts"]:
        assert [BEGIN, *tokenizer().encode(text)] == ids, repr(text)


@pytest.mark.peers
def test_logits_and_greedy_text_live(one, tmp_path):
    export_hf(one, tmp_path / "out")
    peer = load_peer(tmp_path / "out")
    assert type(peer).__name__ == "Qwen3ForCausalLM"
    for prompt in PROMPTS:
        np.testing.assert_allclose(our_logits(one, prompt), hf_logits(peer, prompt), atol=1e-4)
    assert our_greedy(one, PROMPTS, 32) == [hf_greedy(peer, prompt, 32) for prompt in PROMPTS]


@pytest.mark.peers
def test_the_tokenizer_live(tmp_path):
    from transformers import AutoTokenizer

    export_hf(model("gqa"), tmp_path / "out")
    peer = AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in TEXTS:
        ids = peer(text)["input_ids"]
        assert ids == [BEGIN, *tokenizer().encode(text)], repr(text)
        assert peer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.peers
def test_shards_and_bfloat16_live(tmp_path, monkeypatch):
    one = model("mha")
    export_hf(one, tmp_path / "rounded", dtype="bfloat16")
    assert next(load_peer(tmp_path / "rounded").parameters()).numel()
    np.testing.assert_allclose(
        hf_logits(load_peer(tmp_path / "rounded"), PROMPTS[0]), our_logits(one, PROMPTS[0]), atol=0.5
    )
    monkeypatch.setattr(hf, "SHARD_BYTES", 20_000)
    export_hf(one, tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 3
    np.testing.assert_allclose(
        hf_logits(load_peer(tmp_path / "shards"), PROMPTS[0]), our_logits(one, PROMPTS[0]), atol=1e-4
    )


@pytest.mark.peers
def test_a_folder_that_transformers_wrote_comes_in(one, tmp_path):
    export_hf(one, tmp_path / "out")
    peer = load_peer(tmp_path / "out")
    peer.save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / MODEL_FILE).write_bytes((STORED / MODEL_FILE).read_bytes())
    import_hf(tmp_path / "theirs", tmp_path / "run")
    back = load_model(tmp_path / "run")
    np.testing.assert_allclose(our_logits(back, PROMPTS[0]), hf_logits(peer, PROMPTS[0]), atol=1e-4)
