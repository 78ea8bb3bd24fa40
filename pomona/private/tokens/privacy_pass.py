"""Privacy Pass with publicly verifiable tokens: RFC 9577 and RFC 9578, token type 0x0002, blind RSA of 2048 bits.

Who serves requests publishes a `TokenChallenge`. A client blinds a random nonce together with the challenge's digest
and the key's, an issuer signs that (`TokenRequest`, `TokenResponse`), and the unblinded signature makes it a `Token`:
anybody with the public key can verify it, and nobody, the issuer included, can tell for whom it was signed.

Every structure has exactly one encoding here, so that what `decode_...` takes `encode_...` gives back.
"""

import dataclasses
import hashlib
import hmac
import re

from cryptography.hazmat.primitives.asymmetric import rsa

from pomona.private.tokens import blind_rsa
from pomona.private.tokens.errors import TokenError
from pomona.private.tokens.presentation import Reader, opaque

TOKEN_TYPE = 0x0002
VARIANT = blind_rsa.PSS_DETERMINISTIC
"""Which RFC 9578, section 6, allows because the nonce is random already."""
NK = 256
"""Bytes of a blinded message, a blind signature and an authenticator (RFC 9578, section 8.2.2)."""
DIGEST_BYTES = 32
"""Of nonces, challenge digests, key identifiers and contexts."""
TOKEN_BYTES = 2 + 3 * DIGEST_BYTES + NK
TOKEN_REQUEST_BYTES = 3 + NK
PUBLIC_EXPONENT = 65537
KEY_BITS = 2048

TOKEN_REQUEST_MEDIA_TYPE = "application/private-token-request"
TOKEN_RESPONSE_MEDIA_TYPE = "application/private-token-response"

# The SubjectPublicKeyInfo of RFC 9578, section 6.5, around a modulus of 2048 bits: id-RSASSA-PSS with SHA-384, MGF1
# with SHA-384 and a salt of 48 bytes; a bit string; an RSAPublicKey whose exponent is 65537.
_SPKI_HEAD = bytes.fromhex(
    "30820152303d06092a864886f70d01010a3030a00d300b0609608648016503040202"
    "a11a301806092a864886f70d010108300b0609608648016503040202a203020130"
    "0382010f003082010a0282010100"
)
_SPKI_TAIL = bytes.fromhex("0203010001")

# The authority of RFC 3986, section 3.2, without a user: a name or an address, and a port where it is not 443.
_SERVER_NAME = re.compile(r"(?:[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,253})|\[[0-9A-Fa-f:.]{2,45}\])(?::[1-9][0-9]{0,4})?")
_MOST_TEXT_BYTES = (1 << 16) - 1


@dataclasses.dataclass(frozen=True)
class TokenChallenge:
    """What a token is good for (RFC 9577, section 2.1.1).

    Raises:
        TokenError: a name is no server name, or the context is neither empty nor of 32 bytes.
    """

    issuer_name: str
    """A host name, with a port where it is not 443."""
    redemption_context: bytes = b""
    """Empty, or 32 bytes that tie the tokens to an occasion."""
    origin_info: tuple[str, ...] = ()
    """The names of servers that take the tokens; none for all of them."""

    def __post_init__(self) -> None:
        """Checks what section 2.1.1 asks for, whoever made the challenge."""
        if not all(_SERVER_NAME.fullmatch(name) for name in (self.issuer_name, *self.origin_info)):
            raise TokenError("TokenChallenge names a server otherwise than as HOST or HOST:PORT, in ASCII.")
        if len(self.redemption_context) not in (0, DIGEST_BYTES):
            raise TokenError(f"TokenChallenge has a context of neither 0 nor {DIGEST_BYTES} bytes.")
        if len(",".join(self.origin_info)) > _MOST_TEXT_BYTES:
            raise TokenError(f"TokenChallenge names servers in more than {_MOST_TEXT_BYTES} bytes.")


