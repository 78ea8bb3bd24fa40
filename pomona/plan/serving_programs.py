"""The server's own two programs, compiled for chips that are not here: one token for all slots, a piece of a prompt."""

import dataclasses
from typing import Any

from pomona.core.config import to_json
from pomona.parallel.compiler import compiler_options
from pomona.plan.compiled import Compiled, compile_lowered, kept_or_made
from pomona.plan.hlo import parse
from pomona.plan.serving import ServingPlan
from pomona.plan.timeline import Prediction, predict
from pomona.plan.topology import topology_devices

TRACED = ("model", "ops", "parallel", "infer", "core")
PROGRAMS = ("decode", "read")


@dataclasses.dataclass(frozen=True)
class ServedProgram:
    """One program of a server, compiled for its fleet."""

    name: str
    compiled: Compiled
    prediction: Prediction

    @property
    def seconds(self) -> float:
        return self.prediction.step_seconds


def compile_serving(plan: ServingPlan, rope_base: float) -> list[ServedProgram]:
    """Both programs, from the cache or compiled now: one token for every slot with `context` columns looked at, and the
    whole prompt at once, before which there is nothing.

    Raises:
        UserError: the fleet cannot be compiled for.
    """
    found = []
    for name in PROGRAMS:
        described = {
            "program": name,
            "architecture": to_json(plan.architecture),
            "serving": dataclasses.asdict(plan.serving),
            "rope_base": rope_base,
        }
        make = lambda name=name: _compile(name, plan, rope_base)
        compiled = kept_or_made(f"{plan.name}-serve-{name}", described, plan.fleet, make, TRACED)
        found.append(ServedProgram(name, compiled, predict(parse(compiled.text), compiled.places)))
    return found


def _compile(name: str, plan: ServingPlan, rope_base: float) -> Compiled:
    devices = topology_devices(plan.fleet)
    import jax
    import jax.numpy as jnp
    import numpy as np

    from pomona.infer import slots
    from pomona.infer.cache import KEPT, Cache, Int8
    from pomona.infer.sample import choices
    from pomona.model.config import Execution, resolve
    from pomona.model.decoder import parameter_specs
    from pomona.model.projection import merged
    from pomona.model.sampling import Sampling
    from pomona.model.spec import map_specs
    from pomona.parallel import rules
    from pomona.parallel.mesh import tensor_mesh

    a, s = plan.architecture, plan.serving
    mesh = tensor_mesh(len(devices), devices)
    setting = slots.Setting(a, resolve(Execution(), "tpu", len(devices)), rope_base)

    def array(shape: tuple[int, ...], dtype: Any, axes: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=rules.sharding(mesh, axes))

    dtype = lambda spec: jnp.float32 if spec.role == "norm" else jnp.bfloat16
    params = map_specs(lambda spec: array(merged(spec).shape, dtype(spec), merged(spec).axes), parameter_specs(a))
    shape, axes = (a.num_layers, s.slots, a.num_kv_heads, s.context, a.head_dim), ("layers", *KEPT)

    def side() -> Any:
        if s.cache == "bfloat16":
            return array(shape, jnp.bfloat16, axes)
        return Int8(array(shape, jnp.int8, axes), array(shape[:-1], jnp.float32, axes[:-1]))

    def wanted(rows: int) -> slots.Wanted:
        mask = np.zeros((rows, -(-a.vocab_size // 32)), np.int32)
        chosen = choices([Sampling(1.0, 0, 0.95)] * rows, range(rows))
        return slots.Wanted(chosen, np.full(rows, -1, np.int32), np.bool_(False), np.bool_(False), mask)

    with jax.set_mesh(mesh):
        cache = Cache(side(), side())
        if name == "decode":
            token_BT, position_B = np.zeros((s.slots, 1), np.int32), np.zeros(s.slots, np.int32)
            lowered = slots.decode.lower(
                params, cache, token_BT, position_B, wanted(s.slots), setting=setting, span=s.context, steps=1
            )
        else:
            token_T, place = np.zeros(s.prompt, np.int32), np.zeros(3, np.int32)
            span = slots.buckets(slots.SMALLEST_SPAN, s.context)[0]
            lowered = slots.read.lower(
                params, cache, token_T, token_T, place, wanted(1), setting=setting, span=span, every=False
            )
        return compile_lowered(lowered, plan.fleet, mesh, compiler_options(devices[0].device_kind))
