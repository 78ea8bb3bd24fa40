"""What a decoder weighs and costs, by arithmetic alone: no JAX, no NumPy.

FLOPs count a multiply and an add as two. Two conventions for attention: `causal` counts the half of the scores that a
causal model needs (what our kernels compute), `full` counts all of them (what most published MFU figures use).
"""

import dataclasses

from pomona.model.config import Architecture


@dataclasses.dataclass(frozen=True)
class Parameters:
    """Parameters by part, over all layers."""

    embedding: int
    attention: int
    ffn: int
    norms: int

    @property
    def without_embedding(self) -> int:
        return self.attention + self.ffn + self.norms

    @property
    def total(self) -> int:
        return self.embedding + self.without_embedding


@dataclasses.dataclass(frozen=True)
class TokenFlops:
    """FLOPs of one training token, forward and backward, without recomputation."""

    causal: float
    full: float


def count_parameters(a: Architecture) -> Parameters:
    """Parameters by part; the tied output layer is the embedding and counts once."""
    attention = a.model_dim * a.head_dim * (2 * a.num_heads + 2 * a.num_kv_heads)
    norms = 2 * a.model_dim + 2 * a.head_dim
    return Parameters(
        embedding=a.vocab_size * a.model_dim,
        attention=a.num_layers * attention,
        ffn=a.num_layers * 3 * a.model_dim * a.ffn_dim,
        norms=a.num_layers * norms + a.model_dim,
    )


def training_flops(a: Architecture, sequence_length: int) -> TokenFlops:
    """FLOPs per token at a sequence length: 6 per matmul parameter (the head included, the look-up not), and
    attention's two products, three times (once forward, twice backward)."""
    parameters = count_parameters(a)
    matmuls = 6 * (parameters.attention + parameters.ffn + parameters.embedding)
    full = 3 * a.num_layers * 4 * sequence_length * a.num_heads * a.head_dim
    causal = full * (sequence_length + 1) / (2 * sequence_length)
    return TokenFlops(causal=matmuls + causal, full=matmuls + full)


def training_bytes(a: Architecture, moments: int = 2) -> dict[str, int]:
    """Bytes of the training state by part, float32: parameters, gradients and optimizer moments."""
    size = 4 * count_parameters(a).total
    return {"parameters": size, "gradients": size, "moments": moments * size}
