"""One GGUF file of architecture `qwen3`, which llama.cpp and what is built on it load.

Nothing is permuted, since Qwen3's rotary positions turn halves there too. The tokenizer goes in as SentencePiece's own
pieces, scores and types (`tokenizer.ggml.model = "llama"`), so no pre-tokenizer has to be known by name.
Shapes: D model, F feed-forward, V vocabulary; a matrix is [out, in], a row of the file is one output.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from pomona.adapters.bundle import DTYPES
from pomona.core.errors import UserError
from pomona.core.files import new_file
from pomona.data.tokenizer import BEGIN, END, NEWLINE, Tokenizer
from pomona.export.gguf_blocks import K_QUANT_BLOCK, KINDS, Kind, balanced_rows, check_rows, q8_0
from pomona.export.hf import PROJECTION_NAMES as HF_NAMES
from pomona.export.hf import tensors
from pomona.model.adapter import densify
from pomona.model.config import Architecture
from pomona.train.load import Model

ARCHITECTURE = "qwen3"

# Token types of GGUF, as SentencePiece has them.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Names of Hugging Face's tensors, and what they are called here."""
PROJECTION_NAMES = {NAMES[source]: name for source in NAMES if (name := HF_NAMES.get(source.split(".")[-1]))}
"""What is called so here, and what in `pomona.model.config.PLACES`."""
EMBEDDING = "token_embd.weight"


def export_gguf(model: Model, target: Path, dtype: str = "float16", pad_ffn: bool = False) -> None:
    """Writes a model and its tokenizer as one GGUF file: matrices in `dtype`, norms in float32 (llama.cpp's rule).

    Args:
        dtype: a type of numbers; `q8_0`; or `q2_k`, the balanced 2-bit grid bit for bit with an embedding in `q8_0`.
        pad_ffn: widens the feed-forward block to a multiple of 256 with units whose weights are all zero. Such a unit
            is silu(0) * 0 times a row of zeros, so every logit stays what it is.

    Raises:
        UserError: the file exists already, the disk is full, a weight is not finite or too large for `dtype`, rows do
            not fit its blocks, the weights are not on the grid, or the package `gguf` is not installed.
    """
    gguf = package()
    a = model.run.architecture
    ffn_dim = padded_ffn_dim(a) if pad_ffn else a.ffn_dim
    kinds = {name: _kind(name, shape, dtype) for name, shape in tensor_shapes(a, ffn_dim)}
    with new_file(target) as draft:
        writer = gguf.GGUFWriter(draft, ARCHITECTURE)
        _add_metadata(writer, model, ffn_dim, KINDS[dtype].file_type)
        _add_vocabulary(writer, model.tokenizer, a.vocab_size)
        for name, shape in tensor_shapes(a, ffn_dim):
            size, kind = kinds[name].size(shape), gguf.GGMLQuantizationType[kinds[name].name]
            writer.add_tensor_info(name, shape, np.dtype(np.float32), size, kind)
        write_tensors(writer, (array for _, array in gguf_tensors(model, dtype, ffn_dim)))


def write_tensors(writer: Any, arrays: Iterable[np.ndarray]) -> None:
    """Writes what the writer was told of, and the tensors in the order in which it was; closes it."""
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for array in arrays:
            _write(writer, array)
    finally:
        if writer.fout:
            writer.close()


def _kind(name: str, shape: tuple[int, ...], dtype: str) -> Kind:
    """How a tensor is stored."""
    if len(shape) == 1:
        return KINDS["float32"]
    kind = KINDS["q8_0" if dtype == "q2_k" and name == EMBEDDING else dtype]
    check_rows(kind, name, shape)
    return kind


