"""POST /v1/completions and /v1/embeddings."""

import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import msgspec

from pomona.api import forms
from pomona.api.answers import Entry, Piece, pieces, whole
from pomona.api.keys import Principal
from pomona.api.service import Service, whose
from pomona.api.wire import CompletionRequest, EmbeddingRequest, check, prompts, stops
from pomona.data.tokenizer import END
from pomona.serve.messages import Submit

DEFAULT_TOKENS = 16


class Completion:
    """A request that has been checked, and its orders: all choices of the first prompt, then of the next."""

    def __init__(self, service: Service, request: CompletionRequest, who: Principal) -> None:
        """Raises `ApiError` for what cannot be served."""
        check(request)
        service.adapter(request.model)
        self.service, self.request, self.stops = service, request, stops(request)
        given = prompts(request.prompt, "prompt")
        self.begun = [isinstance(prompt, str) for prompt in given]  # those that got a begin token from us
        self.tokens = [service.encode(prompt) for prompt in given]
        most = DEFAULT_TOKENS if request.max_tokens is None else request.max_tokens
        self.each = request.n or 1
        self.orders: list[Submit] = []
        for tokens in self.tokens:
            room = service.room(tokens, most)
            for number in range(self.each):
                echo = bool(request.echo) and request.logprobs is not None
                order = service.order(request, who, tokens, room, number, logprobs=request.logprobs, echo=echo)
                self.orders.append(order)
        service.admit(len(self.orders))

    async def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        found = await whole(self.service, self.orders, self.stops)
        await self._add_ends(found)
        choices = [self._choice(piece, True) for piece in found]
        answer = forms.head("text_completion", "cmpl", self.request.model) | {"choices": choices}
        return answer | {"usage": forms.usage_of(found, list(map(len, self.tokens)))}

    async def stream(self) -> AsyncGenerator[dict[str, Any], None]:
        """The answer as it comes."""
        head, seen = (
            forms.head("text_completion", "cmpl", self.request.model),
            [Piece(i) for i in range(len(self.orders))],
        )
        begun: set[int] = set()
        async with contextlib.aclosing(pieces(self.service, self.orders, self.stops)) as coming:
            async for piece in coming:
                own = seen[piece.index]
                own.prompted, own.tokens, own.ended = own.prompted or piece.prompted, piece.tokens, piece.ended
                known = len(own.entries)
                own.entries += piece.entries
                await self._add_ends([own])
                piece.entries = own.entries[known:]
                if piece.text or piece.reason or (piece.prompted and self.request.echo):
                    first = piece.index not in begun
                    begun.add(piece.index)
                    piece.prompted = own.prompted
                    yield head | {"choices": [self._choice(piece, first)]}
        if self.request.stream_options and self.request.stream_options.include_usage:
            yield head | {"choices": [], "usage": forms.usage_of(seen, list(map(len, self.tokens)))}

    async def _add_ends(self, found: Sequence[Piece]) -> None:
        """Adds the end token to what is told of an echo, where it was drawn: who scores a prompt asks for one token
        more, and leaves out the last that comes back. The engine says no end, so it is asked how likely it was."""
        ended = [piece for piece in found if piece.ended and self.orders[piece.index].echo]
        orders = []
        for piece in ended:
            order = self.orders[piece.index]
            tokens = [*order.tokens, *(entry.token for entry in piece.entries), END]
            orders.append(msgspec.structs.replace(order, tokens=tokens, max_tokens=0))
        for piece, again in zip(ended, await whole(self.service, orders, ())):
            assert again.prompted is not None, "an engine tells of a prompt before its end"
            piece.entries.append(Entry(END, again.prompted.likely[-1]))

    def _choice(self, piece: Piece, first: bool) -> dict[str, Any]:
        """One choice; what is echoed comes with the first of its pieces."""
        request, tokenizer = self.request, self.service.tokenizer
        prompt = self.tokens[piece.index // self.each]
        echoed = tokenizer.decode(prompt) if request.echo and first else ""
        logprobs = None
        if request.logprobs is not None:
            ids, likely = [entry.token for entry in piece.entries], [entry.likely for entry in piece.entries]
            if echoed and piece.prompted:
                before = [None, *piece.prompted.likely]
                skip = int(self.begun[piece.index // self.each])
                ids, likely = prompt[skip:] + ids, before[skip:] + likely
            logprobs = forms.plain_logprobs(tokenizer, ids, likely)
        text = echoed + piece.text
        return {"index": piece.index, "text": text, "logprobs": logprobs, "finish_reason": piece.reason}


async def embeddings(service: Service, request: EmbeddingRequest, who: Principal) -> dict[str, Any]:
    """The mean of a text's last hidden states, of length 1."""
    from pomona.api.errors import ApiError

    if request.dimensions is not None:
        raise ApiError(400, "dimensions is not supported by this model.", "unsupported_parameter", "dimensions")
    adapter, given = (
        service.adapter(request.model),
        [service.encode(each, "input") for each in prompts(request.input, "input")],
    )
    for tokens in given:
        service.room(tokens, 0)
    service.admit(len(given))
    own = whose(who, request.user) | {"adapter": adapter, "priority": who.priority}
    orders = [Submit(0, tokens, 0, embed=True, **own) for tokens in given]
    found = await whole(service, orders, ())
    data = [
        {"object": "embedding", "index": i, "embedding": forms.embedding(_vector(piece), request.encoding_format)}
        for i, piece in enumerate(found)
    ]
    count = sum(map(len, given))
    return {
        "object": "list",
        "data": data,
        "model": request.model,
        "usage": {"prompt_tokens": count, "total_tokens": count},
    }


def _vector(piece: Piece) -> Sequence[float]:
    assert piece.prompted is not None, "an engine tells of a prompt before its end"
    return piece.prompted.embedding
