"""What one device holds at the fullest moment of a step, by part. No JAX.

parameters, gradients, moments   float32, sharded; with micro-batches the gradients exist twice: sum and summand
second_state                     parameters and moments again, where steps are checked by computing them twice
cast                             the shards in bfloat16: they are cast before the layers' loop, not in it
activations                      what the remat policy keeps (`model.count.REMAT`) of every layer
kept_weights                     every layer's in bfloat16, where the policy keeps them
layer                            one layer in its backward pass; on TPUs with the partial gradients of its queries that
                                 splash attention leaves to be added up: one for each block of keys (of one part at a
                                 time, where a shard of a sequence has two)
weights                          a layer's worth in bfloat16: its gathered matrices and their gradients come and go one
                                 by one; and the embedding's gradient, in float32 where it is the sum of chunks
loss                             one chunk's logits and what is made of them; the hidden states' gradient; the embedding
                                 in bfloat16 and its gradient; of several chunks a sum in float32 and a summand

Layers and loss come one after the other: of the two the larger counts. It is what a program can do with: a compiler
with memory to spare takes more (docs/plan.md).
"""

import dataclasses
import math

from pomona.model.count import AT_WORK, activation_bytes
from pomona.parallel.config import ZIGZAG
from pomona.plan.work import Layout, device_weights

FLOAT32, BFLOAT16 = 4, 2
MOMENTS = 2  # of AdaStar and of AdamW alike
LOGIT_BYTES = {"tpu": 4, "gpu": 10}
"""Of a chunk, per logit. TPUs keep them in float32 alone and make exponentials and gradients within the products that
read them, as compiled (docs/benchmarks/fleet.md). On GPUs all three go through memory: OUR assumption."""
USABLE = 0.95
"""Share of the memory that a program can have: OUR assumption. The runtime and fragmentation take the rest."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    parameters: float
    gradients: float
    moments: float
    second_state: float
    cast: float
    activations: float
    kept_weights: float
    layer: float
    weights: float
    loss: float

    @property
    def total(self) -> float:
        state = self.parameters + self.gradients + self.moments + self.second_state
        return state + self.cast + self.activations + self.kept_weights + self.work

    @property
    def work(self) -> float:
        """What is there only while layers are at work, or the loss."""
        return max(self.layer + self.weights, self.loss)


def usable_bytes(layout: Layout) -> float:
    """What one device may hold."""
    return USABLE * layout.fleet.chip.memory_bytes / layout.fleet.chip.devices


def memory(layout: Layout) -> Memory:
    """The parts of one device's memory."""
    a, execution, tokens, shards = layout.run.architecture, layout.run.execution, layout.tokens, layout.model_shards
    w = device_weights(a, shards, layout.weight_shards)
    policy, tpu = layout.kept, bool(layout.fleet.chip.torus_dimensions)
    chunk = min(execution.loss_chunk_tokens, tokens)
    chunks = chunk < tokens
    logit_bytes = LOGIT_BYTES["tpu" if tpu else "gpu"]
    return Memory(
        parameters=FLOAT32 * w.stored,
        gradients=FLOAT32 * w.stored * (2 if layout.micro_batches > 1 else 1),
        moments=MOMENTS * FLOAT32 * w.stored,
        second_state=(1 + MOMENTS) * FLOAT32 * w.stored if layout.run.faults.check_every_steps else 0.0,
        cast=BFLOAT16 * w.stored,
        activations=a.num_layers * tokens * activation_bytes(a, policy, shards),
        kept_weights=BFLOAT16 * w.layers_whole if policy.keeps_weights else 0.0,
        layer=_layer_bytes(layout),
        weights=BFLOAT16 * w.layers_whole / a.num_layers + (FLOAT32 if chunks else BFLOAT16) * w.embedding_whole,
        loss=logit_bytes * chunk * a.vocab_size / shards
        + FLOAT32 * tokens * a.model_dim
        + (12 if chunks else 4) * w.embedding_whole,
    )


def _layer_bytes(layout: Layout) -> float:
    a, execution, shards = layout.run.architecture, layout.run.execution, layout.model_shards
    per_token = activation_bytes(a, AT_WORK, shards)
    if layout.fleet.chip.torus_dimensions:
        blocks = math.ceil(layout.stage.sequence_length / execution.attention_block_tokens)
        parts = 1 if layout.token_shards == 1 else len(ZIGZAG)
        per_token += BFLOAT16 * blocks / parts * a.num_heads * a.head_dim / shards
    return layout.tokens * per_token
