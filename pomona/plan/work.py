"""One stage of a run laid on one mesh: the sizes from which memory and time follow.

Pure arithmetic on the configuration, without JAX. A device is what JAX calls one.
"""

import dataclasses
from collections.abc import Mapping
from functools import cache

from pomona.core.errors import UserError
from pomona.core.fleet import Fleet
from pomona.model.config import Architecture, resolve
from pomona.model.count import REMAT, TURNED_BY_HALVES, Remat, weights
from pomona.parallel.config import shards
from pomona.parallel.placement import check_slices
from pomona.train.config import Run, Stage, at_stage, check_stage_mesh, mesh_option, stage_sizes

FUSED_ATTENTION = ("auto", "splash", "cudnn")


@dataclasses.dataclass(frozen=True)
class Layout:
    """A stage of a run on a mesh, and how often each dimension is cut."""

    run: Run
    """With the mesh and the policy that are laid out as its own."""
    stage: Stage
    fleet: Fleet
    sizes: Mapping[str, int]
    """Devices along each mesh axis."""

    @property
    def micro_batches(self) -> int:
        """Parts of the batch that are worked on one after another."""
        return self.stage.micro_batches or 1

    @property
    def weight_shards(self) -> int:
        """Devices that share one copy of a weight along the model's width."""
        return shards("model", self.sizes)

    @property
    def model_shards(self) -> int:
        """Devices that share heads and feed-forward units."""
        return shards("ffn", self.sizes)

    @property
    def token_shards(self) -> int:
        """Devices that share one sequence."""
        return shards("tokens", self.sizes)

    @property
    def kept(self) -> Remat:
        """What each layer keeps for the backward pass."""
        policy = REMAT[self.run.execution.remat]
        platform = "tpu" if self.fleet.chip.torus_dimensions else "gpu"
        halves = resolve(self.run.execution, platform).rotation == "split"
        return TURNED_BY_HALVES if policy.keeps_weights and halves else policy

    @property
    def again(self) -> tuple[str, ...]:
        """The layer's products that the backward pass computes again. On GPUs attention is one of them with every
        policy but `none`: cuDNN's log-normalisers have no name by which they could be kept."""
        policy = REMAT[self.run.execution.remat]
        nameless = not (policy.keeps_weights or self.fleet.chip.torus_dimensions or "attention" in policy.again)
        return (*policy.again, "attention") if nameless else policy.again

    @property
    def sequences(self) -> float:
        """Sequences of one micro-batch on one device."""
        return self.stage.batch_size / shards("batch", self.sizes) / self.micro_batches

    @property
    def tokens(self) -> float:
        """Tokens of one micro-batch on one device."""
        return self.sequences * self.stage.sequence_length / self.token_shards


@dataclasses.dataclass(frozen=True)
class DeviceWeights:
    """Numbers of the model's weights on one device."""

    stored: int  # as they are kept: sharded
    layers_whole: int  # of all layers, whole along the model's width
    embedding_whole: int


@cache
def device_weights(a: Architecture, model_shards: int, weight_shards: int) -> DeviceWeights:
    """The weights of one device where heads, units and vocabulary are cut into `model_shards`, the width into
    `weight_shards`; norms are not cut."""
    spread = {"heads", "kv_heads", "ffn", "vocab"}
    whole = {w.name: w.size // (model_shards if spread & set(w.axes) else 1) for w in weights(a)}
    stored = sum(n // (weight_shards if "model" in w.axes else 1) for w, n in zip(weights(a), whole.values()))
    embedding = whole.pop("embedding")
    return DeviceWeights(stored, sum(whole.values()), embedding)


def lay_out(run: Run, stage: Stage, fleet: Fleet) -> Layout:
    """A stage of the run on its own mesh.

    Raises:
        UserError: a dimension does not divide over the mesh, or an axis other than data would cross slices.
    """
    check_counted(run)
    index = run.stages.index(stage)
    sizes = stage_sizes(run, index, fleet.devices)
    check_slices(sizes, fleet.slices, mesh_option(run, index))
    check_stage_mesh(run, index, fleet.devices)
    return Layout(at_stage(run, index), stage, fleet, sizes)


def check_counted(run: Run) -> None:
    """Checks that the run computes what the plan counts.

    Raises:
        UserError: another type, or attention that writes its scores to memory.
    """
    if run.execution.compute_dtype == "float32":
        raise UserError(
            "execution.compute_dtype is float32.",
            "a plan counts bfloat16, for which the chips' peaks are published.",
            "--execution.compute-dtype bfloat16",
        )
    if run.execution.attention not in FUSED_ATTENTION:
        raise UserError(
            f"execution.attention is {run.execution.attention}.",
            f"a plan counts the kernels of accelerators: {', '.join(FUSED_ATTENTION)}.",
            "--execution.attention auto",
        )
