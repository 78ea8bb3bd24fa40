"""What a run trains, and by which loss, as data. No JAX.

`train.objectives` turns each kind into what the loop runs.
"""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class NextToken:
    """All weights of the decoder, by the cross-entropy of the next token: pre-training."""

    kind: Literal["next-token"] = "next-token"


ObjectiveConfig = NextToken
