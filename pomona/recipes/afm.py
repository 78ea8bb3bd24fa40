"""Apple's runs: core, continued and context lengthening (AFM report, sections 3.2.1 to 3.2.3).

    pomona train afm_server            8192 TPU v4 chips, 6.3 T + 1 T + 0.1 T tokens
    pomona train afm_device_parent     2048 TPU v5p chips
    pomona train afm_85m               one GPU or a few TPU chips

On a fleet add `--run` with a folder on a disk that all hosts share, and `--checkpoint.remote gs://BUCKET/RUN`.

Text: the AFM mixtures are undisclosed, so these recipes read three sources of your own: `data/web`, `data/code`
and `data/math`, with weights that are OUR assumption; continued training moves weight from web to code and math.
"""

from pomona.data.config import DataConfig, Source, TokenizerConfig, Weight
from pomona.model.config import Architecture, Execution, RematPolicy
from pomona.model.presets import AFM_85M, AFM_DEVICE, AFM_DEVICE_PARENT, AFM_SERVER
from pomona.optim.config import Schedule
from pomona.parallel.config import MeshConfig
from pomona.train.config import Evaluation, Run, Stage
from pomona.train.fault_config import FaultConfig

CORE_TOKENS, CONTINUED_TOKENS, CONTEXT_TOKENS = 6_300_000_000_000, 1_000_000_000_000, 100_000_000_000
LONG_ROPE_BASE = 6_315_089.0
LATER_MIXTURE = (Weight("web", 0.4), Weight("code", 0.35), Weight("math", 0.25))


def afm_server() -> Run:
    """AFM-server at an assumed 69 B parameters: 8192 TPU v4 chips in 8 slices."""
    meshes = MeshConfig(data=8, seq=2), MeshConfig(data=8, seq=4), MeshConfig(data=8, seq=8, tensor=2)
    # A checked step needs a second state, 1.5 GiB, for which `gate` leaves no room on v4; `qkv` would.
    return _afm("afm_server", AFM_SERVER, 4096, meshes, ("gate", "qkv", "full"), check_every_steps=None)


def afm_device_parent() -> Run:
    """The 6.4 B parent that AFM-on-device is pruned from, trained with the server recipe: 2048 TPU v5p chips."""
    meshes = MeshConfig(data=16), MeshConfig(data=8, seq=2), MeshConfig(data=2, seq=8)
    return _afm("afm_device_parent", AFM_DEVICE_PARENT, 2048, meshes, ("products",) * 3)


def afm_device() -> Run:
    """AFM-on-device, 2.7 B parameters, from scratch: 2048 TPU v5p chips."""
    meshes = MeshConfig(data=32), MeshConfig(data=16, seq=2), MeshConfig(data=4, seq=8)
    return _afm("afm_device", AFM_DEVICE, 2048, meshes, ("products",) * 3)


def afm_85m() -> Run:
    """A small AFM at 20 tokens per parameter, for one GPU or a few TPU chips."""
    core = Schedule(warmup_steps=500)
    return Run(
        name="afm_85m",
        architecture=AFM_85M,
        data=_data(AFM_85M),
        stages=(Stage("core", steps=6000, batch_size=64, sequence_length=4096, schedule=core),),
        evaluation=Evaluation(every_steps=1000),
    )


def _afm(
    name: str,
    architecture: Architecture,
    batch_size: int,
    meshes: tuple[MeshConfig, MeshConfig, MeshConfig],
    remats: tuple[RematPolicy, RematPolicy, RematPolicy],
    check_every_steps: int | None = 1000,
) -> Run:
    """The three stages; a later one has fewer and longer sequences, so its mesh spreads each over more devices."""
    core_mesh, continued_mesh, context_mesh = meshes
    core = Stage("core", CORE_TOKENS // (batch_size * 4096), batch_size, 4096, Schedule())
    later = Schedule(peak_learning_rate=3e-4, weight_decay=1e-5, warmup_steps=1000, floor=0.001)
    continued = Stage(
        "continued",
        CONTINUED_TOKENS // core.batch_tokens,
        batch_size // 2,
        8192,
        later,
        mixture=LATER_MIXTURE,
        mesh=continued_mesh,
        remat=remats[1],
    )
    context = Stage(
        "long_context",
        CONTEXT_TOKENS // core.batch_tokens,
        batch_size // 8,
        32768,
        later,
        rope_base=LONG_ROPE_BASE,
        mixture=LATER_MIXTURE,
        mesh=context_mesh,
        remat=remats[2],
    )
    return Run(
        name=name,
        architecture=architecture,
        data=_data(architecture),
        stages=(core, continued, context),
        execution=Execution(remat=remats[0]),
        mesh=core_mesh,
        evaluation=Evaluation(every_steps=5000),
        faults=FaultConfig(check_every_steps=check_every_steps),
    )


def _data(architecture: Architecture) -> DataConfig:
    return DataConfig(
        sources=(
            Source("web", "data/web", weight=0.7),
            Source("code", "data/code", weight=0.2),
            Source("math", "data/math", weight=0.1),
        ),
        tokenizer=TokenizerConfig(vocab_size=architecture.vocab_size, sample_bytes=2_000_000_000),
        heldout_fraction=0.001,
    )