@dataclasses.dataclass(frozen=True)
class TokenRequest:
    """What an issuer is asked to sign (RFC 9578, section 6.1)."""

    truncated_token_key_id: int
    """The last byte of the key's identifier."""
    blinded_msg: bytes = dataclasses.field(repr=False)
    """256 bytes."""


@dataclasses.dataclass(frozen=True)
class TokenResponse:
    """An issuer's answer (RFC 9578, section 6.2)."""

    blind_sig: bytes = dataclasses.field(repr=False)
    """256 bytes."""


@dataclasses.dataclass(frozen=True)
class Token:
    """A token (RFC 9577, section 2.2.1). Whoever has it can spend it: its `repr` tells neither nonce nor signature."""

    nonce: bytes = dataclasses.field(repr=False)
    """32 bytes."""
    challenge_digest: bytes
    """32 bytes: SHA-256 of the challenge."""
    token_key_id: bytes
    """32 bytes."""
    authenticator: bytes = dataclasses.field(repr=False)
    """256 bytes: the signature of all the rest."""


@dataclasses.dataclass(frozen=True)
class IssuerKey:
    """An issuer's public key, and when it counts. Times are seconds since the epoch."""

    public_key: rsa.RSAPublicKey
    not_before: int
    """From then on it signs."""
    expires: int
    """From then on no token of it is taken."""


def encode_challenge(challenge: TokenChallenge) -> bytes:
    """A challenge's bytes, whose SHA-256 is in each token."""
    return b"".join(
        (
            TOKEN_TYPE.to_bytes(2),
            opaque(challenge.issuer_name.encode("ascii"), 2),
            opaque(challenge.redemption_context, 1),
            opaque(",".join(challenge.origin_info).encode("ascii"), 2),
        )
    )


def decode_challenge(content: bytes) -> TokenChallenge:
    """The inverse of `encode_challenge`.

    Raises:
        TokenError: `content` is no challenge of this token type.
    """
    reader = Reader("TokenChallenge", content)
    _check_type(reader)
    issuer_name, redemption_context, origin_info = reader.opaque(2), reader.opaque(1), reader.opaque(2)
    reader.end()
    try:
        origins = tuple(origin_info.decode("ascii").split(",")) if origin_info else ()
        return TokenChallenge(issuer_name.decode("ascii"), redemption_context, origins)
    except UnicodeDecodeError as error:
        raise TokenError("TokenChallenge names a server otherwise than in ASCII.") from error


def challenge_digest(challenge: TokenChallenge) -> bytes:
    """SHA-256 of a challenge, 32 bytes (RFC 9577, section 2.2.1)."""
    return hashlib.sha256(encode_challenge(challenge)).digest()


def names_origin(challenge: TokenChallenge, origin: str) -> bool:
    """Whether a challenge that came from this server is for it: a client heeds no other (RFC 9577, section 2.1.3)."""
    return not challenge.origin_info or origin.lower() in [name.lower() for name in challenge.origin_info]


def encode_request(request: TokenRequest) -> bytes:
    """A request's 259 bytes."""
    return TOKEN_TYPE.to_bytes(2) + bytes([request.truncated_token_key_id]) + request.blinded_msg


def decode_request(content: bytes) -> TokenRequest:
    """The inverse of `encode_request`.

    Raises:
        TokenError: `content` is no request of this token type.
    """
    reader = Reader("TokenRequest", content)
    _check_type(reader)
    request = TokenRequest(reader.integer(1), reader.take(NK))
    reader.end()
    return request


def decode_response(content: bytes) -> TokenResponse:
    """The answer in `content`, whose bytes are the blind signature alone.

    Raises:
        TokenError: `content` is not of 256 bytes.
    """
    reader = Reader("TokenResponse", content)
    response = TokenResponse(reader.take(NK))
    reader.end()
    return response


