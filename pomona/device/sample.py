"""From logits to the next token, as `pomona.infer.sample` has it, in NumPy. Shapes: V vocabulary."""

import numpy as np

from pomona.model.sampling import Sampling

LOOKS = (512, 8192)
"""How many tokens top-p looks at before it sorts all."""


def draw(logits_V: np.ndarray, sampling: Sampling, rng: np.random.Generator) -> int:
    """A token id: temperature, then top-k, then top-p; of equally likely tokens the lower id comes first."""
    if sampling.temperature == 0:
        return int(np.argmax(logits_V))
    return pick(*_candidates(logits_V, sampling), rng)


def probabilities(logits_V: np.ndarray, sampling: Sampling) -> np.ndarray:
    """float64 [V]: what `draw` draws from."""
    found = np.zeros(len(logits_V))
    if sampling.temperature == 0:
        found[np.argmax(logits_V)] = 1
    else:
        ids, shares = _candidates(logits_V, sampling)
        found[ids] = shares / shares.sum()
    return found


def pick(ids: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> int:
    """One of the ids, by their shares, which need not add up to 1."""
    sums = np.cumsum(shares)
    return int(ids[np.searchsorted(sums, rng.random() * sums[-1], side="right")])


def _candidates(logits_V: np.ndarray, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and their shares."""
    logits_V = logits_V.astype(np.float64) / sampling.temperature
    if not sampling.top_k and sampling.top_p == 1:
        return np.arange(len(logits_V)), np.exp(logits_V - logits_V.max())
    total = np.exp(logits_V - logits_V.max()).sum()
    for count in (sampling.top_k,) if sampling.top_k else (*LOOKS, len(logits_V)):
        few = _first(logits_V, count)
        shares = np.exp(logits_V[few] - logits_V[few[0]])
        total = shares.sum() if sampling.top_k else total
        if shares.sum() >= sampling.top_p * total:
            break
    return few, np.where(np.cumsum(shares) - shares < sampling.top_p * total, shares, 0)


def _first(logits_V: np.ndarray, count: int) -> np.ndarray:
    """The ids of the `count` largest, in falling order; of equals the lower id."""
    if count >= len(logits_V):
        return np.argsort(-logits_V, kind="stable")
    least = np.partition(logits_V, len(logits_V) - count)[len(logits_V) - count]
    within = np.flatnonzero(logits_V >= least)
    return within[np.argsort(-logits_V[within], kind="stable")][:count]
