"""Silent data corruption: now and then a step is computed twice, and its bits compared on the devices.

Google saw such an event every week or two while training Gemini (Gemini report, "Training Infrastructure"), Meta six
in 54 days on 16 thousand GPUs (Llama 3 report, section 3.3.4). A step is a deterministic program, so two results that
differ in one bit mean hardware. The state goes in as a copy, which the step may overwrite, so the very program that
trains is what is checked; a second copy of the state is the price.
"""

import collections
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pomona.core.errors import UserError
from pomona.parallel import rules
from pomona.parallel.checksum import device_checksums, differing, probe
from pomona.train.fault_config import FaultConfig

COMPUTATIONS = 3  # two that agree out of so many are believed

Step = Callable[[Any, Any], tuple[Any, dict[str, jax.Array]]]


class CorruptionCheck:
    """Computes checked steps; one object for a stage.

    Args:
        hosts: the host's name of every process.
        counted: how many "steps" of this start have differed, shared by its stages.
        report: told of every step that differed: `step`, `devices` (process, host, device, kind), `found_by` and
            `kept`, whether two of three results agreed.
    """

    def __init__(
        self,
        config: FaultConfig,
        mesh: Mesh,
        shardings: Any,
        hosts: Sequence[str],
        counted: collections.Counter[str],
        report: Callable[..., None],
    ):
        self._config, self._mesh, self._hosts, self._counted, self._report = config, mesh, hosts, counted, report
        self._checksums = device_checksums(mesh, (shardings, rules.sharding(mesh, ())))
        self._differing = differing(mesh)
        self._copy = jax.jit(lambda state: jax.tree.map(jnp.copy, state), out_shardings=shardings)

    def due(self, step: int) -> bool:
        """Whether this step is computed twice."""
        every = self._config.check_every_steps
        return every is not None and step % every == 0

    def compute(self, step: int, function: Step, state: Any, batch: Any, repeat: Callable[[], None]) -> Any:
        """What `function(state, batch)` returns, believed because two computations agree.

        Args:
            repeat: called when the first computation is done; what follows takes a step's time.

        Raises:
            UserError: no two results agree, or too many steps have differed.
        """
        sums: list[jax.Array] = []
        for number in range(COMPUTATIONS):
            last = number == COMPUTATIONS - 1
            result, about = function(state if last else self._copy(state), batch)
            sums.append(jax.block_until_ready(self._checksums((result, about))))
            if number == 0:
                repeat()
            agreeing = [i for i in range(number) if not self._differing(sums[i], sums[-1]).any()]
            if agreeing:
                break
            if not last:
                del result  # or three copies of the state would be in memory
        for leaf in jax.tree.leaves(state):
            leaf.delete()  # as donation does: callers up the stack still hold it
        if len(sums) > 2:
            unlike = self._differing(sums[0], sums[1]) | self._differing(sums[1], sums[2])
            self._blame(step, unlike, kept=bool(agreeing))
        return result, about

    def _blame(self, step: int, differs: np.ndarray, kept: bool) -> None:
        self._counted["steps"] += 1
        found_by = "step"
        if len(differs) > 1 and differs.sum() > len(differs) / 2:
            # Wrong gradients go through a collective to every device: ask each device by itself.
            differs, found_by = probe(self._mesh), "probe"
        devices = [self._name(device) for device, wrong in zip(self._mesh.devices.flat, differs) if wrong]
        self._report(step=step, devices=devices, found_by=found_by if devices else "nothing", kept=kept)
        count, most = self._counted["steps"], self._config.max_corruptions
        if kept and count <= most:
            return
        what = "three computations of it gave three results" if not kept else f"{count} steps have differed now"
        raise UserError(
            f"silent data corruption at step {step}: {what}; {describe(devices)}.",
            f"the same program on the same data gives the same bits; {most} exceptions are borne in one start.",
            "take the machine out of the job, then the same command: it goes on after the newest checkpoint.",
        )

    def _name(self, device: jax.Device) -> dict[str, Any]:
        host = self._hosts[device.process_index]
        return {"process": device.process_index, "host": host, "device": device.id, "kind": device.device_kind}


def describe(devices: Sequence[dict[str, Any]]) -> str:
    """`device 5 (TPU v4) of process 1 on host t1v-n-7`, for people."""
    if not devices:
        return "collectives spread it to all devices, and none errs by itself: test the machines of this job"
    named = [f"device {d['device']} ({d['kind']}) of process {d['process']} on host {d['host']}" for d in devices]
    return ", ".join(named[:4]) + (f" and {len(named) - 4} more" if len(named) > 4 else "")
