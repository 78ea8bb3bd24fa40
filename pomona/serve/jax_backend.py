"""A run's model in the slots of `infer/slots.py`: on TPU, GPU or CPU."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pomona.adapters.bank import NONE
from pomona.core.errors import UserError
from pomona.core.machine import available_memory
from pomona.infer.cache import cache_bytes
from pomona.infer.sample import Likely as Array
from pomona.infer.sample import choices
from pomona.infer.slots import Drawn, Setting, Slots, Wanted
from pomona.model.config import resolve
from pomona.model.sampling import Sampling
from pomona.parallel.mesh import tensor_mesh
from pomona.serve.backend import Choice, Result, Work
from pomona.serve.messages import Likely
from pomona.train.load import load_adapted

COMPILED = "/jax/core/compile/backend_compile_duration"
"""What JAX tells its listeners each time that it compiles a program, or reads one that was compiled before."""
NOTHING = Choice(Sampling(0.0), 0)


class JaxBackend:
    """See `pomona.serve.backend.Backend`."""

    copies = True

    def __init__(
        self,
        run: Path,
        step: int | None = None,
        adapters: Mapping[str, Path] | None = None,
        slots: int = 8,
        context: int = 4096,
        cache: str = "auto",
        chunk: int = 256,
        draws: int = 8,
        guesses: int = 0,
        tensor: int = 1,
    ) -> None:
        """
        Args:
            run: a run folder.
            cache: `int8`, or `auto` for the type of the computation.
            tensor: devices that share every layer: heads, feed-forward units and vocabulary.

        Raises:
            UserError: as `load_model`, an adapter of another base, or sizes that do not divide over the devices.
        """
        mesh = tensor_mesh(tensor) if tensor > 1 else None
        self.adapters = tuple(adapters or ())
        model = load_adapted(run, step, list((adapters or {}).values()), mesh)
        execution = resolve(model.run.execution, jax.default_backend(), tensor)
        dtype = "int8" if cache == "int8" else execution.compute_dtype
        _check_memory(cache_bytes(model.run.architecture, slots, context, dtype) // tensor, slots, context)
        setting = Setting(model.run.architecture, execution, model.stage.rope_base)
        self.slots, self.context, self.chunk = slots, context, chunk
        self.draws, self.guesses = draws if not guesses else 1, guesses
        self.vocab_size = model.run.architecture.vocab_size
        self.tokenizer = model.tokenizer
        self._slots = Slots(model.params, setting, slots, context, dtype, chunk, mesh)
        self.device = f"{tensor} x {jax.devices()[0].device_kind}" if tensor > 1 else jax.devices()[0].device_kind
        self.memory_bytes = self._slots.nbytes
        self.compiled = 0
        jax.monitoring.register_event_duration_secs_listener(self._count)

    def _count(self, event: str, duration_secs: float, **about: Any) -> None:
        self.compiled += event == COMPILED

    def warm(self) -> None:
        """Runs every program once, on slots that nobody has yet."""
        one, all_ = self._wanted([NOTHING], [None], [None]), self._nothing()
        spans = self._slots.spans
        for span, position in zip(spans, (0, *(before + 1 for before in spans))):  # the first at which it is looked at
            for chunk in self._slots.chunks:
                self._slots.read(0, position, [1] * chunk, one)
            elsewhere = [self.context] * (self.slots - 1)
            for steps in {1, self.draws}:
                self._slots.decode([[1]] * self.slots, [max(0, span - steps), *elsewhere], all_, steps)
            if self.guesses:
                self._slots.decode([[1] * (1 + self.guesses)] * self.slots, [span - 1, *elsewhere], all_, 1)
        self._slots.read(0, 0, [1, 1], one, [1, 1])
        self._slots.copy(0, self.slots - 1)
        self.compiled = 0

    def run(self, works: Sequence[Work]) -> list[Result]:
        """Prompts one by one, then the next tokens of all slots in one dispatch; what comes back is waited for last."""
        prompts = {work.slot: self._read(work) for work in works if len(work.tokens) > 1 + work.guesses or _whole(work)}
        steps = [work for work in works if work.slot not in prompts]
        drawn = self._decode(steps) if steps else None
        found = {slot: _result(work, jax.device_get(read)) for slot, (work, read) in prompts.items()}
        if drawn is not None:
            told = jax.device_get(drawn)
            found |= {work.slot: Result(*_drawn(work, told, work.slot)) for work in steps}
        return [found[work.slot] for work in works]

    def copy(self, source: int, target: int, length: int) -> None:
        self._slots.copy(source, target)

    def _read(self, work: Work) -> tuple[Work, Any]:
        wanted = self._wanted([work.choice], [work.adapter], [work.mask], work.followed_by is not None)
        return work, self._slots.read(work.slot, work.position, work.tokens, wanted, work.followed_by)

    def _decode(self, works: Sequence[Work]) -> Drawn:
        width = 1 + self.guesses if any(work.guesses for work in works) else 1
        tokens, places = [[0] * width] * self.slots, [self.context] * self.slots
        chosen: list[Choice] = [NOTHING] * self.slots
        adapters: list[str | None] = [None] * self.slots
        masks: list[np.ndarray | None] = [None] * self.slots
        for work in works:
            tokens[work.slot] = [*work.tokens, *[0] * (width - len(work.tokens))]
            places[work.slot] = work.position
            chosen[work.slot], adapters[work.slot], masks[work.slot] = work.choice, work.adapter, work.mask
        return self._slots.decode(tokens, places, self._wanted(chosen, adapters, masks), works[0].draws)

    def _nothing(self) -> Wanted:
        return self._wanted([NOTHING] * self.slots, [None] * self.slots, [None] * self.slots)

    def _wanted(
        self,
        chosen: Sequence[Choice],
        adapters: Sequence[str | None],
        masks: Sequence[np.ndarray | None],
        tell: bool = False,
    ) -> Wanted:
        number = [NONE if name is None else self.adapters.index(name) for name in adapters]
        open_W = np.full(-(-self.vocab_size // 32), -1, np.int32)
        masked = any(mask is not None for mask in masks)
        masks_RW = np.stack([open_W if mask is None else mask for mask in masks]) if masked else None
        asked = choices([one.sampling for one in chosen], [one.seed for one in chosen])
        return self._slots.wanted(asked, number, tell or any(one.logprobs is not None for one in chosen), masks_RW)


def _check_memory(needed: int, slots: int, context: int) -> None:
    """Raises `UserError` where a device has no room for the keys and values."""
    told = jax.devices()[0].memory_stats() or {}
    free = told["bytes_limit"] - told.get("bytes_in_use", 0) if "bytes_limit" in told else available_memory()
    if needed > free:
        raise UserError(
            f"{slots} slots of {context} tokens need {needed / 2**30:.1f} GiB for keys and values.",
            f"{free / 2**30:.1f} GiB are free beside the weights.",
            f"--slots {max(1, slots // 4)} --context {max(256, context // 4)}, or --cache int8",
        )


def _whole(work: Work) -> bool:
    """Whether more is wanted than the next tokens."""
    return not work.draws or work.followed_by is not None or work.hidden


def _result(work: Work, read: Any) -> Result:
    drawn = read.drawn
    first = drawn._replace(token=drawn.token[None], likely=Array(*(x[None] for x in drawn.likely)))
    tokens, likely = _drawn(work, first, 0) if work.draws else ([], [])
    count = work.choice.logprobs or 0
    prompt = [_likely(read.prompt, i, count) for i in range(len(work.followed_by or ()))]
    return Result(tokens, likely, prompt, np.asarray(read.hidden_D) if work.hidden else None)


def _drawn(work: Work, drawn: Any, row: int) -> tuple[list[int], list[Likely]]:
    """One slot's tokens of [K, R], and what is told of them."""
    tokens = drawn.token[: max(work.draws, 1 + work.guesses), row].tolist()  # others of the batch may have more guesses
    if work.choice.logprobs is None:
        return tokens, []
    own = Array(*(x[:, row] for x in drawn.likely))
    return tokens, [_likely(own, step, work.choice.logprobs) for step in range(len(tokens))]


def _likely(found: Any, row: int, count: int) -> Likely:
    ids, others = found.tokens_BC[row, :count].tolist(), found.others_BC[row, :count].tolist()
    return Likely(float(found.own_B[row]), ids, others)
