"""How the next token is chosen. No JAX."""

import dataclasses

from pomona.core.errors import UserError

MOST_LIKELY = 20
"""Tokens that are told with a log-probability at most, as OpenAI has it."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 0.8
    """0 always takes the most likely token."""
    top_k: int = 0
    """Only the k most likely tokens; 0 for all."""
    top_p: float = 1.0
    """Only the most likely tokens that together have this probability."""


def check_sampling(sampling: Sampling) -> None:
    """Raises `UserError` for values outside their ranges."""
    if sampling.temperature < 0 or sampling.top_k < 0 or not 0 < sampling.top_p <= 1:
        raise UserError(
            f"temperature {sampling.temperature}, top-k {sampling.top_k}, top-p {sampling.top_p}.",
            "the temperature and top-k are not negative, and top-p is above 0 and at most 1.",
            "--temperature 0.8 --top-k 0 --top-p 0.95",
        )
