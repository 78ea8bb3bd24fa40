"""The directory that an issuer publishes: RFC 9578, section 4.

It says where tokens are asked for and under which keys. It proves nothing: a client uses a key of it only if the log
has that key, so that every client is shown the same ones.
"""

import dataclasses
import json
import re

import msgspec
from cryptography.hazmat.primitives.asymmetric import rsa

from pomona.private.tokens.auth_scheme import decode_base64url, encode_base64url
from pomona.private.tokens.errors import TokenError
from pomona.private.tokens.privacy_pass import TOKEN_TYPE, decode_token_key, encode_token_key

DIRECTORY_PATH = "/.well-known/private-token-issuer-directory"
DIRECTORY_MEDIA_TYPE = "application/private-token-issuer-directory"
MOST_DIRECTORY_BYTES = 1 << 16
MOST_URI_CHARACTERS = 2048
LATEST = (1 << 53) - 1
"""The latest time, in seconds since the epoch: what every JSON reader takes for a whole number."""


@dataclasses.dataclass(frozen=True)
class DirectoryKey:
    """A key that an issuer offers."""

    token_key: rsa.RSAPublicKey
    not_before: int | None = None
    """Seconds since the epoch from which on it signs; None for now."""


@dataclasses.dataclass(frozen=True)
class IssuerDirectory:
    """Where an issuer is asked, and under which keys."""

    issuer_request_uri: str
    """Absolute, or relative to the directory's own."""
    token_keys: tuple[DirectoryKey, ...]
    """Of type 0x0002, the one that the issuer prefers first."""


class _Key(msgspec.Struct, rename="kebab"):
    token_type: int
    token_key: str
    not_before: int | None = None


class _Directory(msgspec.Struct, rename="kebab"):
    issuer_request_uri: str
    token_keys: list[_Key]


def encode_directory(directory: IssuerDirectory) -> bytes:
    """The directory as JSON."""
    keys = [
        {"token-type": TOKEN_TYPE, "token-key": encode_base64url(encode_token_key(one.token_key))}
        | ({} if one.not_before is None else {"not-before": one.not_before})
        for one in directory.token_keys
    ]
    return json.dumps({"issuer-request-uri": directory.issuer_request_uri, "token-keys": keys}).encode()


def decode_directory(content: bytes) -> IssuerDirectory:
    """The directory in JSON; members that are not known, and keys of other token types, are ignored.

    Raises:
        TokenError: `content` is larger than 64 KiB, no such JSON, or a key of type 0x0002 is malformed.
    """
    if len(content) > MOST_DIRECTORY_BYTES:
        raise TokenError(f"The issuer's directory has more than {MOST_DIRECTORY_BYTES} bytes.")
    try:
        found = msgspec.json.decode(content, type=_Directory)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TokenError("The issuer's directory is no JSON of the form in RFC 9578, section 4.") from error
    uri = found.issuer_request_uri
    if len(uri) > MOST_URI_CHARACTERS or not re.fullmatch(r"[!-~]+", uri):
        raise TokenError(f"The issuer's directory has no URI of up to {MOST_URI_CHARACTERS} characters.")
    ours = [one for one in found.token_keys if one.token_type == TOKEN_TYPE]
    if any(one.not_before is not None and not 0 <= one.not_before <= LATEST for one in ours):
        raise TokenError("The issuer's directory has a key with an impossible time.")
    return IssuerDirectory(
        uri,
        tuple(DirectoryKey(decode_token_key(decode_base64url(one.token_key)), one.not_before) for one in ours),
    )


def preferred_key(directory: IssuerDirectory, now: float) -> rsa.RSAPublicKey:
    """The key to ask tokens of: the first that signs already (RFC 9578, section 4).

    Raises:
        TokenError: none does.
    """
    for one in directory.token_keys:
        if one.not_before is None or one.not_before <= now:
            return one.token_key
    raise TokenError("The issuer's directory has no key that signs now.")
