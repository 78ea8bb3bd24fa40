"""Requests as they come over the wire, OpenAI's field for field; what the engine cannot do is refused, not ignored."""

import re
from typing import Any, Literal, TypeVar

import msgspec

from pomona.api.errors import ApiError, wrong
from pomona.model.sampling import MOST_LIKELY

MOST_CHOICES, MOST_STOPS, MOST_TOOLS = 128, 16, 128


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """How an answer streams."""

    include_usage: bool = False


class Common(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What chats and plain completions share."""

    model: str
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    user: str | None = None
    priority: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None


class CompletionRequest(Common, forbid_unknown_fields=True, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[str | int | list[int]]
    logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None


class Function(msgspec.Struct, forbid_unknown_fields=True):
    """A function that may be called."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, forbid_unknown_fields=True):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: Function


class Called(msgspec.Struct):
    """A call's name and its arguments as JSON."""

    name: str
    arguments: str


class ToolCall(msgspec.Struct):
    """A call that was made."""

    id: str
    function: Called
    type: str = "function"


class Message(msgspec.Struct, forbid_unknown_fields=True):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    type: Literal["text"] | None = None
    """No part of OpenAI's form; older lm_eval says it."""


class Named(msgspec.Struct):
    """A function by its name."""

    name: str


class ToolChoice(msgspec.Struct):
    """The one function that has to be called."""

    type: Literal["function"]
    function: Named


class Schema(msgspec.Struct, forbid_unknown_fields=True):
    """What a text's JSON has to be."""

    name: str
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, forbid_unknown_fields=True):
    """What a text has to be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: Schema | None = None


class ChatRequest(Common, forbid_unknown_fields=True, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None


class EmbeddingRequest(msgspec.Struct, forbid_unknown_fields=True):
    """POST /v1/embeddings."""

    model: str
    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None


class TokenizeRequest(msgspec.Struct, forbid_unknown_fields=True):
    """POST /tokenize."""

    prompt: str
    model: str | None = None
    add_special_tokens: bool = True


class DetokenizeRequest(msgspec.Struct, forbid_unknown_fields=True):
    """POST /detokenize."""

    tokens: list[int]
    model: str | None = None


T = TypeVar("T")


def read(kind: type[T], body: bytes) -> T:
    """A request's body.

    Raises:
        ApiError: no JSON, no UTF-8, an unknown parameter, or a value of another type.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        text = str(error)
        unknown = re.search(r"unknown field `([^`]*)`", text)
        where = re.search(r"at `\$\.?([^`]*)`", text)
        param = unknown.group(1) if unknown else where.group(1) if where else None
        missing = re.search(r"missing required field `([^`]*)`", text)
        if unknown:
            raise ApiError(400, f"Unknown parameter: {param!r}.", "unknown_parameter", param) from error
        if missing:
            name = missing.group(1)
            raise ApiError(400, f"Missing required parameter: {name!r}.", "missing_required_parameter", name) from error
        raise ApiError(400, f"Invalid type: {text}.", "invalid_type", param) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"The body is not valid JSON in UTF-8: {error}.", "invalid_json") from error


def check(request: Common) -> None:
    """Raises `ApiError` for values out of range, and for what is not served."""
    within = {
        "temperature": (request.temperature, 0, 2),
        "n": (request.n, 1, MOST_CHOICES),
        "max_tokens": (request.max_tokens, 0 if isinstance(request, CompletionRequest) else 1, 1 << 30),
        "top_k": (request.top_k, 0, 1 << 30),
    }
    if isinstance(request, ChatRequest):
        within |= {
            "max_completion_tokens": (request.max_completion_tokens, 1, 1 << 30),
            "top_logprobs": (request.top_logprobs, 0, MOST_LIKELY),
        }
    if isinstance(request, CompletionRequest):
        within["logprobs"] = (request.logprobs, 0, MOST_LIKELY)
    for name, (value, least, most) in within.items():
        if value is not None and not least <= value <= most:
            raise wrong(name, f"{name} is {value}; it has to be {least} to {most}.")
    if request.top_p is not None and not 0 < request.top_p <= 1:
        raise wrong("top_p", f"top_p is {request.top_p}; it has to be above 0 and at most 1.")
    if request.seed is not None and not -(2**63) <= request.seed < 2**63:
        raise wrong("seed", "seed has to be a 64-bit integer.")
    if len(stops(request)) > MOST_STOPS or "" in stops(request):
        raise wrong("stop", f"stop has to be at most {MOST_STOPS} texts, none of them empty.")
    _refuse(request)


def _refuse(request: Common) -> None:
    """What is not served is said to be."""
    unserved = ["presence_penalty", "frequency_penalty", "logit_bias", "suffix"]
    for name in unserved:
        if getattr(request, name, None):
            raise ApiError(400, f"{name} is not supported by this server; leave it out.", "unsupported_parameter", name)
    best_of = getattr(request, "best_of", None)
    if best_of is not None and best_of != (request.n or 1):
        raise ApiError(400, "best_of is not supported by this server; use n.", "unsupported_parameter", "best_of")
    if request.stream_options is not None and not request.stream:
        raise wrong("stream_options", "stream_options needs stream to be true.")


def stops(request: Common) -> list[str]:
    """The texts that end an answer."""
    return [request.stop] if isinstance(request.stop, str) else list(request.stop or ())


def prompts(given: str | list[Any], param: str) -> list[Any]:
    """Each prompt of a request: a text, or token ids.

    Raises:
        ApiError: none, or several kinds.
    """
    each = [given] if isinstance(given, str) or (given and all(isinstance(one, int) for one in given)) else given
    kinds = {type(one) for one in each}
    if len(kinds) != 1 or kinds == {int}:
        raise wrong(param, f"{param} is a text, a list of texts, a list of token ids, or a list of such lists.")
    return list(each)
