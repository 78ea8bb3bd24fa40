"""AFM-on-device: Apple's full life of the device model, pruned from a larger parent and distilled from it.

    pomona life afm_device             2048 TPU v5p chips for each chapter that trains
    pomona life afm_device --dry-run   only says the commands

| chapter | what | tokens |
|---|---|---|
| parent | 6.6 B parameters, the core stage with the server's recipe | 6.3 T |
| pruned | Soft-Top-K masks, feed-forward width 24192 to 8064 | 188 B |
| distilled | the parent's top token beside the label, through the whole core stage | 6.3 T |
| continued | continued training, then context lengthening, without a teacher | 1 T + 0.1 T |
| palettized | 3.7 bits a weight on average, 4 and 2 bits mixed | |
| recovered | adapters of rank 16 on the seven projections | 0.15 % of 7.4 T |

AFM report, sections 3.2 and 5; which checkpoint of the parent was pruned it does not say: OUR assumption is the end of
its core stage. `afm_device` alone is the same model from random weights: the report's baseline.
"""

from pomona.model.presets import AFM_DEVICE, AFM_DEVICE_PARENT
from pomona.parallel.config import MeshConfig
from pomona.recipes.afm import CONTEXT_TOKENS, CONTINUED_TOKENS, CORE_TOKENS, afm, core, later
from pomona.recipes.life import Distill, Life, Palettize, Prune, Recover, Train
from pomona.train.config import Run, Stage

BATCH_SIZE = 2048
PRUNE_TOKENS = 188_000_000_000
RECOVER_SHARE = 0.0015  # of the tokens that the model was trained on


def afm_device_parent() -> Run:
    """The 6.6 B parent that AFM-on-device is pruned from, by the server's core stage: 2048 TPU v5p chips."""
    return afm("afm_device_parent", AFM_DEVICE_PARENT, (core(BATCH_SIZE),), MeshConfig(data=16), "products")


def afm_device() -> Run:
    """AFM-on-device, 2.7 B parameters, from scratch: 2048 TPU v5p chips."""
    stages = (core(BATCH_SIZE), *_later())
    return afm("afm_device", AFM_DEVICE, stages, MeshConfig(data=32), "products")


def afm_device_continued() -> Run:
    """AFM-on-device after its core stage, with --from RUN: continued, then long context; 2048 TPU v5p chips."""
    return afm("afm_device_continued", AFM_DEVICE, _later(), MeshConfig(data=16, seq=2), "products")


def _later() -> tuple[Stage, Stage]:
    meshes = MeshConfig(data=16, seq=2), MeshConfig(data=4, seq=8)
    return later(BATCH_SIZE, meshes, ("products", "products"))


def _steps(tokens: float) -> tuple[str, ...]:
    """Settings of a stage with so many tokens; every stage has as many in a batch."""
    return ("--stages.0.steps", str(int(tokens // core(BATCH_SIZE).batch_tokens)))


LIFE = Life(
    name="afm_device",
    what="AFM-on-device: parent, pruned, distilled, continued, palettized, recovered",
    chapters=(
        Train("parent", "afm_device_parent"),
        Prune("pruned", of="parent", ffn=AFM_DEVICE.ffn_dim, settings=_steps(PRUNE_TOKENS)),
        Distill("distilled", of="pruned", teacher="parent"),  # as long as the stage it was pruned from
        Train("continued", "afm_device_continued", of="distilled"),
        Palettize("palettized", of="continued", bits=3.7),
        Recover(
            "recovered",
            of="palettized",
            settings=_steps(RECOVER_SHARE * (CORE_TOKENS + CONTINUED_TOKENS + CONTEXT_TOKENS)),
        ),
    ),
    server="parent",
    device="recovered",
    prompt="The most important thing about",
)
