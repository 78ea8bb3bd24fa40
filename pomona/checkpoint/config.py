"""When checkpoints are written and how many are kept. No JAX."""

import dataclasses

from pomona.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """A checkpoint is due when either interval has passed; one is always written at the end and on preemption."""

    every_steps: int = 5000
    every_seconds: float = 900.0
    keep: int = 3
    """The newest checkpoints kept on disk."""
    remote: str | None = None
    """An fsspec address of this run's own, such as gs://bucket/run, that checkpoints are copied to."""
    remote_every_steps: int = 5000
    """The first checkpoint after so many steps is copied; the last one, and that of a preemption, always."""
    remote_keep: int = 3
    """The newest checkpoints kept there."""


def check_checkpoint(config: CheckpointConfig) -> None:
    """Raises `UserError` for intervals that cannot be meant."""
    if config.remote_every_steps < 1 or config.remote_keep < 2:
        raise UserError(
            f"checkpoints go to the remote tier every {config.remote_every_steps} steps, {config.remote_keep} kept.",
            "the interval is positive, and two checkpoints are kept at least, so that a damaged one has a substitute.",
            "--checkpoint.remote-every-steps 5000 --checkpoint.remote-keep 2",
        )
    if config.every_steps < 1 or config.every_seconds <= 0 or config.keep < 2:
        raise UserError(
            f"checkpoints every {config.every_steps} steps or {config.every_seconds} s, {config.keep} kept.",
            "intervals are positive, and two checkpoints are kept at least, so that a damaged one has a substitute.",
            "--checkpoint.every-steps 1000 --checkpoint.every-seconds 900 --checkpoint.keep 2",
        )
