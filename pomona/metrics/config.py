"""What a run reports, and how often. No JAX."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class MetricsConfig:
    """`metrics.jsonl` is always written."""

    log_every_steps: int = 10
    tensorboard: bool = False
    """Also write TensorBoard files into the run folder (needs pomona[tensorboard])."""