def padded_ffn_dim(architecture: Architecture) -> int:
    """The next feed-forward width that K-quants can store."""
    return -(-architecture.ffn_dim // K_QUANT_BLOCK) * K_QUANT_BLOCK


def unfit_rows(architecture: Architecture, pad_ffn: bool) -> list[str]:
    """What has rows that K-quants cannot store; llama.cpp takes a larger type for these, and says so."""
    a = architecture
    rows = {
        "the model dimension": a.model_dim,
        "the heads together": a.num_heads * a.head_dim,
        "the feed-forward dimension": padded_ffn_dim(a) if pad_ffn else a.ffn_dim,
    }
    return [f"{name}, {size}" for name, size in rows.items() if size % K_QUANT_BLOCK]


def tensor_shapes(a: Architecture, ffn_dim: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of every tensor, in the order of `gguf_tensors`."""
    D, query, key = a.model_dim, a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
    layer = {
        "attn_norm": (D,),
        "attn_q": (query, D),
        "attn_k": (key, D),
        "attn_v": (key, D),
        "attn_output": (D, query),
        "attn_q_norm": (a.head_dim,),
        "attn_k_norm": (a.head_dim,),
        "ffn_norm": (D,),
        "ffn_gate": (ffn_dim, D),
        "ffn_up": (ffn_dim, D),
        "ffn_down": (D, ffn_dim),
    }
    yield EMBEDDING, (a.vocab_size, D)
    for index in range(a.num_layers):
        yield from ((f"blk.{index}.{name}.weight", shape) for name, shape in layer.items())
    yield "output_norm.weight", (D,)


def gguf_tensors(model: Model, dtype: str, ffn_dim: int) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array) of every tensor, one layer in memory at a time: matrices as `dtype` says, vectors in float32.

    Raises:
        UserError: a weight is not finite, too large for `dtype`, or not on the grid that it holds.
    """
    params = densify(model.params, model.run.architecture)
    shapes = tensor_shapes(model.run.architecture, ffn_dim)
    for (source, array), (name, shape) in zip(tensors(params, DTYPES["float32"]), shapes, strict=True):
        assert name.rsplit(".", 2)[-2] == _name(source), (name, source)
        if dtype == "q2_k" and len(shape) == 2 and name != EMBEDDING:
            layer, own = name.split(".")[1:3]
            yield name, balanced_rows(model.params, PROJECTION_NAMES[own], int(layer), shape)
            continue
        missing = [(0, there - here) for here, there in zip(array.shape, shape)]
        array = np.pad(array, missing) if any(after for _, after in missing) else array
        numbers = array.dtype if array.ndim == 1 or dtype not in DTYPES else DTYPES[dtype]
        array = np.ascontiguousarray(_cast(name, array, numbers))
        yield name, array if array.ndim == 1 or dtype in DTYPES else q8_0(package(), array)


def vocabulary(tokenizer: Tokenizer, vocab_size: int) -> tuple[list[str], list[float], list[int]]:
    """Text, score and type of every token.

    The newline piece becomes a newline itself: llama.cpp cuts user-defined tokens out of a text before all else, as
    SentencePiece does. Rows of the embedding beyond the tokenizer's pieces are unused tokens.
    """
    processor = tokenizer.processor
    texts = [processor.id_to_piece(i) for i in range(tokenizer.vocab_size)]
    scores = [float(processor.get_score(i)) for i in range(tokenizer.vocab_size)]
    kinds: list[tuple[Callable[[int], bool], int]] = [
        (processor.is_unknown, UNKNOWN),
        (processor.is_control, CONTROL),
        (processor.is_byte, BYTE),
        (processor.is_unused, UNUSED),
        (lambda i: texts[i] == NEWLINE, USER_DEFINED),
    ]
    types = [next((kind for test, kind in kinds if test(i)), NORMAL) for i in range(tokenizer.vocab_size)]
    texts = ["\n" if kind == USER_DEFINED else text for text, kind in zip(texts, types)]
    extra = vocab_size - len(texts)
    texts += [f"[PAD{i}]" for i in range(len(texts), vocab_size)]
    return texts, scores + [-1e9] * extra, types + [UNUSED] * extra


def _add_metadata(writer: Any, model: Model, ffn_dim: int, file_type: int) -> None:
    a, stage = model.run.architecture, model.stage
    writer.add_type("model")
    writer.add_name(model.run.name)
    writer.add_file_type(file_type)
    writer.add_context_length(stage.sequence_length)
    writer.add_vocab_size(a.vocab_size)
    writer.add_embedding_length(a.model_dim)
    writer.add_block_count(a.num_layers)
    writer.add_feed_forward_length(ffn_dim)
    writer.add_head_count(a.num_heads)
    writer.add_head_count_kv(a.num_kv_heads)
    writer.add_key_length(a.head_dim)
    writer.add_value_length(a.head_dim)
    writer.add_layer_norm_rms_eps(a.norm_epsilon)
    writer.add_rope_freq_base(stage.rope_base)


def _add_vocabulary(writer: Any, tokenizer: Tokenizer, vocab_size: int) -> None:
    texts, scores, types = vocabulary(tokenizer, vocab_size)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(texts)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(BEGIN)
    writer.add_eos_token_id(END)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_remove_extra_whitespaces(False)


def _write(writer: Any, array: np.ndarray) -> None:
    """As `write_tensor_data` does, whose `ndarray.tofile` loses the reason when the disk is full."""
    file = writer.fout[0]
    writer.write_padding(file, file.tell())
    file.write(array.view(np.uint8).data)
    writer.write_padding(file, array.nbytes)


def _name(source: str) -> str:
    """What one of Hugging Face's tensors is called here, without layer and ending."""
    stem = source.removesuffix(".weight")
    return NAMES[stem.split(".", 3)[-1] if stem.startswith("model.layers.") else stem]


def _cast(name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    if np.isfinite(cast).all():
        return cast
    if np.isfinite(array).all():
        raise UserError(
            f"{name} holds {float(np.abs(array).max()):.3g}, which {dtype} cannot.",
            f"the largest number of {dtype} is {float(ml_dtypes.finfo(dtype).max):.3g}.",
            "--dtype bfloat16",
        )
    raise UserError(
        f"{name} holds {int((~np.isfinite(array)).sum())} numbers that are not finite.",
        "a model is exported only where every weight is a number.",
        "--step N, with an earlier checkpoint.",
    )


def package() -> Any:
    """llama.cpp's own Python package.

    Raises:
        UserError: it is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise UserError(
            "the package gguf is not installed.",
            "a GGUF file is written by llama.cpp's own Python package.",
            "pip install 'pomona[export]'",
        ) from error
    return gguf
