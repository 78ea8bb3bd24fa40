"""POST /v1/chat/completions."""

import contextlib
import json
from collections.abc import AsyncGenerator
from typing import Any

import msgspec

from pomona.api import forms, tools
from pomona.api.answers import Entry, Piece, pieces, whole
from pomona.api.errors import ApiError, wrong
from pomona.api.keys import Principal
from pomona.api.service import Service
from pomona.api.wire import ChatRequest, Message, check, stops
from pomona.core.errors import UserError
from pomona.serve.grammar import json_grammar, lark_grammar

CALL = "<tool_call>"


class Chat:
    """A request that has been checked, and its orders."""

    def __init__(self, service: Service, request: ChatRequest, who: Principal) -> None:
        """Raises `ApiError` for what cannot be served."""
        check(request)
        service.adapter(request.model)
        if request.top_logprobs is not None and not request.logprobs:
            raise wrong("top_logprobs", "top_logprobs needs logprobs to be true.")
        self.service, self.request = service, request
        self.calls = tools.lark(request)
        self.grammar = self._grammar()
        self.stops = [*stops(request), *(service.template.stops if not self.grammar else ())]
        self.prompt = service.encode(self._text())
        most = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
        room = service.room(self.prompt, most)
        logprobs = (request.top_logprobs or 0) if request.logprobs else None
        self.orders = [
            service.order(request, who, self.prompt, room, number, self.grammar, logprobs)
            for number in range(request.n or 1)
        ]
        service.admit(len(self.orders))

    async def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        found = await whole(self.service, self.orders, self.stops)
        choices = []
        for piece in found:
            text = piece.text if self.grammar else piece.text.lstrip(" ")
            text, calls = tools.calls_of(text) if self.calls else (text, [])
            message: dict[str, Any] = {
                "role": "assistant",
                "content": text if text or not calls else None,
                "refusal": None,
            }
            if calls:
                message["tool_calls"] = calls
            choices.append(
                {
                    "index": piece.index,
                    "message": message,
                    "logprobs": self._logprobs(piece.entries),
                    "finish_reason": "tool_calls" if calls and piece.reason == "stop" else piece.reason,
                }
            )
        answer = forms.head("chat.completion", "chatcmpl", self.request.model) | {"choices": choices}
        return answer | {"usage": forms.usage_of(found, [len(self.prompt)])}

    async def stream(self) -> AsyncGenerator[dict[str, Any], None]:
        """The answer as it comes; each call of a function in one piece."""
        head = forms.head("chat.completion.chunk", "chatcmpl", self.request.model)
        seen = [Piece(index) for index in range(len(self.orders))]
        speaking = [_Speech(self.calls is not None, self.grammar is not None) for _ in self.orders]
        chunk = lambda piece, delta, reason=None: (
            head
            | {
                "choices": [
                    {
                        "index": piece.index,
                        "delta": delta,
                        "logprobs": self._logprobs(piece.entries) if piece.entries else None,
                        "finish_reason": reason,
                    }
                ]
            }
        )
        for piece in seen:
            yield chunk(piece, {"role": "assistant", "content": ""})
        async with contextlib.aclosing(pieces(self.service, self.orders, self.stops)) as coming:
            async for piece in coming:
                own, speech = seen[piece.index], speaking[piece.index]
                own.prompted, own.tokens = own.prompted or piece.prompted, piece.tokens
                for delta in speech.deltas(piece.text, piece.reason is not None):
                    yield chunk(piece, delta)
                    piece.entries = []
                if piece.reason:
                    yield chunk(piece, {}, "tool_calls" if speech.count and piece.reason == "stop" else piece.reason)
        if self.request.stream_options and self.request.stream_options.include_usage:
            yield head | {"choices": [], "usage": forms.usage_of(seen, [len(self.prompt)])}

    def _grammar(self) -> str | None:
        form = self.request.response_format
        if self.calls:
            if form is not None and form.type != "text":
                raise wrong("response_format", "response_format and tools that may be called exclude each other.")
            return self.service.check_grammar(lark_grammar(self.calls), "tools")
        if form is None or form.type == "text":
            return None
        schema: Any = True
        if form.type == "json_schema":
            if form.json_schema is None or form.json_schema.schema is None:
                raise wrong("response_format", "a response_format of json_schema has json_schema.schema.")
            schema = form.json_schema.schema
        try:
            grammar = json_grammar(schema)
        except (UserError, ValueError) as error:
            raise wrong("response_format", str(error)) from error
        return self.service.check_grammar(grammar, "response_format")

    def _text(self) -> str:
        if not self.request.messages:
            raise wrong("messages", "messages is empty.")
        messages = [_plain(message) for message in self.request.messages]
        given = msgspec.to_builtins(self.request.tools) if self.calls else None
        try:
            return self.service.template.render(messages, given)
        except ValueError as error:
            raise wrong("messages", f"these messages do not go with the chat template: {error}.") from error

    def _logprobs(self, entries: list[Entry]) -> dict[str, Any] | None:
        return forms.chat_logprobs(self.service.tokenizer, entries) if self.request.logprobs else None


class _Speech:
    """The text of a choice that streams, as deltas: words at once, calls of functions when they are whole."""

    def __init__(self, may_call: bool, exact: bool) -> None:
        self.may_call, self.exact = may_call, exact
        self.waiting, self.begun, self.count = "", False, 0

    def deltas(self, text: str, last: bool) -> list[dict[str, Any]]:
        if not self.begun and not self.exact:
            text = text.lstrip(" ")
        self.begun = self.begun or bool(text)
        self.waiting += text
        if not (self.may_call and self.waiting.startswith(CALL[: len(self.waiting)])):
            return self._words()
        found: list[dict[str, Any]] = []
        while (end := self.waiting.find("</tool_call>\n")) >= 0:
            end += len("</tool_call>\n")
            _, calls = tools.calls_of(self.waiting[:end])
            found += [{"tool_calls": [{"index": self.count + i, **call}]} for i, call in enumerate(calls)]
            self.count, self.waiting = self.count + len(calls), self.waiting[end:]
        return found + (self._words() if last else [])

    def _words(self) -> list[dict[str, Any]]:
        words, self.waiting = self.waiting, ""
        return [{"content": words}] if words else []


def _plain(message: Message) -> dict[str, Any]:
    """A message as templates take it, its content one text."""
    content = message.content
    if isinstance(content, list):
        for part in content:
            if part.get("type") != "text" or not isinstance(part.get("text"), str):
                kind = part.get("type")
                raise ApiError(
                    400, f"Content of type {kind!r}: this model reads text.", "unsupported_content", "messages"
                )
        content = "".join(part["text"] for part in content)
    if content is None and not message.tool_calls:
        raise wrong("messages", f"a message of the role {message.role!r} has no content.")
    calls = msgspec.to_builtins(message.tool_calls or [])
    for call in calls:
        call["function"]["arguments"] = _object(call["function"]["arguments"])
    more = {"name": message.name, "tool_call_id": message.tool_call_id, "tool_calls": calls}
    given = {name: value for name, value in more.items() if value}  # templates ask what is there
    return {"role": message.role, "content": content or ""} | given


def _object(arguments: str) -> Any:
    """A call's arguments as templates take them: an object, where the text is one."""
    try:
        found = json.loads(arguments)
        json.dumps(found, ensure_ascii=False).encode()  # JSON can name half of a character, which no text holds
    except (ValueError, RecursionError):
        return arguments
    return found if isinstance(found, dict) else arguments
