"""From logits to the next token, as `pomona.infer.sample` has it, in NumPy. Shapes: V vocabulary."""

import numpy as np

from pomona.model.sampling import Sampling


def draw(logits_V: np.ndarray, sampling: Sampling, rng: np.random.Generator) -> int:
    """A token id: temperature, then top-k, then top-p; of equally likely tokens the lower id comes first."""
    if sampling.temperature == 0:
        return int(np.argmax(logits_V))
    logits_V = logits_V.astype(np.float64) / sampling.temperature
    order = np.argsort(-logits_V, kind="stable") if sampling.top_k or sampling.top_p < 1 else np.arange(len(logits_V))
    order = order[: sampling.top_k or None]
    shares = np.exp(logits_V[order] - logits_V[order].max())
    shares /= shares.sum()
    if sampling.top_p < 1:
        shares = np.where(np.cumsum(shares) - shares < sampling.top_p, shares, 0)
    return int(order[np.searchsorted(np.cumsum(shares), rng.random() * shares.sum(), side="right")])
