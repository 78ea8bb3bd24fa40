"""What a decoder is (`Architecture`) and how it is run (`Execution`). No JAX: the planner reads these too."""

import dataclasses
from typing import Any, Literal

from pomona.core.errors import UserError

RematPolicy = Literal["none", "products", "ffn", "gate", "qkv", "attention", "full"]
AttentionWay = Literal["auto", "reference", "blocked", "splash", "cudnn"]

KEPT: dict[RematPolicy, tuple[str, ...]] = {
    "full": (),
    "attention": ("attention",),
    "qkv": ("attention", "query", "key", "value", "middle"),
    "gate": ("attention", "query", "key", "value", "middle", "gate"),
    "ffn": ("attention", "key", "value", "gate", "up"),
    "products": ("attention", "query", "key", "value", "middle", "gate", "up"),
}
"""What a policy keeps of each layer besides its input: names that the decoder gives. `attention` is the kernel's output
with its log-normalisers, `middle` the sum after attention, the others are products as they leave their weights."""

KERNELS = {"splash": "tpu", "kernel": "tpu", "cudnn": "gpu"}
"""Ways of attention and rotation that only one platform has."""


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The shape of a decoder: afm-recipe sections 1 and 2 (AFM report, section 3.1)."""

    vocab_size: int
    model_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_dim: int
    rope_base: float = 500_000.0
    norm_epsilon: float = 1e-5


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a decoder is computed; none of it changes what is computed, beyond rounding."""

    compute_dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """auto: bfloat16 on TPU and GPU; float32 on CPU, whose matmuls are slower in bfloat16."""
    attention: AttentionWay = "auto"
    """auto: splash on TPU, cuDNN on GPU, blocked on CPU."""
    attention_block_tokens: int = 1024
    """Queries and keys that the splash kernel works on at a time."""
    layers: Literal["auto", "scanned", "unrolled"] = "auto"
    """auto: unrolled on CPU, where a scan copies its weights; scanned elsewhere, which compiles once."""
    weight_gradients: Literal["auto", "plain", "transposed"] = "auto"
    """transposed: the backward pass copies a matmul's inputs into columns first, which XLA:CPU multiplies faster.
    auto: transposed on one CPU device, plain elsewhere."""
    remat: RematPolicy = "none"
    """What the backward pass recomputes, from nothing to each whole layer: `products` all but the products and the
    attention kernel, `ffn` also queries and the sum after attention, `gate` instead one of the feed-forward block's two
    products, `qkv` both, `attention` all but the kernel."""
    rotation: Literal["auto", "split", "kernel"] = "auto"
    """How heads are normalised and turned by their positions; auto: by our own kernel on TPU, by halves elsewhere."""
    loss_chunk_tokens: int = 1024
    """Tokens per device whose logits exist at one time."""


PROJECTIONS = (
    "attention.query",
    "attention.key",
    "attention.value",
    "attention.output",
    "ffn.gate",
    "ffn.up",
    "ffn.down",
)
"""The linear weights of a layer, by their places in `decoder.Layer`."""
PLACES = {place.split(".")[1]: place for place in PROJECTIONS}
"""Their names, and the places."""
NORMS = ("attention_norm", "attention.query_norm", "attention.key_norm", "ffn_norm")
"""The norms of a layer, likewise."""


def projection_shapes(a: Architecture) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of every linear weight of a layer, by its name."""
    heads, kv = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
    attention = {"query": heads, "key": kv, "value": kv}
    shapes = {name: (a.model_dim, outputs) for name, outputs in attention.items()} | {"output": (heads, a.model_dim)}
    wide = (a.model_dim, a.ffn_dim)
    return shapes | {"gate": wide, "up": wide, "down": wide[::-1]}


def resolve(execution: Execution, platform: str, num_devices: int = 1) -> Execution:
    """The same choices with every `auto` decided for devices of a platform: `cpu`, `gpu` or `tpu`.

    Raises:
        UserError: a choice that these devices do not have.
    """
    if execution.weight_gradients == "transposed" and num_devices > 1:
        raise UserError(
            f"execution.weight_gradients is 'transposed' on {num_devices} devices.",
            "this way of the backward pass is for one device.",
            "--execution.weight-gradients auto",
        )
    for name, value in (("attention", execution.attention), ("rotation", execution.rotation)):
        if (made_for := KERNELS.get(value, platform)) != platform:
            raise UserError(
                f"execution.{name} is {value!r} on devices of the platform {platform!r}.",
                f"this kernel is made for {made_for}.",
                f"--execution.{name} auto",
            )
    best: dict[str, tuple[Any, Any, Any]] = {
        "tpu": ("bfloat16", "splash", "scanned"),
        "gpu": ("bfloat16", "cudnn", "scanned"),
    }
    dtype, attention, layers = best.get(platform, ("float32", "blocked", "unrolled"))
    rotation: Any = "kernel" if platform == "tpu" else "split"
    gradients: Any = "transposed" if platform == "cpu" and num_devices == 1 else "plain"
    return dataclasses.replace(
        execution,
        compute_dtype=dtype if execution.compute_dtype == "auto" else execution.compute_dtype,
        attention=attention if execution.attention == "auto" else execution.attention,
        layers=layers if execution.layers == "auto" else execution.layers,
        weight_gradients=gradients if execution.weight_gradients == "auto" else execution.weight_gradients,
        rotation=rotation if execution.rotation == "auto" else execution.rotation,
    )


def check_architecture(architecture: Architecture) -> None:
    """Raises `UserError` for a shape that no decoder has."""
    for name in ("vocab_size", "model_dim", "num_layers", "num_heads", "num_kv_heads", "head_dim", "ffn_dim"):
        if getattr(architecture, name) < 1:
            raise UserError(
                f"architecture.{name} is {getattr(architecture, name)}.",
                "every size of a decoder is at least 1.",
                f"--architecture.{name.replace('_', '-')} N",
            )
    if architecture.num_heads % architecture.num_kv_heads:
        raise UserError(
            f"{architecture.num_heads} query heads over {architecture.num_kv_heads} key-value heads.",
            "grouped-query attention needs a whole number of query heads per key-value head.",
            f"--architecture.num-kv-heads {_largest_divisor(architecture.num_heads, architecture.num_kv_heads)}",
        )
    if architecture.head_dim % 2:
        raise UserError(
            f"architecture.head_dim is {architecture.head_dim}.",
            "rotary positions turn pairs of numbers, so a head is even.",
            f"--architecture.head-dim {architecture.head_dim + 1}",
        )


def _largest_divisor(number: int, limit: int) -> int:
    return next(d for d in range(min(limit, number), 0, -1) if number % d == 0)
