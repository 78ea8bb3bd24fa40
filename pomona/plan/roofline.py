"""The least time that a step can take, by what it is spent on. No JAX.

Each term is what one device does in one step, at the published speed of its chip, as if everything else were free:

    compute   model FLOPs, and what the remat policy and the attention kernel compute again, over the peak
    memory    bytes between HBM and the cores
    links     weights gathered and gradients scattered (bfloat16), keys and values gathered over the shards of a
              sequence, over the ICI or NVLink links of each axis
    network   gradients summed across slices, already scattered; among GPUs, also what leaves a host
    sums      hidden states summed over the shards of heads and units, wherever they travel

The first four run behind one another, and the step takes at least the longest of them: the roofline. The next product
waits for a sum, so the sums add up, in programs as they are compiled (docs/plan.md). `EFFICIENCY` turns the roofline
into an expectation.
"""

import dataclasses

from pomona.core.chips import Chip
from pomona.model.count import AT_WORK, REMAT, activation_bytes, recomputed_flops, training_flops
from pomona.parallel.placement import Groups, place_mesh
from pomona.plan.memory import MOMENTS
from pomona.plan.work import Layout, device_weights

EFFICIENCY = 0.7
"""Share of its roofline that a well-made program reaches: OUR one assumption, the same for every chip and model. The
published runs of docs/plan.md reach 0.6 to 0.8 of theirs, one less."""

BFLOAT16 = 2


@dataclasses.dataclass(frozen=True)
class Terms:
    """Seconds of one step."""

    compute: float
    memory: float
    links: float
    network: float
    sums: float

    @property
    def bound(self) -> float:
        """What can run behind one another, and what cannot."""
        return self._longest + self.sums

    @property
    def expected(self) -> float:
        return self._longest / EFFICIENCY + self.sums

    @property
    def bottleneck(self) -> str:
        return max(dataclasses.asdict(self).items(), key=lambda term: term[1])[0]

    @property
    def communication(self) -> float:
        return self.links + self.network + self.sums

    @property
    def _longest(self) -> float:
        return max(self.compute, self.memory, self.links, self.network)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind of communication of a step."""

    name: str
    seconds: float
    over: str  # links or network
    waited_for: bool = False


def term_names(chip: Chip) -> dict[str, str]:
    """What people call the terms on this chip."""
    links = ("ICI", "DCN") if chip.torus_dimensions else ("NVLink", "network")
    return dict(zip(("compute", "memory", "links", "network", "sums"), ("compute", "HBM", *links, "sums")))


def terms(layout: Layout, groups: Groups | None = None) -> Terms:
    """The terms of a step; `groups` where the mesh has been placed before."""
    moved = collectives(layout, groups)
    behind = lambda over: sum(c.seconds for c in moved if c.over == over and not c.waited_for)
    return Terms(
        compute=compute_seconds(layout),
        memory=memory_seconds(layout),
        links=behind("links"),
        network=behind("network"),
        sums=sum(c.seconds for c in moved if c.waited_for),
    )


def compute_seconds(layout: Layout) -> float:
    """FLOPs of a device over its peak; shards of a sequence have equal parts of attention (`parallel/zigzag.py`)."""
    a, length = layout.run.architecture, layout.stage.sequence_length
    flops = training_flops(a, length).causal + recomputed_flops(a, length, layout.again)
    total = flops * layout.tokens * layout.micro_batches / layout.model_shards
    return total * layout.fleet.chip.devices / layout.fleet.chip.flops_per_second


def memory_seconds(layout: Layout) -> float:
    """Bytes to and from HBM over its bandwidth."""
    a, n = layout.run.architecture, layout.micro_batches
    w = device_weights(a, layout.model_shards, layout.weight_shards)
    policy = layout.kept
    anew = not policy.keeps_weights
    # Weights are gathered and read, read backward, their gradient written; gathered anew where they are not kept, and
    # read once more for products that are computed again.
    uses = 4 + anew + bool(layout.again)
    # Each tensor of a layer is written and read in the forward pass and, with its gradient, in the backward pass; the
    # forward half once more where what lies between the products is computed again.
    layer = 2 * activation_bytes(a, AT_WORK, layout.model_shards) * (1 + 0.5 * anew)
    kept = 2 * activation_bytes(a, policy, layout.model_shards)
    logits = 16 * a.vocab_size / layout.model_shards
    per_token = a.num_layers * (layer + kept) + logits
    state = 4 * w.stored * (3 + 2 * MOMENTS + 1 + (3 * n if n > 1 else 0))
    total = n * (uses * BFLOAT16 * (w.layers_whole + w.embedding_whole) + layout.tokens * per_token) + state
    return total * layout.fleet.chip.devices / layout.fleet.chip.memory_bytes_per_second


def collectives(layout: Layout, groups: Groups | None = None) -> list[Collective]:
    """What travels in one step; every micro-batch gathers its weights and scatters its gradients."""
    groups = groups or place_mesh(layout.fleet, layout.sizes)
    a, n = layout.run.architecture, layout.micro_batches
    policy = REMAT[layout.run.execution.remat]
    w = device_weights(a, layout.model_shards, layout.weight_shards)
    layers, embedding = BFLOAT16 * w.layers_whole, BFLOAT16 * w.embedding_whole
    gathers = 1 + (not policy.keeps_weights)
    # Two sums a layer and pass; the one after attention again where it is recomputed; the embedding's and the loss's.
    sums = a.num_layers * (4 + ("output" in policy.again)) + 2
    token_vectors = BFLOAT16 * layout.tokens * a.model_dim
    keys_values = 2 * BFLOAT16 * layout.sequences * layout.stage.sequence_length * a.num_kv_heads * a.head_dim
    # Gathered forward, and backward where they are not kept whole; their gradients scattered.
    turns = a.num_layers * (2 + (not policy.keeps_weights))
    shard = BFLOAT16 * w.stored
    found = [
        ("weights gathered", groups.weights, n * groups.weights.gather_seconds(gathers * layers + 2 * embedding)),
        ("gradients scattered", groups.weights, n * groups.weights.gather_seconds(layers + 2 * embedding)),
        ("sums over heads and units", groups.units, n * groups.units.sum_seconds(sums * token_vectors)),
        (
            "keys and values gathered",
            groups.tokens,
            n * groups.tokens.gather_seconds(turns * keys_values / layout.model_shards),
        ),
        ("gradients summed over a sequence's parts", groups.tokens, n * groups.tokens.sum_seconds(shard)),
        ("gradients summed over copies", groups.copies, n * groups.copies.sum_seconds(shard)),
        ("gradients summed across slices", groups.slices, n * groups.slices.sum_seconds(shard)),
    ]
    return [
        Collective(name, seconds, group.over, group is groups.units) for name, group, seconds in found if seconds > 0
    ]
