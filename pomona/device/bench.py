"""How fast a device file is computed here, and what that is of what the memory allows.

Decoding reads all weights, and the keys and values so far, once a token; so its floor is their bytes over what as many
threads read a second from an array far larger than any cache.
"""

import dataclasses
import statistics
import time
from collections.abc import Sequence

import numpy as np

from pomona.device.adapter import DeviceAdapter
from pomona.device.engine import DeviceModel
from pomona.device.library import read_seconds
from pomona.device.session import Session, kept_bytes

PREFILL = 512


@dataclasses.dataclass(frozen=True)
class Measured:
    """Medians, in seconds and bytes."""

    threads: int
    instruction_set: str
    first: float
    """A token on its own, the first after opening."""
    prefill: float
    """A prompt at once."""
    decode: dict[int, float]
    """A token after so many others."""
    bytes: dict[int, int]
    """What that token reads."""
    cache_bytes: int
    """What keys and values of all that was timed take."""

    def tokens_per_second(self, context: int) -> float:
        """Of decoding after so many tokens."""
        return 1 / self.decode[context]

    def bytes_per_second(self, context: int) -> float:
        """What decoding after so many tokens reads."""
        return self.bytes[context] / self.decode[context]


def bandwidth(threads: int, size: int = 1 << 30) -> float:
    """Bytes a second that so many threads read of `size` bytes; needs the native library."""
    data = np.ones(size, np.uint8)
    return size / read_seconds(data, threads)


def measure(
    model: DeviceModel,
    threads: int,
    contexts: Sequence[int] = (128,),
    tokens: int = 32,
    prefill: int = PREFILL,
    adapter: DeviceAdapter | None = None,
    instruction_set: str = "",
) -> Measured:
    """Times the first token, a prompt of `prefill` tokens, and `tokens` tokens after each of the contexts."""
    V, most = model.file.architecture.vocab_size, max(*contexts, prefill) + tokens + 1
    text = np.random.default_rng(1).integers(3, V, most).tolist()
    session = model.open(most, threads, instruction_set, adapter)
    first = _seconds(session, text[:1])
    session.forget(0)
    at_once, decode = _seconds(session, text[:prefill]), {}
    for context in sorted(contexts):
        session.advance(session.keep(text[:context]))
        decode[context] = statistics.median(_seconds(session, [token]) for token in text[context : context + tokens])
    read = {context: bytes_read(model, context + tokens // 2, adapter) for context in decode}
    return Measured(threads, session.engine.instruction_set, first, at_once, decode, read, kept_bytes(model.file, most))


def bytes_read(model: DeviceModel, context: int, adapter: DeviceAdapter | None = None) -> int:
    """What one token reads after `context` others."""
    a = model.file.architecture
    kept = 2 * a.num_layers * a.num_kv_heads * (a.head_dim + 4) * context
    return model.file.weight_bytes + kept + (adapter.nbytes if adapter else 0)


def _seconds(session: Session, tokens: Sequence[int]) -> float:
    began = time.perf_counter()
    session.advance(tokens)
    return time.perf_counter() - began
