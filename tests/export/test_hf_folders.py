"""Folders out and in again: bit for bit, whole or not at all, and every bad one refused in one sentence."""

import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))
from reference_models import PROMPTS, SHAPES, STORED, model, our_greedy

from pomona.core.errors import UserError
from pomona.data.tokenizer import MODEL_FILE
from pomona.export import hf
from pomona.export.hf import export_hf, import_hf
from pomona.train.load import load_model


@pytest.fixture
def exported(tmp_path):
    export_hf(model("gqa"), tmp_path / "out")
    return tmp_path / "out"


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("name", sorted(SHAPES))
@pytest.mark.parametrize("shard_bytes", [10_000, 10**9])
def test_out_and_in_again_is_bit_for_bit(name, shard_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(hf, "SHARD_BYTES", shard_bytes)
    one = model(name)
    export_hf(one, tmp_path / "out")
    import_hf(tmp_path / "out", tmp_path / "run")
    back = load_model(tmp_path / "run")
    assert jax.tree.all(jax.tree.map(np.array_equal, back.params, one.params))
    assert back.run.architecture == one.run.architecture
    assert back.stage.rope_base == one.stage.rope_base
    assert back.tokenizer.fingerprint == one.tokenizer.fingerprint
    assert our_greedy(back, PROMPTS[:1], 4) == our_greedy(one, PROMPTS[:1], 4)


def test_the_index_of_shards_names_every_tensor(tmp_path, monkeypatch):
    monkeypatch.setattr(hf, "SHARD_BYTES", 10_000)
    export_hf(model("mha"), tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    held = {}
    for path in (tmp_path / "out").glob("*.safetensors"):
        tensors = load_file(path)
        held |= dict.fromkeys(tensors, path.name)
        assert sum(tensor.nbytes for tensor in tensors.values()) <= 48 * 400 * 4, "the largest tensor"
    assert index["weight_map"] == held
    assert not list((tmp_path / "out").glob("part-*"))


def test_what_is_there_already_stays(exported):
    before = {path.name: path.read_bytes() for path in exported.iterdir()}
    with pytest.raises(UserError, match="exists"):
        export_hf(model("mha"), exported)
    with pytest.raises(UserError, match="exists"):
        import_hf(exported, exported)
    assert {path.name: path.read_bytes() for path in exported.iterdir()} == before


def remove_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file({key: tensor for key, tensor in tensors.items() if "q_norm" not in key}, folder / "model.safetensors")


BAD = {
    "another model": (lambda f: edit_config(f, model_type="llama"), "model_type = 'llama'"),
    "an output layer of its own": (lambda f: edit_config(f, tie_word_embeddings=False), "tie_word_embeddings = False"),
    "another shape": (lambda f: edit_config(f, intermediate_size=100), r"gate_proj.weight has the shape \(96, 32\)"),
    "no shape": (
        lambda f: (f / "config.json").write_text('{"model_type": "qwen3", "tie_word_embeddings": true}'),
        "has no 'rope_theta'",
    ),
    "a layer too many": (lambda f: edit_config(f, num_hidden_layers=3), "has no tensor 'model.layers.2"),
    "a tensor too few": (remove_tensor, "has no tensor 'model.layers.0.self_attn.q_norm.weight'"),
    "half a file": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:5000]),
        "model.safetensors cannot be read",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no tensor"),
    "no tokenizer": (lambda f: (f / MODEL_FILE).unlink(), f"has no {MODEL_FILE}"),
    "a tokenizer that is none": (lambda f: (f / MODEL_FILE).write_bytes(b"text"), MODEL_FILE),
    "a tokenizer that is too large": (lambda f: edit_config(f, vocab_size=300), "embed_tokens|vocab"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
    "a config that is no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_folder_is_refused_and_leaves_nothing(case, exported, tmp_path):
    spoil, message = BAD[case]
    spoil(exported)
    with pytest.raises(UserError, match=message) as caught:
        import_hf(exported, tmp_path / "run")
    assert len(str(caught.value).splitlines()) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_an_imported_model_does_not_need_its_source(exported, tmp_path):
    import_hf(exported, tmp_path / "run")
    shutil.rmtree(exported)
    assert our_greedy(load_model(tmp_path / "run"), PROMPTS, 4) == our_greedy(model("gqa"), PROMPTS, 4)
    assert (tmp_path / "run" / "tokenizer" / MODEL_FILE).read_bytes() == (STORED / MODEL_FILE).read_bytes()
