"""What a run records about itself, and how often. No JAX."""

import dataclasses

from pomona.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class MetricsConfig:
    """Records of training. `metrics.jsonl` is always written."""

    log_every_steps: int = 10
    """Steps between two records; the first and the last step are recorded too."""
    tensorboard: bool = False
    """Also write TensorBoard event files to `tensorboard/` in the run folder (needs the extra `tensorboard`)."""


def check_metrics(config: MetricsConfig, path: str = "metrics") -> None:
    """Raises `UserError` for an impossible configuration."""
    if config.log_every_steps < 1:
        raise UserError(
            f"{path}.log_every_steps is {config.log_every_steps}.",
            "there is at least one step between two records.",
            f"--{path}.log-every-steps 10",
        )


def is_logged(config: MetricsConfig, step: int, total_steps: int) -> bool:
    """Whether step number `step`, from 1, is recorded."""
    return step in (1, total_steps) or step % config.log_every_steps == 0
