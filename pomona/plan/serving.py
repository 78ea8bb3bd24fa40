"""What serving a model takes on some chips: memory, and the time of a step and of a prompt, by arithmetic. No JAX.

All devices share every layer (`tensor`); weights and cache are bfloat16, or the cache int8. A step draws one token for
every slot, with every slot's cache full: it reads all weights and the whole cache once.

    memory    bytes of weights and cache on one device, over its bandwidth
    compute   2 FLOPs a weight and token, and attention's, over the peak
    links     two sums a layer of the slots' vectors, over the ICI or NVLink links; LATENCY for each device of a ring

Unlike in training, where they hide behind one another, the sums come between products that wait for them: they add up.
"""

import dataclasses
from typing import Any

from pomona.core.chips import GIB
from pomona.core.errors import UserError
from pomona.core.fleet import Fleet, cloud_name
from pomona.model.config import Architecture
from pomona.model.count import count_parameters
from pomona.parallel.config import AXES
from pomona.parallel.placement import place_mesh
from pomona.plan.memory import USABLE
from pomona.plan.roofline import BFLOAT16, EFFICIENCY
from pomona.plan.work import device_weights

LATENCY = 1e-6
"""Seconds of one hop between neighbours ("How to Scale Your Model", part 3, counts about a microsecond)."""


@dataclasses.dataclass(frozen=True)
class Serving:
    """How a model is to be served."""

    slots: int = 64
    """Sequences computed at a time."""
    context: int = 4096
    """Tokens of each."""
    prompt: int = 1024
    """Tokens whose time to the first answer is asked for."""
    cache: str = "bfloat16"
    """bfloat16 or int8."""


@dataclasses.dataclass(frozen=True)
class ServingPlan:
    """A model on a fleet, all of whose devices share every layer."""

    name: str
    architecture: Architecture
    fleet: Fleet
    serving: Serving

    @property
    def weight_bytes(self) -> float:
        """On one device."""
        return BFLOAT16 * device_weights(self.architecture, self.fleet.devices, 1).stored

    @property
    def cache_bytes(self) -> float:
        """On one device."""
        a, s = self.architecture, self.serving
        head = a.head_dim * BFLOAT16 if s.cache == "bfloat16" else a.head_dim + 4
        return 2 * s.slots * s.context * a.num_layers * a.num_kv_heads * head / self.fleet.devices

    @property
    def work_bytes(self) -> float:
        """Logits in float32, whole on every device, with their noise and what sampling makes of them."""
        return 4 * 4 * self.serving.slots * self.architecture.vocab_size

    @property
    def limit_bytes(self) -> float:
        return USABLE * self.fleet.chip.memory_bytes / self.fleet.chip.devices

    @property
    def memory_bytes(self) -> float:
        return self.weight_bytes + self.cache_bytes + self.work_bytes

    @property
    def fits(self) -> bool:
        return self.memory_bytes <= self.limit_bytes

    @property
    def step_seconds(self) -> float:
        """Of one token for every slot."""
        chip, s = self.fleet.chip, self.serving
        memory = (self.weight_bytes + self.cache_bytes) * chip.devices / chip.memory_bytes_per_second
        return max(memory, self._compute_seconds(s.slots, s.context)) / EFFICIENCY + self._sums_seconds(s.slots)

    @property
    def tokens_per_second(self) -> float:
        """Of all slots together."""
        return self.serving.slots / self.step_seconds

    @property
    def first_token_seconds(self) -> float:
        """From a prompt to its first token, with nothing else to do."""
        p = self.serving.prompt
        read = self.weight_bytes * self.fleet.chip.devices / self.fleet.chip.memory_bytes_per_second
        return max(read, self._compute_seconds(p, p / 2)) / EFFICIENCY + self._sums_seconds(p)

    def _compute_seconds(self, tokens: int, context: float) -> float:
        a, chip = self.architecture, self.fleet.chip
        attention = 4 * a.num_heads * a.head_dim * context * a.num_layers
        flops = tokens * (2 * count_parameters(a).total + attention)
        return flops / (self.fleet.chips * chip.flops_per_second)

    def _sums_seconds(self, tokens: int) -> float:
        a, n = self.architecture, self.fleet.devices
        if n == 1:
            return 0.0
        sizes = {axis: n if axis == AXES[-1] else 1 for axis in AXES}
        group = place_mesh(self.fleet, sizes).units
        return 2 * a.num_layers * (group.sum_seconds(BFLOAT16 * tokens * a.model_dim) + n * LATENCY)


def plan_serving(name: str, architecture: Architecture, fleet: Fleet, serving: Serving) -> ServingPlan:
    """The plan, if the model divides over the fleet.

    Raises:
        UserError: heads do not divide, or the fleet has several slices.
    """
    for field, least in (("slots", 1), ("context", 1), ("prompt", 1)):
        if getattr(serving, field) < least:
            raise UserError(f"--{field} {getattr(serving, field)}.", f"it is {least} at least.", f"--{field} 64")
    if fleet.slices > 1 or architecture.num_kv_heads % fleet.devices:
        raise UserError(
            f"{fleet.devices} devices in {fleet.slices} slice{'s' if fleet.slices > 1 else ''}.",
            f"all devices of one slice share the {architecture.num_kv_heads} key-value heads of a layer equally.",
            "--chips v5p-16, and one server for each such slice",
        )
    return ServingPlan(name, architecture, fleet, serving)


def to_record(plan: ServingPlan) -> dict[str, Any]:
    """As plain JSON; memory of one JAX device, in GiB."""
    return {
        "name": plan.name,
        "fleet": cloud_name(plan.fleet),
        "chips": plan.fleet.chips,
        **dataclasses.asdict(plan.serving),
        "fits": plan.fits,
        "hbm_gib": plan.memory_bytes / GIB,
        "hbm_limit_gib": plan.limit_bytes / GIB,
        "weights_gib": plan.weight_bytes / GIB,
        "cache_gib": plan.cache_bytes / GIB,
        "step_seconds": plan.step_seconds,
        "tokens_per_second": plan.tokens_per_second,
        "tokens_per_second_of_a_user": 1 / plan.step_seconds,
        "first_token_seconds": plan.first_token_seconds,
    }
