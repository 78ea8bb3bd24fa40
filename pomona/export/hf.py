"""Hugging Face folders, out and in: the decoder is a `Qwen3ForCausalLM`, tensor for tensor.

Qwen3 has the same parts (grouped-query attention, RMSNorm on query and key heads before half-split rotary positions,
SwiGLU, tied embedding, no biases), so nothing is permuted; linear weights are transposed to [out, in].
Shapes: L layers, D model, N query heads, K key-value heads, H head, F feed-forward, V vocabulary.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pomona.checkpoint.config import CheckpointConfig
from pomona.checkpoint.store import Store
from pomona.core.config import to_json
from pomona.core.errors import UserError
from pomona.core.files import new_folder, read_json, write_json
from pomona.core.run_folder import RunFolder
from pomona.data.config import DataConfig, TokenizerConfig
from pomona.data.tokenizer import BEGIN, END, MODEL_FILE, Tokenizer, load_tokenizer
from pomona.export.hf_tokenizer import tokenizer_json
from pomona.model.adapter import densify
from pomona.model.config import Architecture, check_architecture
from pomona.model.decoder import Decoder, parameter_specs
from pomona.optim.config import Schedule
from pomona.train.config import Run, Stage
from pomona.train.load import Model

SHARD_BYTES = 4_000_000_000
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
EMBEDDING, FINAL_NORM, LAYER = "model.embed_tokens.weight", "model.norm.weight", "model.layers.{}.{}.weight"

# Each layer tensor: its name there, how to reach it here, and how many leading dimensions are inputs (0 for norms).
LAYER_TENSORS: tuple[tuple[str, Callable[[Any], Any], int], ...] = (
    ("input_layernorm", lambda layer: layer.attention_norm, 0),
    ("self_attn.q_proj", lambda layer: layer.attention.query, 1),
    ("self_attn.k_proj", lambda layer: layer.attention.key, 1),
    ("self_attn.v_proj", lambda layer: layer.attention.value, 1),
    ("self_attn.o_proj", lambda layer: layer.attention.output, 2),
    ("self_attn.q_norm", lambda layer: layer.attention.query_norm, 0),
    ("self_attn.k_norm", lambda layer: layer.attention.key_norm, 0),
    ("post_attention_layernorm", lambda layer: layer.ffn_norm, 0),
    ("mlp.gate_proj", lambda layer: layer.ffn.gate, 1),
    ("mlp.up_proj", lambda layer: layer.ffn.up, 1),
    ("mlp.down_proj", lambda layer: layer.ffn.down, 1),
)
PROJECTION_NAMES = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "output"}
PROJECTION_NAMES |= {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"}
"""What linear weights are called there, and in `pomona.model.config.PLACES`."""


def export_hf(model: Model, target: Path, dtype: str = "float32") -> None:
    """Writes a folder that `transformers.AutoModelForCausalLM` and `AutoTokenizer` load.

    Palettized weights are unpacked, an adapter is added to them.

    Raises:
        UserError: the folder exists already, or the disk is full.
    """
    with new_folder(target) as folder:
        write_weights(folder, tensors(densify(model.params, model.run.architecture), DTYPES[dtype]))
        stage = model.stage
        config = qwen3_config(model.run.architecture, stage.rope_base, stage.sequence_length, dtype)
        write_json(folder / "config.json", config)
        write_json(folder / "generation_config.json", {"bos_token_id": BEGIN, "eos_token_id": END})
        write_tokenizer(folder, model.tokenizer, stage.sequence_length)
        shutil.copyfile(model.tokenizer.path, folder / MODEL_FILE)


def import_hf(source: Path, target: Path) -> Run:
    """Reads a Qwen3 folder with a SentencePiece tokenizer into a run folder with one checkpoint.

    Raises:
        UserError: another architecture, missing tensors, wrong shapes, or an existing target.
    """
    if not (source / "config.json").exists():
        raise UserError(
            f"{source} has no config.json.",
            "a Hugging Face folder holds config.json, .safetensors files and a tokenizer.",
            "pomona import hf FOLDER, with the folder's name as it is on disk.",
        )
    config = read_json(source / "config.json")
    architecture, rope_base = _architecture(config, source)
    if not (source / MODEL_FILE).exists():
        raise UserError(
            f"{source} has no {MODEL_FILE}.",
            "Pomona's tokenizers are SentencePiece models, which `pomona export` puts beside the weights.",
            f"a folder with a {MODEL_FILE}.",
        )
    vocab_size = load_tokenizer(source).vocab_size
    length = int(config.get("max_position_embeddings", 4096))
    constant = Schedule(warmup_steps=0, shape="constant")
    run = Run(
        name=target.name,
        architecture=architecture,
        stages=(Stage("imported", 1, 1, length, constant, rope_base),),
        data=DataConfig(tokenizer=TokenizerConfig(vocab_size, path=str(source))),
    )
    params = _read_weights(source, architecture)
    with new_folder(target) as draft:
        folder = RunFolder(draft)
        folder.tokenizer.mkdir()
        shutil.copyfile(source / MODEL_FILE, folder.tokenizer / MODEL_FILE)
        write_json(folder.config, to_json(run))
        store = Store(folder.checkpoints, CheckpointConfig())
        store.save(1, {"params": params}, {"stage": "imported", "step": 1})
        store.close()
    return run


def qwen3_config(a: Architecture, rope_base: float, sequence_length: int, dtype: str) -> dict[str, Any]:
    """The `config.json` of a Qwen3 model; the rotary base stands in both places that readers look."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": a.vocab_size,
        "hidden_size": a.model_dim,
        "num_hidden_layers": a.num_layers,
        "num_attention_heads": a.num_heads,
        "num_key_value_heads": a.num_kv_heads,
        "head_dim": a.head_dim,
        "intermediate_size": a.ffn_dim,
        "hidden_act": "silu",
        "rms_norm_eps": a.norm_epsilon,
        "rope_theta": rope_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": rope_base},
        "max_position_embeddings": sequence_length,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "use_cache": True,
        "use_sliding_window": False,
        "initializer_range": 0.02,
        "bos_token_id": BEGIN,
        "eos_token_id": END,
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def tensors(params: Decoder, dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array) of every tensor of the Hugging Face model, one layer in memory at a time."""
    yield EMBEDDING, np.asarray(params.embedding).astype(dtype)
    for index in range(params.layers.attention_norm.shape[0]):
        for name, get, inputs in LAYER_TENSORS:
            weight = np.asarray(get(params.layers)[index]).astype(dtype)
            if inputs:
                rows = int(np.prod(weight.shape[:inputs]))
                weight = np.ascontiguousarray(weight.reshape(rows, -1).T)
            yield LAYER.format(index, name), weight
    yield FINAL_NORM, np.asarray(params.final_norm).astype(dtype)


def write_weights(folder: Path, arrays: Iterable[tuple[str, np.ndarray]]) -> None:
    """One `model.safetensors`, or numbered shards with an index."""
    shards: list[dict[str, np.ndarray]] = [{}]
    names: list[list[str]] = []
    size = total = 0

    def flush() -> None:
        path = folder / f"part-{len(names)}.safetensors"
        save_file(shards[0], path, metadata={"format": "pt"})
        path.chmod(0o644)  # safetensors makes private files
        names.append(list(shards[0]))
        shards[0] = {}

    for name, array in arrays:
        if shards[0] and size + array.nbytes > SHARD_BYTES:
            flush()
            size = 0
        shards[0][name] = array
        size, total = size + array.nbytes, total + array.nbytes
    flush()
    if len(names) == 1:
        (folder / "part-0.safetensors").rename(folder / "model.safetensors")
        return
    where: dict[str, str] = {}
    for number, part in enumerate(names, start=1):
        file = f"model-{number:05}-of-{len(names):05}.safetensors"
        (folder / f"part-{number - 1}.safetensors").rename(folder / file)
        where |= dict.fromkeys(part, file)
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})


def write_tokenizer(folder: Path, tokenizer: Tokenizer, length: int) -> None:
    """The tokenizer as `AutoTokenizer` reads it."""
    write_json(folder / "tokenizer.json", tokenizer_json(tokenizer))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": length,
    }
    write_json(folder / "tokenizer_config.json", settings)


def _read_weights(source: Path, architecture: Architecture) -> Decoder:
    files = sorted(source.glob("*.safetensors"))
    where: dict[str, Any] = {}
    try:
        for file in files:
            handle = safe_open(file, framework="numpy")
            where |= dict.fromkeys(handle.keys(), handle)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{file} cannot be read: {error}.",
            "weights are whole safetensors files.",
            "copy the folder again.",
        ) from error

    def read(name: str, shape: tuple[int, ...], inputs: int) -> np.ndarray:
        if name not in where:
            raise UserError(
                f"{source} has no tensor {name!r}.",
                "a Qwen3 folder holds every tensor of every layer.",
                "check that all its .safetensors files are there.",
            )
        weight = where[name].get_tensor(name).astype(np.float32)
        rows = int(np.prod(shape[:inputs]))
        expected = (int(np.prod(shape)) // rows, rows) if inputs else shape
        if weight.shape != expected:
            raise UserError(
                f"{name} has the shape {weight.shape}.",
                f"by config.json it is {expected}.",
                "a folder whose config.json belongs to its weights.",
            )
        return (weight.T if inputs else weight).reshape(shape)

    specs = parameter_specs(architecture)
    layers = specs.layers
    for name, get, inputs in LAYER_TENSORS:
        spec = get(specs.layers)
        each = [read(LAYER.format(i, name), spec.shape[1:], inputs) for i in range(architecture.num_layers)]
        layers = jax.tree.map(
            lambda leaf, spec=spec, each=each: np.stack(each) if leaf is spec else leaf,
            layers,
            is_leaf=lambda leaf: leaf is spec,
        )
    numpy_tree: Decoder = Decoder(
        embedding=read(EMBEDDING, specs.embedding.shape, 0),
        layers=layers,
        final_norm=read(FINAL_NORM, specs.final_norm.shape, 0),
    )
    return jax.tree.map(jax.numpy.asarray, numpy_tree)


def _architecture(config: dict[str, Any], source: Path) -> tuple[Architecture, float]:
    wrong = {
        "model_type": (config.get("model_type"), "qwen3"),
        "tie_word_embeddings": (config.get("tie_word_embeddings"), True),
        "attention_bias": (config.get("attention_bias", False), False),
        "hidden_act": (config.get("hidden_act", "silu"), "silu"),
    }
    for name, (value, needed) in wrong.items():
        if value != needed:
            raise UserError(
                f"{source}/config.json says {name} = {value!r}.",
                f"Pomona's decoder is a Qwen3 model with {name} = {needed!r}.",
                "another folder, such as one that `pomona export` wrote.",
            )
    try:
        base = (config.get("rope_parameters") or {}).get("rope_theta") or config["rope_theta"]
        architecture = Architecture(
            vocab_size=config["vocab_size"],
            model_dim=config["hidden_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=config["num_attention_heads"],
            num_kv_heads=config["num_key_value_heads"],
            head_dim=config["head_dim"],
            ffn_dim=config["intermediate_size"],
            rope_base=float(base),
            norm_epsilon=config["rms_norm_eps"],
        )
    except KeyError as error:
        raise UserError(
            f"{source}/config.json has no {error.args[0]!r}.",
            "the shape of a model is stated in full.",
            "add the field.",
        ) from error
    check_architecture(architecture)
    return architecture, float(base)
