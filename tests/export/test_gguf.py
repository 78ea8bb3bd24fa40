"""The GGUF file read back by llama.cpp's own package: every tensor, every token, whole or not at all."""

import dataclasses
import errno
import sys
from pathlib import Path

import gguf
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from reference_models import PROMPTS, SHAPES, model, our_logits, tokenizer

from pomona.core.errors import UserError
from pomona.data.tokenizer import NEWLINE, SPACE_MARK
from pomona.export.gguf import export_gguf, unfit_rows, vocabulary
from pomona.model.decoder import Attention, Decoder, FeedForward, Layer
from pomona.model.presets import AFM_DEVICE, TINY

HERE = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


def read(path):
    """({name: array as [out, in]}, {name: type}, {key: value}) of a GGUF file."""
    reader = gguf.GGUFReader(path)
    arrays, types = {}, {}
    for tensor in reader.tensors:
        types[tensor.name] = tensor.tensor_type.name
        shape = tensor.shape.tolist()[::-1]  # the file counts dimensions from the fastest
        arrays[tensor.name] = np.ascontiguousarray(tensor.data).view(HERE[types[tensor.name]]).reshape(shape)
    return arrays, types, {name: field.contents() for name, field in reader.fields.items()}


def decoder(arrays, about):
    """A `Decoder` from the file alone: what a reader of the format would build."""
    layers, head = range(about["qwen3.block_count"]), about["qwen3.attention.key_length"]

    def stack(name, split=None):
        found = [arrays[f"blk.{i}.{name}.weight"].astype(np.float32).T for i in layers]
        return jnp.stack([x if split is None else x.reshape(split(*x.shape)) for x in found])

    heads = lambda rows, columns: (rows, columns // head, head)
    attention = Attention(
        query=stack("attn_q", heads),
        key=stack("attn_k", heads),
        value=stack("attn_v", heads),
        output=stack("attn_output", lambda rows, columns: (rows // head, head, columns)),
        query_norm=stack("attn_q_norm"),
        key_norm=stack("attn_k_norm"),
    )
    ffn = FeedForward(stack("ffn_gate"), stack("ffn_up"), stack("ffn_down"))
    layer = Layer(stack("attn_norm"), attention, stack("ffn_norm"), ffn)
    embedding = jnp.asarray(arrays["token_embd.weight"].astype(np.float32))
    return Decoder(embedding, layer, jnp.asarray(arrays["output_norm.weight"]))


def with_ffn(one, params, ffn_dim):
    architecture = dataclasses.replace(one.run.architecture, ffn_dim=ffn_dim)
    return dataclasses.replace(one, params=params, run=dataclasses.replace(one.run, architecture=architecture))


@pytest.mark.parametrize("name", sorted(SHAPES))
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_tensor_comes_back(name, dtype, tmp_path):
    one = model(name)
    export_gguf(one, tmp_path / "m.gguf", dtype)
    arrays, types, about = read(tmp_path / "m.gguf")
    back, here = decoder(arrays, about), np.dtype(dtype)
    assert len(arrays) == 2 + 11 * one.run.architecture.num_layers
    for key, array in arrays.items():
        assert types[key] == ("F32" if array.ndim == 1 else {"float32": "F32", "float16": "F16"}.get(dtype, "BF16"))
    for path in ("embedding", "layers.attention.query", "layers.attention.key", "layers.attention.value"):
        assert same(back, one.params, path, here)
    for path in ("layers.attention.output", "layers.ffn.gate", "layers.ffn.up", "layers.ffn.down"):
        assert same(back, one.params, path, here)
    for path in ("final_norm", "layers.attention_norm", "layers.ffn_norm", "layers.attention.query_norm"):
        assert same(back, one.params, path, np.float32), "norms keep all their digits"
    assert same(back, one.params, "layers.attention.key_norm", np.float32)


def same(back, params, path, dtype):
    for part in path.split("."):
        back, params = getattr(back, part), getattr(params, part)
    return np.array_equal(back, np.asarray(params).astype(dtype).astype(np.float32))


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_units_of_zeros_change_no_logit(name, tmp_path):
    one = model(name)
    export_gguf(one, tmp_path / "m.gguf", "float32", pad_ffn=True)
    arrays, _, about = read(tmp_path / "m.gguf")
    assert about["qwen3.feed_forward_length"] == 256 != one.run.architecture.ffn_dim
    padded = with_ffn(one, decoder(arrays, about), 256)
    np.testing.assert_allclose(our_logits(padded, PROMPTS[0]), our_logits(one, PROMPTS[0]), atol=1e-5)
    assert not arrays["blk.0.ffn_down.weight"][:, one.run.architecture.ffn_dim :].any()


def test_a_width_that_fits_is_not_padded(tmp_path):
    one = model("gqa")
    params = one.params
    wide = lambda x, axis: jnp.repeat(x, 3, axis=axis)[(slice(None),) * axis + (slice(256),)]
    ffn = FeedForward(wide(params.layers.ffn.gate, 2), wide(params.layers.ffn.up, 2), wide(params.layers.ffn.down, 1))
    params = dataclasses.replace(params, layers=dataclasses.replace(params.layers, ffn=ffn))
    export_gguf(with_ffn(one, params, 256), tmp_path / "m.gguf", "float32", pad_ffn=True)
    arrays, _, about = read(tmp_path / "m.gguf")
    assert about["qwen3.feed_forward_length"] == 256
    np.testing.assert_array_equal(arrays["blk.1.ffn_up.weight"].T, ffn.up[1])


def test_what_k_quants_cannot_store_is_named():
    assert unfit_rows(TINY, pad_ffn=False) == ["the feed-forward dimension, 704"]
    assert unfit_rows(TINY, pad_ffn=True) == []
    assert unfit_rows(AFM_DEVICE, pad_ffn=False) == ["the feed-forward dimension, 8064"]
    assert len(unfit_rows(SHAPES["mha"], pad_ffn=True)) == 2


def test_the_metadata_says_what_the_model_is(tmp_path):
    one = model("wide_heads")
    export_gguf(one, tmp_path / "m.gguf", "bfloat16")
    _, _, about = read(tmp_path / "m.gguf")
    expected = {
        "general.architecture": "qwen3",
        "general.name": "wide_heads",
        "general.file_type": gguf.LlamaFileType.MOSTLY_BF16,
        "qwen3.context_length": 64,
        "qwen3.vocab_size": 400,
        "qwen3.embedding_length": 24,
        "qwen3.block_count": 1,
        "qwen3.feed_forward_length": 40,
        "qwen3.attention.head_count": 6,
        "qwen3.attention.head_count_kv": 2,
        "qwen3.attention.key_length": 16,
        "qwen3.attention.value_length": 16,
        "qwen3.attention.layer_norm_rms_epsilon": pytest.approx(1e-3),
        "qwen3.rope.freq_base": 500_000,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.remove_extra_whitespaces": False,
    }
    assert {key: about[key] for key in expected} == expected


def test_the_pieces_are_sentencepieces(tmp_path):
    export_gguf(model("gqa"), tmp_path / "m.gguf")
    _, _, about = read(tmp_path / "m.gguf")
    processor, kinds = tokenizer().processor, gguf.TokenType
    pieces = [processor.id_to_piece(i) for i in range(400)]
    assert about["tokenizer.ggml.tokens"] == ["\n" if piece == NEWLINE else piece for piece in pieces]
    assert about["tokenizer.ggml.scores"] == [processor.get_score(i) for i in range(400)]
    types = about["tokenizer.ggml.token_type"]
    assert types[:4] == [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, kinds.USER_DEFINED]
    assert types[4:260] == [kinds.BYTE] * 256 and set(types[260:]) == {kinds.NORMAL}
    meant = [text.replace(SPACE_MARK, " ").encode() for text in about["tokenizer.ggml.tokens"][260:]]
    assert meant == tokenizer().pieces()[260:]


def test_rows_beyond_the_tokenizer_are_unused_tokens():
    texts, scores, types = vocabulary(tokenizer(), 403)
    assert texts[400:] == ["[PAD400]", "[PAD401]", "[PAD402]"] and len(set(texts)) == 403 == len(scores)
    assert types[400:] == [gguf.TokenType.UNUSED] * 3


def spoiled(one, value):
    """The model with one weight of its last layer replaced."""
    down = one.params.layers.ffn.down.at[-1, 3, 4].set(value)
    ffn = dataclasses.replace(one.params.layers.ffn, down=down)
    layers = dataclasses.replace(one.params.layers, ffn=ffn)
    return dataclasses.replace(one, params=dataclasses.replace(one.params, layers=layers))


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (1e5, "float16", r"(?s)blk.1.ffn_down.weight holds 1e\+05, which float16 cannot.*--dtype bfloat16"),
        (np.nan, "float32", "blk.1.ffn_down.weight holds 1 numbers that are not finite"),
        (-np.inf, "bfloat16", "blk.1.ffn_down.weight holds 1 numbers that are not finite"),
    ],
)
def test_a_weight_that_does_not_fit_leaves_no_file(value, dtype, message, tmp_path):
    with pytest.raises(UserError, match=message):
        export_gguf(spoiled(model("gqa"), value), tmp_path / "m.gguf", dtype)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_no_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pomona.export.gguf._write", full)
    with pytest.raises(UserError, match="the disk is full"):
        export_gguf(model("gqa"), tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_already_stays(tmp_path):
    (tmp_path / "m.gguf").write_text("mine")
    with pytest.raises(UserError, match=r"m\.gguf exists already"):
        export_gguf(model("gqa"), tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_without_the_package_one_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"(?s)gguf is not installed.*pip install 'pomona\[export\]'"):
        export_gguf(model("gqa"), tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []
