"""Many token requests in one message, and the answers in another: draft-ietf-privacypass-batched-tokens, section 6.

The draft calls it a generic batch; up to its version 03 it was the arbitrary batch. Written after the draft's version
07 and its vectors, which write a request's token type once. A batch may hold other types there; here all are 0x0002.
"""

from pomona.private.tokens.errors import TokenError
from pomona.private.tokens.presentation import Reader, read_variable_length, variable_length
from pomona.private.tokens.privacy_pass import (
    NK,
    TOKEN_REQUEST_BYTES,
    TOKEN_TYPE,
    TokenRequest,
    TokenResponse,
    decode_request,
    encode_request,
)

MOST_TOKENS = 1000
"""In one batch."""
BATCH_REQUEST_MEDIA_TYPE = "application/private-token-generic-batch-request"
BATCH_RESPONSE_MEDIA_TYPE = "application/private-token-generic-batch-response"
_ANSWER_BYTES = 3 + NK
MOST_BATCH_BYTES = len(variable_length(MOST_TOKENS * _ANSWER_BYTES)) + MOST_TOKENS * _ANSWER_BYTES
"""Of a request's body and of an answer's: what a server or a client has to be willing to read."""


def encode_batch_request(requests: list[TokenRequest]) -> bytes:
    """A GenericBatchTokenRequest of 1 to 1000 requests: 259 bytes each, behind a length of 2 or 4 bytes.

    Raises:
        TokenError: there are none, or too many.
    """
    _check_count(len(requests))
    content = b"".join(encode_request(one) for one in requests)
    return variable_length(len(content)) + content


def decode_batch_request(content: bytes) -> list[TokenRequest]:
    """The inverse of `encode_batch_request`.

    Raises:
        TokenError: `content` is no such batch.
    """
    reader = Reader("GenericBatchTokenRequest", content)
    length = read_variable_length(reader)
    _check_count(-(-length // TOKEN_REQUEST_BYTES))
    vector = Reader(reader.structure, reader.take(length))
    reader.end()
    requests = []
    while vector.position < length:
        requests.append(decode_request(vector.take(TOKEN_REQUEST_BYTES)))
    return requests


def encode_batch_response(responses: list[TokenResponse | None]) -> bytes:
    """A GenericBatchTokenResponse: 259 bytes for each answer and one for each that is refused, behind the length.

    Raises:
        TokenError: there are none, or too many.
    """
    _check_count(len(responses))
    head = b"\x01" + TOKEN_TYPE.to_bytes(2)
    content = b"".join(b"\x00" if one is None else head + one.blind_sig for one in responses)
    return variable_length(len(content)) + content


def decode_batch_response(content: bytes) -> list[TokenResponse | None]:
    """The inverse of `encode_batch_response`.

    Raises:
        TokenError: `content` is no such batch.
    """
    reader = Reader("GenericBatchTokenResponse", content)
    length = read_variable_length(reader)
    if length > MOST_TOKENS * _ANSWER_BYTES:
        raise TokenError(f"{reader.structure} has more than {MOST_TOKENS * _ANSWER_BYTES} bytes.")
    vector = Reader(reader.structure, reader.take(length))
    reader.end()
    responses: list[TokenResponse | None] = []
    while vector.position < length:
        present = vector.integer(1)
        if present > 1:
            raise TokenError(f"{reader.structure} says neither 0 nor 1 of whether an answer is there.")
        if present and vector.integer(2) != TOKEN_TYPE:
            raise TokenError(f"{reader.structure} answers with a token type other than {TOKEN_TYPE:#06x}.")
        responses.append(TokenResponse(vector.take(NK)) if present else None)
    _check_count(len(responses))
    return responses


def _check_count(count: int) -> None:
    if not 1 <= count <= MOST_TOKENS:
        raise TokenError(f"A batch is of 1 to {MOST_TOKENS} tokens.")
