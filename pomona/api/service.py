"""What every endpoint needs: the model's names, its tokenizer, the engine, who may ask and how much may wait."""

import dataclasses
import secrets
from typing import Any

from pomona.api.counters import Counters
from pomona.api.errors import ApiError
from pomona.api.keys import Keys, Principal
from pomona.api.template import Template
from pomona.api.wire import Common
from pomona.core.errors import UserError
from pomona.data.tokenizer import BEGIN, Tokenizer
from pomona.serve.grammar import Grammars
from pomona.serve.link import LOST, Link
from pomona.serve.messages import Submit


@dataclasses.dataclass
class Service:
    """One model with its adapters."""

    name: str
    adapters: tuple[str, ...]
    tokenizer: Tokenizer
    link: Link
    template: Template
    keys: Keys
    counters: Counters
    grammars: Grammars
    most_waiting: int
    """Sequences beyond the slots that may wait."""
    created: int
    draining: bool = False

    @property
    def context(self) -> int:
        return self.link.context

    def models(self) -> list[str]:
        """The names that a request may use."""
        return [self.name, *(f"{self.name}:{adapter}" for adapter in self.adapters)]

    def drain(self) -> None:
        """Nothing new is let in any more."""
        self.draining = True

    def adapter(self, model: str) -> str | None:
        """The adapter that a model's name asks for.

        Raises:
            ApiError: 404.
        """
        if model not in self.models():
            known = ", ".join(self.models())
            raise ApiError(404, f"The model {model!r} does not exist; there are: {known}.", "model_not_found", "model")
        return model.partition(":")[2] or None if model != self.name else None

    def encode(self, prompt: str | list[int], param: str = "prompt") -> list[int]:
        """The tokens of a prompt: a text's with the begin token, or those given.

        Raises:
            ApiError: tokens that the model does not have, or none; a text that cannot fit.
        """
        if isinstance(prompt, str):
            size, longest = len(prompt.encode("utf-8", "replace")), max(map(len, self.tokenizer.pieces()))
            if size > self.context * longest:  # said before time is spent on it
                raise self._too_long(f"at least {size // longest}")
            return [BEGIN, *self.tokenizer.encode(prompt)]
        V = self.tokenizer.vocab_size
        if not prompt or any(not isinstance(t, int) or not 0 <= t < V for t in prompt):
            raise ApiError(400, f"A prompt of tokens holds 0 to {V - 1}, one at least.", "invalid_value", param)
        return prompt

    def room(self, tokens: list[int], asked: int | None) -> int:
        """How many tokens an answer may have.

        Raises:
            ApiError: the prompt fills the context.
        """
        left = self.context - len(tokens)
        if left < (asked != 0):
            raise self._too_long(str(len(tokens)))
        return left if asked is None else min(asked, left)

    def _too_long(self, tokens: str) -> ApiError:
        message = f"This model's context is {self.context} tokens, and the prompt has {tokens}."
        return ApiError(400, message, "context_length_exceeded", "messages")

    def check_grammar(self, grammar: str, param: str) -> str:
        """The grammar, if it can be compiled.

        Raises:
            ApiError: it cannot.
        """
        try:
            self.grammars.check(grammar)
        except UserError as error:
            raise ApiError(400, f"{error.what[0].upper()}{error.what[1:]}", "invalid_schema", param) from error
        return grammar

    def admit(self, count: int) -> None:
        """Raises `ApiError` where so many more sequences are too many: 429, or 503 where nothing is computed."""
        if self.draining:
            raise ApiError(503, "The server is stopping.", "stopping", retry_after=5)
        if self.link.ready is None:
            raise ApiError(503, f"{LOST[0].upper()}{LOST[1:]}.", "engine_restarting", retry_after=2)
        slots, waiting = self.link.ready.slots, self.link.in_flight
        if waiting + count > slots + self.most_waiting:
            seconds = max(1, min(60, round(waiting / slots)))
            message = f"{waiting} sequences are computed or wait, and {slots + self.most_waiting} may."
            raise ApiError(429, message, "overloaded", retry_after=seconds)

    def order(
        self,
        request: Common,
        who: Principal,
        tokens: list[int],
        max_tokens: int,
        number: int = 0,
        grammar: str | None = None,
        logprobs: int | None = None,
        echo: bool = False,
    ) -> Submit:
        """What the engine is to do for one choice of a request; `number` tells its choices apart."""
        seed = secrets.randbits(31) if request.seed is None else request.seed
        return Submit(
            id=0,
            tokens=tokens,
            max_tokens=max_tokens,
            temperature=1.0 if request.temperature is None else request.temperature,
            top_k=request.top_k or 0,
            top_p=1.0 if request.top_p is None else request.top_p,
            seed=(seed + number) % 2**32,
            logprobs=logprobs,
            echo=echo,
            grammar=grammar,
            adapter=self.adapter(request.model),
            **whose(who, request.user),
            priority=who.priority if request.priority is None else min(request.priority, who.priority),
        )


def whose(who: Principal, user: str | None) -> dict[str, Any]:
    """Who is served, and whose prompts' beginnings may be shared. A key has one share, whatever users it names; nobody
    shares with another user or key: a key's name has no white space."""
    return {"principal": who.name or user or "", "sharing": f"{who.name}\n{user or ''}"}
