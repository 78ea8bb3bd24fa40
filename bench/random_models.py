"""Models of AFM-on-device's shape with random weights, as our device files and as llama.cpp's GGUF files, for benches.

Random palettes at 3.7 bits (15 % of the weights at 2 bits, the rest at 4) or on 2-bit tables; random blocks in the
types that llama.cpp's quantizations give each tensor, its feed-forward block widened to a multiple of 256. Speed does
not depend on what weights say, as long as they differ.
"""

import sys
from pathlib import Path

import numpy as np

OURS, PEERS = ("3.7", "2"), ("Q4_K_M", "Q4_0", "Q2_K")
LOW_SHARE = 0.15  # of the weights at 2 bits, for an average of 3.7
BLOCKS = {"Q4_0": (32, 18), "Q2_K": (256, 84), "Q3_K": (256, 110), "Q4_K": (256, 144), "Q6_K": (256, 210)}
"""Weights and bytes of a block."""
HALVES = {"Q4_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q6_K": (208,)}
"""Where a block has its float16 factors."""


def files(folder):
    """Every model's file by its name, made where it is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {kind: folder / f"{kind}.pom" for kind in OURS} | {kind: folder / f"{kind}.gguf" for kind in PEERS}
    for kind, path in paths.items():
        if not path.exists():
            print(f"writing {path}", file=sys.stderr, flush=True)
            draft = path.with_name(f"draft-{path.name}")
            draft.unlink(missing_ok=True)
            (write_ours if kind in OURS else write_peer)(draft, kind)
            draft.rename(path)
    return paths


def write_ours(path, kind, architecture=None):
    """A device file with random palettes, tensor by tensor; of AFM-on-device's shape where no other is given."""
    from pomona.core.config import to_json
    from pomona.device.file import matrix_shapes, norm_shapes, write_file
    from pomona.device.layout import packed_bytes
    from pomona.model.presets import AFM_DEVICE

    architecture = architecture or AFM_DEVICE
    rng, shapes = np.random.default_rng(0), matrix_shapes(architecture)
    low = lambda number: kind == "2" or (number + 1) * LOW_SHARE % 1 < LOW_SHARE
    bits = {name: 2 if low(number) else 4 for number, name in enumerate(shapes)} | {"embedding": 8}

    def tensors():
        for name, (outputs, inputs) in shapes.items():
            yield f"{name}.packed", rng.integers(0, 256, (outputs // 16, packed_bytes(inputs, bits[name])), np.uint8)
        for name, (outputs, inputs) in shapes.items():
            if name != "embedding":
                yield f"{name}.tables", rng.integers(-127, 128, (outputs // 16, 16)).astype(np.int8)
            yield f"{name}.factors", np.full(outputs, inputs**-0.5 / 64, np.float32)
        for name, shape in norm_shapes(architecture).items():
            yield name, np.ones(shape, np.float32)
        yield "tokenizer", np.frombuffer(any_tokenizer(architecture.vocab_size), np.uint8)

    weights = sum(outputs * inputs for name, (outputs, inputs) in shapes.items() if name != "embedding")
    average = sum(o * i * bits[name] for name, (o, i) in shapes.items() if name != "embedding") / weights
    about = {"name": kind, "architecture": to_json(architecture), "rope_base": 5e5, "bits": bits}
    write_file(path, about | {"bits_per_weight": average, "fingerprint": kind}, tensors())


def any_tokenizer(vocab_size):
    """A tokenizer with a text for every token of a model: a small trained one, and pieces that were made up."""
    import tempfile

    from sentencepiece import sentencepiece_model_pb2

    from pomona.data.tokenizer import MODEL_FILE, train_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        train_tokenizer(["some text to learn pieces from, again and again"] * 50, 300, 100_000, Path(folder))
        model = sentencepiece_model_pb2.ModelProto.FromString((Path(folder) / MODEL_FILE).read_bytes())
    for number in range(len(model.pieces), vocab_size):
        model.pieces.add(piece=f"\u2581w{number}", score=-float(number))
    model.trainer_spec.vocab_size = vocab_size
    return model.SerializeToString()


def write_peer(path, kind):
    """A GGUF file with random blocks in the types of llama.cpp's quantizations."""
    import gguf

    from pomona.export.gguf import padded_ffn_dim, tensor_shapes
    from pomona.model.presets import AFM_DEVICE as a

    rng, ffn = np.random.default_rng(0), padded_ffn_dim(a)
    writer = gguf.GGUFWriter(path, "qwen3")
    for add, value in (
        (writer.add_context_length, 8192),
        (writer.add_vocab_size, a.vocab_size),
        (writer.add_embedding_length, a.model_dim),
        (writer.add_block_count, a.num_layers),
        (writer.add_feed_forward_length, ffn),
        (writer.add_head_count, a.num_heads),
        (writer.add_head_count_kv, a.num_kv_heads),
        (writer.add_key_length, a.head_dim),
        (writer.add_value_length, a.head_dim),
        (writer.add_layer_norm_rms_eps, a.norm_epsilon),
        (writer.add_rope_freq_base, 5e5),
        (writer.add_tokenizer_model, "llama"),
        (writer.add_token_list, [f"t{index}" for index in range(a.vocab_size)]),
        (writer.add_token_scores, [0.0] * a.vocab_size),
        (writer.add_token_types, [1] * a.vocab_size),
        (writer.add_bos_token_id, 1),
        (writer.add_eos_token_id, 2),
    ):
        add(value)
    for name, shape in tensor_shapes(a, ffn):
        if len(shape) == 1:
            writer.add_tensor(name, np.ones(shape, np.float32))
            continue
        own = peer_type(kind, name, a.num_layers)
        weights, size = BLOCKS[own]
        blocks = rng.integers(0, 256, (shape[0], shape[1] // weights, size), np.uint8)
        for place in HALVES[own]:
            factor = np.float16(shape[1] ** -0.5 / (8 if own == "Q4_0" else 512))
            blocks[..., place : place + 2] = np.frombuffer(factor.tobytes(), np.uint8)
        writer.add_tensor(name, blocks.reshape(shape[0], -1), raw_dtype=gguf.GGMLQuantizationType[own])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def peer_type(kind, name, layers):
    """What llama.cpp takes for a tensor: Q4_K_M gives half of the values and down projections six bits, Q2_K gives the
    attention's values and outputs, and the down projections, three."""
    if name == "token_embd.weight":
        return "Q6_K"
    if kind == "Q4_0":
        return "Q4_0"
    if kind == "Q2_K":
        return "Q3_K" if any(part in name for part in ("attn_v", "attn_output", "ffn_down")) else "Q2_K"
    layer = int(name.split(".")[1])
    more = layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
    return "Q6_K" if more and ("attn_v" in name or "ffn_down" in name) else "Q4_K"
