"""What Apple's runs share: core, continued and context lengthening (AFM report, sections 3.2.1 to 3.2.3).

Text: the AFM mixtures are undisclosed, so these recipes read three sources of your own: `data/web`, `data/code`
and `data/math`, with weights that are OUR assumption; continued training moves weight from web to code and math.

On a fleet add `--run` with a folder on a disk that all hosts share, and `--checkpoint.remote gs://BUCKET/RUN`.
"""

from pomona.data.config import DataConfig, Source, TokenizerConfig, Weight
from pomona.model.config import Architecture, Execution, RematPolicy
from pomona.optim.config import Schedule
from pomona.parallel.config import MeshConfig
from pomona.train.config import Evaluation, Run, Stage
from pomona.train.fault_config import FaultConfig

CORE_TOKENS, CONTINUED_TOKENS, CONTEXT_TOKENS = 6_300_000_000_000, 1_000_000_000_000, 100_000_000_000
SEQUENCE_LENGTH = 4096  # of the core stage
LONG_ROPE_BASE = 6_315_089.0
LATER_MIXTURE = (Weight("web", 0.4), Weight("code", 0.35), Weight("math", 0.25))


def core(batch_size: int) -> Stage:
    """The core stage: 6.3 T tokens in sequences of 4096."""
    return Stage("core", CORE_TOKENS // (batch_size * SEQUENCE_LENGTH), batch_size, SEQUENCE_LENGTH, Schedule())


def later(
    batch_size: int, meshes: tuple[MeshConfig, MeshConfig], remats: tuple[RematPolicy, RematPolicy]
) -> tuple[Stage, Stage]:
    """Continued training and context lengthening: as many tokens a batch, in fewer and longer sequences, so that a
    stage's mesh spreads each over more devices.

    Args:
        batch_size: of the core stage.
    """
    tokens, schedule = core(batch_size).batch_tokens, Schedule(3e-4, 1e-5, warmup_steps=1000, floor=0.001)
    continued = Stage(
        "continued",
        CONTINUED_TOKENS // tokens,
        batch_size // 2,
        2 * SEQUENCE_LENGTH,
        schedule,
        mixture=LATER_MIXTURE,
        mesh=meshes[0],
        remat=remats[0],
    )
    context = Stage(
        "long_context",
        CONTEXT_TOKENS // tokens,
        batch_size // 8,
        8 * SEQUENCE_LENGTH,
        schedule,
        rope_base=LONG_ROPE_BASE,
        mixture=LATER_MIXTURE,
        mesh=meshes[1],
        remat=remats[1],
    )
    return continued, context


def afm(
    name: str,
    architecture: Architecture,
    stages: tuple[Stage, ...],
    mesh: MeshConfig,
    remat: RematPolicy,
    check_every_steps: int | None = 1000,
    loss_chunk_tokens: int = Execution.loss_chunk_tokens,
) -> Run:
    """A run of Apple's on its own text and fleet; stages without a mesh have this one."""
    return Run(
        name=name,
        architecture=architecture,
        data=afm_data(architecture),
        stages=stages,
        execution=Execution(remat=remat, loss_chunk_tokens=loss_chunk_tokens),
        mesh=mesh,
        evaluation=Evaluation(every_steps=5000),
        faults=FaultConfig(check_every_steps=check_every_steps),
    )


def afm_data(architecture: Architecture) -> DataConfig:
    """The three sources and a tokenizer of the model's size."""
    return DataConfig(
        sources=(
            Source("web", "data/web", weight=0.7),
            Source("code", "data/code", weight=0.2),
            Source("math", "data/math", weight=0.1),
        ),
        tokenizer=TokenizerConfig(vocab_size=architecture.vocab_size, sample_bytes=2_000_000_000),
        heldout_fraction=0.001,
    )
