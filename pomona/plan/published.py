"""Published training steps (afm-recipe, section 11) as runs that a plan can be made for."""

import dataclasses

from pomona.core.fleet import Fleet, parse_fleet
from pomona.model.config import Architecture, AttentionWay, Execution, RematPolicy
from pomona.model.count import training_flops
from pomona.optim.config import Schedule
from pomona.parallel.config import MeshConfig
from pomona.train.config import Run, Stage

LLAMA_7B = Architecture(32000, 4096, 32, 32, 32, 128, 11008)
LLAMA_70B = Architecture(32000, 8192, 80, 64, 8, 128, 28672)
# MaxText's 22 B has two feed-forward matrices of width 24576; three of two thirds weigh and cost the same.
MAXTEXT_22B = Architecture(32000, 6144, 48, 24, 24, 256, 16384)


@dataclasses.dataclass(frozen=True)
class Published:
    """One measured step; the policy is None where it was not published.

    AXLearn's 3.03 s stand in its public config of a 7B with the mesh data -1, fsdp 16 and without a fused attention
    kernel (`experiments/text/gpt/fuji.py` of 2023), so it is compiled like that.
    """

    name: str
    run: Run
    fleet: Fleet
    seconds: float
    policy: RematPolicy | None = None
    attention: AttentionWay = "auto"

    @property
    def stage(self) -> Stage:
        return self.run.stages[0]

    @property
    def comparable(self) -> Run:
        """What our program is compiled from: the published policy, or one that keeps what most trainers keep."""
        run = self.with_policy(self.policy or "qkv")
        return dataclasses.replace(run, execution=dataclasses.replace(run.execution, attention=self.attention))

    def with_policy(self, policy: RematPolicy) -> Run:
        """With a fused attention kernel, which is what a roofline counts."""
        wide = self.run.architecture.head_dim > 128  # heads of 256 in blocks of 1024 are too much for on-chip memory
        execution = Execution(remat=policy, attention_block_tokens=512 if wide else 1024)
        return dataclasses.replace(self.run, execution=execution)


def _run(name: str, a: Architecture, batch_size: int, sequence_length: int, data: int = 1) -> Run:
    stage = Stage("core", 1, batch_size, sequence_length, Schedule(warmup_steps=0))
    return Run(name, a, (stage,), mesh=MeshConfig(data=data))


def _seconds(run: Run, chips: int, flops_per_second_per_chip: float) -> float:
    stage = run.stages[0]
    flops = training_flops(run.architecture, stage.sequence_length).full * stage.batch_tokens
    return flops / (chips * flops_per_second_per_chip)


_7B_V4 = _run("7b", LLAMA_7B, 2048, 2048, data=32)
_22B = _run("maxtext 22b", MAXTEXT_22B, 64 * 13, 2048)
PUBLISHED = [
    Published("MaxText, Llama-2 7B, 256 v5p", _run("7b", LLAMA_7B, 1024, 4096), parse_fleet("v5p-512"), 2.7),
    Published("AXLearn, Llama-2 7B, 256 v5p", _run("7b", LLAMA_7B, 1024, 4096), parse_fleet("v5p-512"), 2.5),
    Published("MaxText, Llama-2 70B, 512 v5p", _run("70b", LLAMA_70B, 1024, 4096), parse_fleet("v5p-1024"), 12.3),
    Published("AXLearn, Llama 7B, 512 v4", _7B_V4, parse_fleet("v4-1024"), 3.03, attention="reference"),
    Published("MaxText, 22 B, 64 v4", _22B, parse_fleet("v4-128"), _seconds(_22B, 64, 156e12), "full"),
]
