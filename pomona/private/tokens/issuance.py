"""The client's half of issuing: blind a batch of nonces, and make tokens of what the issuer signs.

The answers are good for one batch, in the process that made it: blinds are kept in memory alone, since a blind that
is found later ties the tokens to the account that asked for them.
"""

import dataclasses
import secrets

from pomona.private.tokens import blind_rsa
from pomona.private.tokens.batches import MOST_TOKENS, decode_batch_response, encode_batch_request
from pomona.private.tokens.errors import TokenError
from pomona.private.tokens.privacy_pass import (
    DIGEST_BYTES,
    VARIANT,
    IssuerKey,
    Token,
    TokenChallenge,
    TokenRequest,
    TokenResponse,
    authenticator_input,
    challenge_digest,
    token_key_id,
)


@dataclasses.dataclass(frozen=True)
class PendingToken:
    """What a client keeps of one request until it is answered. All of it is secret from the issuer."""

    nonce: bytes = dataclasses.field(repr=False)
    """32 bytes."""
    inverse: int = dataclasses.field(repr=False)
    """Of the blind."""


@dataclasses.dataclass(frozen=True)
class PendingBatch:
    """What a client keeps of a batch until it is answered."""

    key: IssuerKey
    challenge_digest: bytes
    tokens: tuple[PendingToken, ...] = dataclasses.field(repr=False)


def prepare_batch(count: int, challenge: TokenChallenge, key: IssuerKey) -> tuple[bytes, PendingBatch]:
    """The body of a request for `count` tokens, 1 to 1000, and what `finish_batch` needs.

    Raises:
        TokenError: the count is another, or the key is none of RSA with 2048 bits.
    """
    if not 1 <= count <= MOST_TOKENS:
        raise TokenError(f"A batch is of 1 to {MOST_TOKENS} tokens.")
    digest = challenge_digest(challenge)
    made = [prepare_token(digest, key) for _ in range(count)]
    body = encode_batch_request([request for request, _ in made])
    return body, PendingBatch(key, digest, tuple(pending for _, pending in made))


def finish_batch(batch: PendingBatch, response: bytes) -> list[Token]:
    """The tokens of an issuer's answer, each verified; fewer than were asked for where the issuer refused some.

    Raises:
        TokenError: the answer is malformed or not of this batch, or a signature is wrong; then there are none at all,
            because an issuer that signs wrongly cannot be trusted to sign everybody alike.
    """
    answers = decode_batch_response(response)
    if len(answers) != len(batch.tokens):
        raise TokenError(f"A batch of {len(batch.tokens)} was answered with {len(answers)}.")
    return [
        finish_token(batch, pending, answer) for pending, answer in zip(batch.tokens, answers) if answer is not None
    ]


def prepare_token(
    digest: bytes,
    key: IssuerKey,
    *,
    nonce: bytes | None = None,
    salt: bytes | None = None,
    blind_inverse: int | None = None,
) -> tuple[TokenRequest, PendingToken]:
    """One request for a token of the challenge with this digest, 32 bytes (RFC 9578, section 6.1).

    `nonce`, `salt` and `blind_inverse` are for test vectors: the issuer recognizes tokens of known ones.

    Raises:
        TokenError: as `blind_rsa.blind` and `encode_token_key`.
    """
    nonce = secrets.token_bytes(DIGEST_BYTES) if nonce is None else nonce
    key_id = token_key_id(key.public_key)
    msg = blind_rsa.prepare(VARIANT, authenticator_input(nonce, digest, key_id))
    blinded_msg, inverse = blind_rsa.blind(VARIANT, key.public_key, msg, salt=salt, blind_inverse=blind_inverse)
    return TokenRequest(key_id[-1], blinded_msg), PendingToken(nonce, inverse)


def finish_token(batch: PendingBatch, pending: PendingToken, response: TokenResponse) -> Token:
    """The token of one answer (RFC 9578, section 6.3).

    Raises:
        TokenError: the answer is no signature of what was asked for.
    """
    key_id = token_key_id(batch.key.public_key)
    msg = blind_rsa.prepare(VARIANT, authenticator_input(pending.nonce, batch.challenge_digest, key_id))
    authenticator = blind_rsa.finalize(VARIANT, batch.key.public_key, msg, response.blind_sig, pending.inverse)
    return Token(pending.nonce, batch.challenge_digest, key_id, authenticator)
