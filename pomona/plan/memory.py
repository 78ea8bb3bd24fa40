"""What one device holds at the fullest moment of a step, by part. No JAX.

parameters, gradients, moments   float32, sharded; with micro-batches the gradients exist twice: sum and summand
activations                      what the remat policy keeps (`model.count.REMAT`) of every layer
second_state                     parameters and moments again, where steps are checked by computing them twice
kept_weights                     every layer's in bfloat16, where the policy keeps them
layer                            one layer in its backward pass
weights                          bfloat16: two layers gathered (one in use, one on its way), one layer's gradient
loss                             one chunk's logits, their exponentials and gradients; the hidden states' gradient; the
                                 embedding in bfloat16; its gradient, in float32 and as it is sent, and once more in
                                 float32 where there are several chunks

Layers and loss come one after the other: of the two the larger counts.
"""

import dataclasses

from pomona.model.count import AT_WORK, activation_bytes
from pomona.plan.work import Layout, device_weights

FLOAT32 = 4
MOMENTS = 2  # of AdaStar and of AdamW alike
USABLE = 0.95
"""Share of the memory that a program can have: OUR assumption. The runtime and fragmentation take the rest."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    parameters: float
    gradients: float
    moments: float
    second_state: float
    activations: float
    kept_weights: float
    layer: float
    weights: float
    loss: float

    @property
    def total(self) -> float:
        state = self.parameters + self.gradients + self.moments + self.second_state
        return state + self.activations + self.kept_weights + self.work

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
    policy = layout.kept
    one_layer = w.layers_whole / a.num_layers
    gathered = 0 if policy.keeps_weights else 2 if layout.weight_shards > 1 else 1
    chunk = min(execution.loss_chunk_tokens, tokens)
    embedding = (12 if chunk < tokens else 8) * w.embedding_whole
    return Memory(
        parameters=FLOAT32 * w.stored,
        gradients=FLOAT32 * w.stored * (2 if layout.micro_batches > 1 else 1),
        moments=MOMENTS * FLOAT32 * w.stored,
        second_state=(1 + MOMENTS) * FLOAT32 * w.stored if layout.run.faults.check_every_steps else 0.0,
        activations=a.num_layers * tokens * activation_bytes(a, policy, shards),
        kept_weights=2 * w.layers_whole if policy.keeps_weights else 0.0,
        layer=tokens * activation_bytes(a, AT_WORK, shards),
        weights=2 * (gathered + 1) * one_layer,
        loss=10 * chunk * a.vocab_size / shards + 4 * tokens * a.model_dim + embedding,
    )
