"""What a run does about hardware and data that fail it. No JAX."""

import dataclasses

from pomona.core.errors import UserError

MOST_ROLLBACKS = 100


@dataclasses.dataclass(frozen=True)
class FaultConfig:
    """Silent corruption, loss spikes and slow hosts: when each is looked for, and how much of it a run bears."""

    check_every_steps: int | None = None
    """Every so many steps one is computed twice and compared bitwise; it takes a second copy of the state. Absent:
    never."""
    compiler_checks: bool = False
    """On TPU: XLA runs every program twice, on the chip's cores in turn, and stops the run where results differ. For a
    fleet under suspicion: it costs the time of the second run, and compiling takes minutes more."""
    max_corruptions: int = 3
    """Steps that differed, since this start, before the run stops and names the machine."""
    spike_deviations: float | None = 6.0
    """A loss so many standard deviations above the recent mean is a bad step. Absent: only one that is not finite."""
    spike_window_steps: int = 100
    """Good steps of this stage that mean and deviation are taken over; before there are so many, nothing is a spike."""
    bad_steps: int = 10
    """Bad steps in a row that send the run back to the checkpoint before them, past their data."""
    max_rollbacks: int = 10
    """Rollbacks of the whole run; then it stops."""
    slow_ratio: float = 2.0
    """A host that needs so many times the others' time for its part of a step is reported as slow."""


def check_faults(config: FaultConfig) -> None:
    """Raises `UserError` for limits that cannot be meant."""
    least = {"check_every_steps": 1, "max_corruptions": 0, "spike_window_steps": 2, "bad_steps": 1, "max_rollbacks": 0}
    for name, lowest in least.items():
        value = getattr(config, name)
        if value is not None and value < lowest:
            option = name.replace("_", "-")
            raise UserError(f"faults.{name} is {value}.", f"it is at least {lowest}.", f"--faults.{option} {lowest}")
    if config.max_rollbacks > MOST_ROLLBACKS:
        raise UserError(
            f"faults.max_rollbacks is {config.max_rollbacks}.",
            f"it is at most {MOST_ROLLBACKS}: processes tell each other the whole list in one message.",
            f"--faults.max-rollbacks {MOST_ROLLBACKS}",
        )
    if config.spike_deviations is not None and not config.spike_deviations > 0:
        raise UserError(
            f"faults.spike_deviations is {config.spike_deviations}.",
            "a spike lies above the mean, by a positive number of standard deviations.",
            "--faults.spike-deviations 6, or None for no spikes",
        )
    if not config.slow_ratio > 1:
        raise UserError(
            f"faults.slow_ratio is {config.slow_ratio}.",
            "a slow host takes more time than the others: a number above 1.",
            "--faults.slow-ratio 2",
        )
