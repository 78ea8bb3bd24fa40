"""The loop over slots: takes orders, decides what is computed next, tells what came of it.

A step is one call of the backend: chunks of the prompts that are not yet computed, and the next tokens of all others. A
request's tokens depend on its prompt, its choices and its seed alone: not on its neighbours, nor on chunks, nor on
whether it was put back and goes on later.
"""

import dataclasses
import time
from collections.abc import Callable

import numpy as np

from pomona.core.errors import UserError
from pomona.data.tokenizer import END
from pomona.model.sampling import Sampling
from pomona.serve.backend import Backend, Choice, Result, Work
from pomona.serve.grammar import Follower, Grammars
from pomona.serve.guess import Guesses
from pomona.serve.messages import Cancel, Event, Finished, Likely, Order, Prompted, Said, Stats, Submit
from pomona.serve.prefix import Held, place
from pomona.serve.schedule import Scheduler

WAITING = 1 << 20
"""Requests that the engine itself keeps waiting; the server turns away long before."""


@dataclasses.dataclass
class Active:
    """A request from its order to its end."""

    order: Submit
    choice: Choice
    said: list[int] = dataclasses.field(default_factory=list)
    computed: int = 0
    """Of its tokens, those that are in its slot."""
    cached: int = 0
    told: bool = False
    """Whether what came of its prompt has been told."""
    likely: list[Likely] = dataclasses.field(default_factory=list)
    """Of the prompt, as it is computed."""
    hidden: np.ndarray | None = None
    follower: Follower | None = None

    @property
    def id(self) -> int:
        return self.order.id

    @property
    def principal(self) -> str:
        return self.order.principal

    @property
    def priority(self) -> int:
        return self.order.priority

    @property
    def total(self) -> int:
        """Tokens there are: the prompt and what was said."""
        return len(self.order.tokens) + len(self.said)

    @property
    def reads_all(self) -> bool:
        """Whether its whole prompt has to be computed, known or not."""
        return self.order.echo or self.order.embed

    def tokens(self, first: int, last: int) -> list[int]:
        """Some of its tokens."""
        prompt = self.order.tokens
        if last <= len(prompt):
            return prompt[first:last]
        return prompt[first:] + self.said[max(0, first - len(prompt)) : last - len(prompt)]


