"""A release: what nodes run, measured and said in the log, so that clients can hold every node to it."""

from collections.abc import Mapping
from pathlib import Path

from pomona.private.attestation.case import BANK
from pomona.private.attestation.profiles import PROFILES
from pomona.private.roles.measure import (
    REGISTER,
    adapter_digests,
    image_digest,
    measurement,
    model_digest,
    register_after,
)
from pomona.private.roles.node import Measured
from pomona.private.transparency.leaves import Release


def measured(name: str, model: Path, adapters: Mapping[str, Path], image: str = "") -> Measured:
    """What would run here.

    Args:
        image: the digest of the machine's image, where one is built; that of the installed programs by default.

    Raises:
        UserError: the model is none.
    """
    return Measured(name, image or image_digest(), model_digest(model), adapter_digests(adapters))


def release_of(
    ours: Measured, version: str, profile: str, others: Mapping[str, str], now: float, seconds: int
) -> Release:
    """The leaf that publishes it.

    Args:
        others: registers that the machine itself extends at its start, or of its processor: `sha256/4`, `mrtd/0`.
        seconds: how long it counts.
    """
    registers = dict(others)
    if PROFILES[profile].tpm or profile == "laptop":
        registers[f"{BANK}{REGISTER}"] = register_after(measurement(ours.image, ours.model, ours.adapters)).hex()
    return Release(
        not_before=int(now),
        expires=int(now) + seconds,
        name=ours.name,
        version=version,
        image=ours.image,
        model=ours.model,
        adapters=ours.adapters,
        measurements=registers,
        profile=profile,
    )
