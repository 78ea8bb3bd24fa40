"""A conversation with a server that speaks OpenAI's interface, ours or another. Standard library alone."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from pomona.core.errors import UserError
from pomona.model.sampling import Sampling


class ServedChat:
    """As `pomona.infer.chat.Chat`, with a model that is elsewhere."""

    def __init__(
        self, url: str, model: str = "", key: str = "", system: str = "", sampling: Sampling | None = None
    ) -> None:
        """
        Args:
            model: one of the server's; its first by default.

        Raises:
            UserError: there is no such server, or no such model.
        """
        self.url, self.key, self.sampling = url.rstrip("/").removesuffix("/v1"), key, sampling or Sampling()
        self.begin = [{"role": "system", "content": system}] if system else []
        self.turns: list[dict[str, str]] = []
        self.forgotten = 0
        self.tokens, self.seconds, self.first = 0, 0.0, 0.0
        with self._open("/v1/models") as found:
            self.models = [each["id"] for each in json.load(found)["data"]]
        self.model = model or self.models[0]
        if self.model not in self.models:
            raise UserError(
                f"{self.url} has no model {model!r}.", f"it has {', '.join(self.models)}.", f"--model {self.models[0]}"
            )

    def say(self, text: str, max_tokens: int = 500, seed: int = 0) -> Iterator[str]:
        """The answer, as it comes; what has come of it is part of the conversation, also where one stops asking.

        Raises:
            UserError: what is said has no room in the context, or the server does not answer.
        """
        self.turns.append({"role": "user", "content": text})
        self.tokens, self.seconds, self.first = 0, 0.0, 0.0
        answer, began, heard = "", time.perf_counter(), False
        try:
            for event in self._events(max_tokens, seed):
                if "error" in event:
                    message = event["error"].get("message")
                    raise UserError(f"the answer broke off: {message}", "a server may fail.", "say it again")
                heard = True
                self.tokens = (event.get("usage") or {}).get("completion_tokens", self.tokens)
                self.seconds = time.perf_counter() - began
                for choice in event["choices"]:
                    if piece := choice["delta"].get("content"):
                        self.first = self.first or self.seconds
                        answer += piece
                        yield piece
        finally:
            if heard:
                self.turns.append({"role": "assistant", "content": answer})
            else:
                self.turns.pop()

    def forget(self) -> None:
        """Begins anew."""
        self.turns.clear()

    def _events(self, max_tokens: int, seed: int) -> Iterator[dict[str, Any]]:
        while True:
            body = {
                "model": self.model,
                "messages": [*self.begin, *self.turns[self.forgotten :]],
                "max_tokens": max_tokens,
                "temperature": self.sampling.temperature,
                "top_p": self.sampling.top_p,
                "seed": seed,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            body |= {"top_k": self.sampling.top_k} if self.sampling.top_k else {}
            try:
                response = self._open("/v1/chat/completions", body)
                break
            except _TooLong as error:
                if len(self.turns) - self.forgotten < 3:
                    raise UserError(str(error), "an answer needs room after it.", "a shorter text") from error
                self.forgotten += 2  # what the user said and what was answered
        with response:
            for line in response:
                if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
                    yield json.loads(line[6:])

    def _open(self, path: str, body: dict[str, Any] | None = None) -> Any:
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {self.key}"} if self.key else {})
        content = None if body is None else json.dumps(body).encode()
        try:
            return urllib.request.urlopen(urllib.request.Request(self.url + path, content, headers))
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(error) from error
        except (urllib.error.URLError, OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            rule, fix = "a server listens there that speaks OpenAI's interface.", "pomona serve RUN, and its address"
            raise UserError(f"{self.url} does not answer: {reason}.", rule, fix) from error

    def _refused(self, error: urllib.error.HTTPError) -> Exception:
        try:
            told = json.loads(error.read())["error"]
            message, code = told["message"], told.get("code")
        except (ValueError, KeyError, TypeError):
            message, code = error.reason, None
        if code == "context_length_exceeded":
            return _TooLong(message)
        fix = "POMONA_API_KEY=KEY pomona chat ..." if error.code == 401 else "another request, or later"
        return UserError(f"{self.url} refuses: {message}", f"its answer was {error.code}.", fix)


class _TooLong(Exception):
    """The conversation does not fit."""
