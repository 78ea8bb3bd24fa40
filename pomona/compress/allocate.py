"""Which matrices go to 2 bits, so that the average is met at the least predicted loss.

A matrix at b bits with I inputs costs b + E / I + 16 / I bits a weight: its indices, a float16 table of E entries for
16 outputs, and a float16 scale for every output. E is 2 ** b, or 0 on the balanced grid, which needs no table.
"""

import dataclasses
import math
from collections.abc import Sequence

from pomona.core.errors import UserError
from pomona.ops.palette import GROUP

HIGH, LOW = 4, 2
SCALE_BITS = TABLE_BITS = 16


@dataclasses.dataclass(frozen=True)
class Choice:
    """One matrix: its number of weights, the bits a weight that it costs and the loss, at 4 and at 2 bits."""

    size: int
    high_bits: float
    low_bits: float
    high_loss: float = 0.0
    low_loss: float = 0.0

    @property
    def saved_bits(self) -> float:
        return self.size * (self.high_bits - self.low_bits)


def cost(bits: int, inputs: int, balanced: bool) -> float:
    """Bits a weight of a matrix, tables and scales included."""
    entries = 0 if balanced and bits == LOW else 2**bits
    return bits + entries * TABLE_BITS / (GROUP * inputs) + SCALE_BITS / inputs


def average(choices: Sequence[Choice], low: Sequence[bool]) -> float:
    """Bits a weight over all matrices, where `low` are the ones at 2 bits."""
    stored = sum(c.size * (c.low_bits if at_low else c.high_bits) for c, at_low in zip(choices, low))
    return stored / sum(c.size for c in choices)


def check_average(choices: Sequence[Choice], bits: float) -> None:
    """Raises `UserError` for an average that no mix reaches. 2 and 4 are no averages: all matrices have those bits."""
    least, most = (average(choices, [low] * len(choices)) for low in (True, False))
    if bits not in (LOW, HIGH) and not least - 1e-9 <= bits <= most + 1e-9:
        raise UserError(
            f"no mix of 4-bit and 2-bit tensors of this model has {bits:g} bits a weight on average.",
            f"with tables and scales, averages lie between {_up(least)} (all at 2 bits) and {_down(most)} (all at 4).",
            "--bits 3.7, or --bits 4 or --bits 2 for all tensors alike.",
        )


def allocate(choices: Sequence[Choice], bits: float) -> list[bool]:
    """Which matrices go to 2 bits: those with the least loss per saved bit, until the average is at most `bits`.

    The last one may save far more than was missing. So afterwards every matrix that fits goes back to 4 bits, the one
    with the most loss per bit first.

    Raises:
        UserError: an average that no mix reaches.
    """
    check_average(choices, bits)
    if bits in (LOW, HIGH):
        return [bits == LOW] * len(choices)
    price = lambda i: (choices[i].low_loss - choices[i].high_loss) / choices[i].saved_bits
    order = sorted(range(len(choices)), key=lambda i: (price(i), i))
    excess = (average(choices, [False] * len(choices)) - bits) * sum(c.size for c in choices)
    low = [False] * len(choices)
    for index in order:
        if excess <= 0:
            break
        low[index] = True
        excess -= choices[index].saved_bits
    for index in reversed(order):
        if low[index] and excess + choices[index].saved_bits <= 0:
            low[index] = False
            excess += choices[index].saved_bits
    return low


def _up(bits: float) -> str:
    """Three decimals, never below the number: what is shown can be typed."""
    return f"{math.ceil(bits * 1000 - 1e-9) / 1000:.3f}"


def _down(bits: float) -> str:
    """Three decimals, never above the number."""
    return f"{math.floor(bits * 1000 + 1e-9) / 1000:.3f}"
