"""Three small models with fixed weights, whatever the JAX version, and the texts they are compared on."""

import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from pomona.data.config import DataConfig, TokenizerConfig
from pomona.data.tokenizer import Tokenizer, load_tokenizer
from pomona.export.hf import tensors
from pomona.infer.generate import generate
from pomona.model.config import Architecture, resolve
from pomona.model.decoder import parameter_specs
from pomona.model.objective import TokenBatch, hidden_states
from pomona.model.sampling import Sampling
from pomona.model.spec import map_specs
from pomona.optim.config import Schedule
from pomona.train.config import Run, Stage
from pomona.train.load import Model

STORED = Path(__file__).parents[1] / "reference"  # tokenizer.model, transformers.json, transformers.npz
VOCAB = 400
SHAPES = {
    "gqa": Architecture(VOCAB, 32, 2, 4, 2, 8, 96),
    "mha": Architecture(VOCAB, 48, 3, 4, 4, 12, 64, rope_base=1e4),
    "wide_heads": Architecture(VOCAB, 24, 1, 6, 2, 16, 40, norm_epsilon=1e-3),
}
PROMPTS = ([1, 40, 271, 3, 7, 7, 99, 300, 12, 5, 60, 61], [1, 9], [1, 320, 64, 200, 11])
TEXTS = (
    "def main():\n    return 1\n",
    "tabs\tand\r\nreturns, trailing spaces   ",
    "\n\n  leading and 1234567890 digits",
    "our own piece <n>, a space mark \u2581, a private escape \ue000 and a NUL \x00",
    "é ü ß 中文 😀 \u200b\ufeff",
    "",
    " ",
)


def tokenizer() -> Tokenizer:
    """The stored tokenizer, which no other version of SentencePiece has trained anew."""
    return load_tokenizer(STORED)


def model(name: str) -> Model:
    """Weights large enough that logits differ and attention is not flat."""
    rng = np.random.default_rng(sorted(SHAPES).index(name))
    architecture = SHAPES[name]

    def draw(spec):
        values = rng.standard_normal(spec.shape) * (0.2 if spec.role == "norm" else 1.5 * spec.fan**-0.5)
        return jnp.asarray(values + (spec.role == "norm"), jnp.float32)

    stage = Stage("core", 1, 1, 64, Schedule(warmup_steps=0, shape="constant"), architecture.rope_base)
    data = DataConfig(tokenizer=TokenizerConfig(VOCAB))
    run = Run(name, architecture, (stage,), data=data)
    return Model(map_specs(draw, parameter_specs(architecture)), run, tokenizer(), step=1)


def digest(one: Model) -> str:
    """SHA-256 of all weights, to know that stored values belong to them."""
    sha = hashlib.sha256()
    for name, array in tensors(one.params, np.dtype(np.float32)):
        sha.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def our_logits(one: Model, tokens: list[int]) -> np.ndarray:
    """[T, V] by the training path, not by the cache."""
    T = len(tokens)
    rows = (tokens, tokens, [1] * T, list(range(T)))
    batch = TokenBatch(*(jnp.asarray([row], jnp.int32) for row in rows))
    execution = resolve(one.run.execution, "cpu")
    run = jax.jit(hidden_states, static_argnums=(2, 3, 4))
    hidden_BTD = run(one.params, batch, one.run.architecture, execution, one.stage.rope_base)
    return np.asarray(hidden_BTD[0] @ one.params.embedding.T)


def our_greedy(one: Model, prompts, max_tokens: int = 16) -> list[list[int]]:
    """The most likely continuations, all prompts in one padded batch."""
    execution = resolve(one.run.execution, "cpu")
    return generate(
        one.params,
        prompts,
        one.run.architecture,
        execution,
        rope_base=one.stage.rope_base,
        max_tokens=max_tokens,
        sampling=Sampling(temperature=0),
    )