def encode_token(token: Token) -> bytes:
    """A token's 354 bytes."""
    return authenticator_input(token.nonce, token.challenge_digest, token.token_key_id) + token.authenticator


def decode_token(content: bytes) -> Token:
    """The inverse of `encode_token`.

    Raises:
        TokenError: `content` is no token of this type.
    """
    reader = Reader("Token", content)
    _check_type(reader)
    token = Token(reader.take(DIGEST_BYTES), reader.take(DIGEST_BYTES), reader.take(DIGEST_BYTES), reader.take(NK))
    reader.end()
    return token


def authenticator_input(nonce: bytes, digest: bytes, key_id: bytes) -> bytes:
    """The 98 bytes that an issuer signs without seeing them (RFC 9577, section 2.2.3)."""
    return TOKEN_TYPE.to_bytes(2) + nonce + digest + key_id


def verify_token(token: Token, challenge: TokenChallenge, key: IssuerKey, now: float) -> None:
    """Nothing where a token is good (RFC 9578, section 6.4). Whether it was spent is another question.

    Raises:
        TokenError: it is for another challenge or of another key, its key has expired, or the signature is wrong.
    """
    if now >= key.expires:
        raise TokenError("The token's key has expired.")
    if not hmac.compare_digest(token.token_key_id, token_key_id(key.public_key)):
        raise TokenError("The token is of another key.")
    if not hmac.compare_digest(token.challenge_digest, challenge_digest(challenge)):
        raise TokenError("The token is for another challenge.")
    signed = authenticator_input(token.nonce, token.challenge_digest, token.token_key_id)
    if not blind_rsa.verify(VARIANT, key.public_key, signed, token.authenticator):
        raise TokenError("The token's signature is wrong.")


def encode_token_key(public_key: rsa.RSAPublicKey) -> bytes:
    """A key's 342 bytes: a SubjectPublicKeyInfo with id-RSASSA-PSS (RFC 9578, section 6.5).

    Raises:
        TokenError: it has not 2048 bits, or another exponent than 65537.
    """
    numbers = public_key.public_numbers()
    if numbers.n.bit_length() != KEY_BITS or numbers.e != PUBLIC_EXPONENT:
        raise TokenError(f"An issuer's key has {KEY_BITS} bits and the exponent {PUBLIC_EXPONENT}.")
    return _SPKI_HEAD + numbers.n.to_bytes(KEY_BITS // 8) + _SPKI_TAIL


def decode_token_key(content: bytes) -> rsa.RSAPublicKey:
    """The inverse of `encode_token_key`. A key of another exponent is refused too, which the RFC would allow: the fewer
    forms a key may have, the fewer marks an issuer can put on it.

    Raises:
        TokenError: `content` is no such key.
    """
    n = int.from_bytes(content[len(_SPKI_HEAD) : -len(_SPKI_TAIL)])
    if (
        len(content) != len(_SPKI_HEAD) + KEY_BITS // 8 + len(_SPKI_TAIL)
        or not content.startswith(_SPKI_HEAD)
        or not content.endswith(_SPKI_TAIL)
        or n.bit_length() != KEY_BITS
        or n % 2 == 0
    ):
        raise TokenError(f"A token key is RSASSA-PSS with SHA-384, {KEY_BITS} bits and the exponent {PUBLIC_EXPONENT}.")
    return rsa.RSAPublicNumbers(PUBLIC_EXPONENT, n).public_key()


def token_key_id(public_key: rsa.RSAPublicKey) -> bytes:
    """SHA-256 of the encoded key, 32 bytes, whose last byte is the truncated one (RFC 9578, section 6.5).

    Raises:
        TokenError: as `encode_token_key`.
    """
    return hashlib.sha256(encode_token_key(public_key)).digest()


def _check_type(reader: Reader) -> None:
    if reader.integer(2) != TOKEN_TYPE:
        raise TokenError(f"{reader.structure} is not of token type {TOKEN_TYPE:#06x}.")