class Engine:
    """Runs requests on a backend; not to be used by two threads."""

    def __init__(
        self,
        backend: Backend,
        tell: Callable[[Event], None],
        grammars: Grammars | None = None,
        keep_prefixes: bool = True,
        guesses: Guesses | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            tell: where events go, in their order.
            keep_prefixes: without it nothing of one request serves another.
            guesses: how texts may go on; none are made without it.
        """
        self.backend, self.tell, self.grammars = backend, tell, grammars
        self.keep_prefixes, self.guesses, self.clock = keep_prefixes, guesses, clock
        self.scheduler: Scheduler[Active] = Scheduler(backend.slots, WAITING)
        self.held = [Held() for _ in range(backend.slots)]
        self.steps = self.preempted = 0
        self.counts = {"prompt": 0, "cached": 0, "said": 0}
        self.busy_seconds = self.backend_seconds = 0.0

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self.scheduler.running and not self.scheduler.waiting

    def receive(self, order: Order) -> None:
        """Takes a request, or gives one up: its slot is free at the next step."""
        if isinstance(order, Cancel):
            self.scheduler.cancel(order.id)
            return
        problem = self._problem(order)
        if problem:
            self.tell(Finished(order.id, "failed", problem))
            return
        sampling = Sampling(order.temperature, order.top_k, order.top_p)
        active = Active(order, Choice(sampling, order.seed, order.logprobs))
        if not self.scheduler.submit(active):
            self.tell(Finished(order.id, "failed", "too many requests wait"))

    def step(self) -> None:
        """One call of the backend, and what follows from it."""
        began = self.clock()
        self._admit()
        works = self._works()
        if works:
            before = self.clock()
            try:
                results = self.backend.run(works)
            except UserError as error:  # the model's numbers are not finite: no other request is the worse for it
                for work in works:
                    self._end(work.slot, "failed", error.what)
                results = []
            seconds = self.clock() - before
            self.backend_seconds += seconds
            rights = [self._take(work, result) for work, result in zip(works, results)]
            if self.guesses is not None and all(len(work.tokens) == 1 + work.guesses for work in works):
                self.guesses.learn(len(works), [(w.guesses, right) for w, right in zip(works, rights)], seconds)
        self.steps += 1
        self.busy_seconds += self.clock() - began

    def stats(self) -> Stats:
        """Counts since the start."""
        c, s = self.counts, self.scheduler
        return Stats(
            running=len(s.running),
            waiting=s.waiting,
            prompt_tokens=c["prompt"],
            cached_tokens=c["cached"],
            said_tokens=c["said"],
            preempted=self.preempted,
            guessed=self.guesses.guessed if self.guesses else 0,
            guessed_right=self.guesses.right if self.guesses else 0,
            dispatches=self.steps,
            compiled=self.backend.compiled,
            busy_seconds=self.busy_seconds,
            backend_seconds=self.backend_seconds,
        )

    def _problem(self, order: Submit) -> str:
        b = self.backend
        if not order.tokens or min(order.tokens) < 0 or max(order.tokens) >= b.vocab_size:
            return "the prompt holds no tokens, or some that the model does not have"
        if len(order.tokens) + bool(order.max_tokens) > b.context:
            return f"the prompt has {len(order.tokens)} tokens, and the context is {b.context}"
        if order.adapter is not None and order.adapter not in b.adapters:
            return f"there is no adapter {order.adapter!r}"
        return ""

    def _admit(self) -> None:
        """Fills free slots, and takes slots from requests of lower priority."""
        s = self.scheduler
        while s.next() is not None:
            free = [slot for slot in range(self.backend.slots) if slot not in s.running]
            if not free:
                victim = s.victim()
                if victim is None:
                    return
                s.preempt(victim).computed = 0
                self.preempted += 1
                free = [victim]
            self._begin(free)

    def _begin(self, free: list[int]) -> None:
        active = self.scheduler.next()
        assert active is not None
        order, tokens = active.order, active.tokens(0, active.total)
        known = self.held if self.keep_prefixes and not active.reads_all else [Held(used=h.used) for h in self.held]
        found = place(known, free, tokens, order.adapter, order.sharing, self.backend.copies)
        if found.copied_from is not None:
            self.backend.copy(found.copied_from, found.slot, found.kept)
        self.scheduler.admit(found.slot)
        self.held[found.slot] = Held(tokens[: found.kept], order.adapter, order.sharing, self.steps)
        active.computed = found.kept
        if not active.told:
            active.cached = found.kept
            self.counts["cached"] += found.kept
        if order.grammar is not None and active.follower is None:
            assert self.grammars is not None, "a grammar needs a tokenizer"
            active.follower = self.grammars.follow(order.grammar)

    def _works(self) -> list[Work]:
        """The next tokens of everyone that draws, and chunks of prompts, in the order of admission."""
        room, prompts, draws = self.backend.chunk, [], []
        for slot, active in self.scheduler.running.items():
            missing = active.total - active.computed
            if missing == 1:
                draws.append(slot)
            elif room > 0:
                prompts.append((slot, min(missing, room)))
                room -= min(missing, room)
        drawing = [self.scheduler.running[slot] for slot in draws]
        single = bool(prompts) or any(active.follower for active in drawing)
        fits = all(active.total + self.backend.draws <= self.backend.context for active in drawing)
        times = self.backend.draws if fits and not single and self.guesses is None else 1
        count = 0 if single or self.guesses is None else self.guesses.count(len(draws))
        works = [self._work(slot, 1, times, count) for slot in draws]
        works += [self._work(slot, size, 1) for slot, size in prompts]
        return [work for work in works if work is not None]

    def _work(self, slot: int, size: int, draws: int, guesses: int = 0) -> Work | None:
        active = self.scheduler.running[slot]
        first, last, order = active.computed, active.computed + size, active.order
        whole = last == active.total
        mask = None
        if whole and active.follower is not None:
            try:
                mask = active.follower.mask()
            except UserError as error:
                self._end(slot, "failed", error.what)
                return None
        prompt_left = first < len(order.tokens)
        guessed: list[int] = []
        if guesses and self.guesses is not None:
            room = min(guesses, order.max_tokens - len(active.said) - 1, self.backend.context - last)
            guessed = self.guesses.of(slot, active.tokens(0, active.total), room)
        return Work(
            slot,
            first,
            active.tokens(first, last) + guessed,
            active.choice,
            draws if whole and order.max_tokens else 0,
            len(guessed),
            order.adapter,
            mask,
            active.tokens(first + 1, last + 1) if order.echo and prompt_left else None,
            order.embed,
        )

    def _take(self, work: Work, result: Result) -> int:
        """What came of a work, to who asked for it; returns how many of its guesses were right."""
        active = self.scheduler.running[work.slot]
        order, new = active.order, len(work.tokens) - work.guesses
        right = next((i for i in range(work.guesses) if result.tokens[i] != work.tokens[new + i]), work.guesses)
        in_prompt = max(0, min(new, len(order.tokens) - active.computed))
        active.computed += new
        self.counts["prompt"] += in_prompt
        active.likely += result.prompt
        if result.hidden is not None:
            active.hidden = result.hidden if active.hidden is None else active.hidden + result.hidden
        held = self.held[work.slot]
        held.tokens += work.tokens[:new]
        held.used = self.steps
        self.scheduler.charge(order.principal, prompt=in_prompt)
        if active.computed < active.total:
            return right
        if not active.told:
            active.told = True
            mean = [] if active.hidden is None else (active.hidden / len(order.tokens)).tolist()
            self.tell(Prompted(order.id, active.cached, active.likely, mean))
        if not order.max_tokens:
            self._end(work.slot, "length")
            return right
        said = result.tokens[: right + 1] if work.guesses else result.tokens
        self._say(work.slot, active, said, result.likely)
        return right

    def _say(self, slot: int, active: Active, tokens: list[int], likely: list[Likely]) -> None:
        """Goes on by the tokens that were drawn, up to the first that ends the text."""
        order, before, reason = active.order, len(active.said), ""
        held, most = self.held[slot], min(order.max_tokens, self.backend.context - len(order.tokens))
        for token in tokens:
            if token == END:
                reason = "stop"
                break
            if active.said[before:]:  # all but the last have been computed in the same dispatch
                held.tokens.append(active.said[-1])
                active.computed += 1
            active.said.append(token)
            if active.follower is not None and active.follower.take(token):
                reason = "stop"
                break
            if len(active.said) == most:
                reason = "length"
                break
        new = active.said[before:]
        self.counts["said"] += len(new)
        self.scheduler.charge(order.principal, said=len(new))
        if new:
            self.tell(Said(order.id, new, likely[: len(new)]))
        if reason:
            self._end(slot, reason)

    def _end(self, slot: int, reason: str, text: str = "") -> None:
        order = self.scheduler.running[slot].order
        self.scheduler.release(slot)
        if not self.keep_prefixes or reason == "failed":
            self.held[slot] = Held(used=self.steps)
        self.tell(Finished(order.id, reason, text))
