"""GET /tokenizer_info, POST /tokenize and /detokenize, in vLLM's form: evaluations score by tokens."""

from typing import Any

from pomona.api.errors import ApiError
from pomona.api.service import Service
from pomona.api.wire import DetokenizeRequest, TokenizeRequest
from pomona.data.tokenizer import BEGIN, END

LONGEST_TEXT = 1 << 20
"""Bytes; half a second."""


def tokenizer_info(service: Service) -> dict[str, Any]:
    """What there is to know before asking."""
    begin, end = _controls(service)
    return {
        "tokenizer_class": "SentencePieceProcessor",
        "vocab_size": service.tokenizer.vocab_size,
        "model_max_length": service.context,
        "add_bos_token": True,
        "bos_token": begin,
        "eos_token": end,
    }


def tokenize(service: Service, request: TokenizeRequest) -> dict[str, Any]:
    """The tokens of a text. The name of a control token, alone, is that token: so its id is found out.

    Raises:
        ApiError: another model, or too long a text.
    """
    service.adapter(request.model or service.name)
    size = len(request.prompt.encode("utf-8", "replace"))
    if size > LONGEST_TEXT:
        raise ApiError(400, f"The text has {size} bytes, and {LONGEST_TEXT} may be.", "invalid_value", "prompt")
    control = _controls(service).get(request.prompt)
    tokens = service.tokenizer.encode(request.prompt) if control is None else [control]
    if request.add_special_tokens and control is None:
        tokens = [BEGIN, *tokens]
    return {"count": len(tokens), "max_model_len": service.context, "tokens": tokens}


def detokenize(service: Service, request: DetokenizeRequest) -> dict[str, Any]:
    """The text of tokens; those of control are none of it.

    Raises:
        ApiError: another model, or tokens that it does not have.
    """
    service.adapter(request.model or service.name)
    return {"prompt": service.tokenizer.decode(service.encode(request.tokens, "tokens"))}


def _controls(service: Service) -> dict[str, int]:
    """The begin and end tokens by their names."""
    return {service.tokenizer.processor.id_to_piece(token): token for token in (BEGIN, END)}
