"""The HTTP authentication scheme PrivateToken: RFC 9577, sections 2.1.2 and 2.2.2, in the grammar of RFC 9110.

Values of header fields alone: `WWW-Authenticate: <here>` carries challenges, `Authorization: <here>` a token.
"""

import base64
import binascii
import dataclasses
import re

from cryptography.hazmat.primitives.asymmetric import rsa

from pomona.private.tokens.errors import TokenError
from pomona.private.tokens.privacy_pass import (
    TOKEN_TYPE,
    Token,
    TokenChallenge,
    decode_challenge,
    decode_token,
    decode_token_key,
    encode_challenge,
    encode_token,
    encode_token_key,
)

SCHEME = "PrivateToken"
MOST_AUTHORIZATION_CHARACTERS = 4096
MOST_CHALLENGE_CHARACTERS = 16384
"""Of a whole WWW-Authenticate value, however many challenges it has."""
MOST_AGE_SECONDS = (1 << 31) - 1

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SCHEME = re.compile(_TOKEN)
_PARAMETER = re.compile(rf'({_TOKEN})[ \t]*=[ \t]*(?:({_TOKEN})|"((?:[^"\\]|\\.)*)")')
_TOKEN68 = re.compile(r"[A-Za-z0-9._~+/-]+=*(?=[ \t]*(?:,|\Z))")
_BETWEEN = re.compile(r"[ \t]*(?:,[ \t]*)+")
_BASE64URL = re.compile(r"[A-Za-z0-9_-]*={0,2}")


@dataclasses.dataclass(frozen=True)
class OfferedChallenge:
    """A challenge as a server sends it."""

    challenge: TokenChallenge
    token_key: rsa.RSAPublicKey | None
    """The issuer's, where it is sent. The log has to know it before it is used."""
    max_age_seconds: int | None = None
    """For how long tokens of this challenge are taken, where that is said."""


def encode_authorization(token: Token) -> str:
    """The value of `Authorization` that spends a token."""
    return f'{SCHEME} token="{encode_base64url(encode_token(token))}"'


def decode_authorization(value: str) -> Token:
    """The token in a value of `Authorization`; parameters other than `token` are ignored (section 2.2.2).

    Raises:
        TokenError: another scheme, more than one set of credentials, no token or one that is malformed.
    """
    _check_size("Authorization", value, MOST_AUTHORIZATION_CHARACTERS)
    found = list(_challenges("Authorization", value))
    if len(found) != 1 or found[0][0].lower() != SCHEME.lower():
        raise TokenError(f"Authorization is not of the one scheme {SCHEME}.")
    if "token" not in found[0][1]:
        raise TokenError("Authorization has no parameter `token`.")
    return decode_token(decode_base64url(found[0][1]["token"]))


def encode_www_authenticate(offered: OfferedChallenge) -> str:
    """The value of `WWW-Authenticate` that asks for a token."""
    parts = [f'challenge="{encode_base64url(encode_challenge(offered.challenge))}"']
    if offered.token_key is not None:
        parts.append(f'token-key="{encode_base64url(encode_token_key(offered.token_key))}"')
    if offered.max_age_seconds is not None:
        parts.append(f'max-age="{offered.max_age_seconds}"')
    return f"{SCHEME} {', '.join(parts)}"


def decode_www_authenticate(value: str) -> list[OfferedChallenge]:
    """The challenges of type 0x0002 in a value of `WWW-Authenticate`, in the server's order (section 2.1.2).

    Other schemes, other token types and unknown parameters are ignored, as greasing wants it.

    Raises:
        TokenError: the value breaks the grammar, or one of those challenges is malformed.
    """
    _check_size("WWW-Authenticate", value, MOST_CHALLENGE_CHARACTERS)
    return [
        _offered(parameters)
        for scheme, parameters in _challenges("WWW-Authenticate", value)
        if scheme.lower() == SCHEME.lower() and _is_ours(parameters)
    ]


def encode_base64url(content: bytes) -> str:
    """base64url with padding (RFC 4648, section 5)."""
    return base64.urlsafe_b64encode(content).decode("ascii")


def decode_base64url(text: str) -> bytes:
    """The inverse of `encode_base64url`: padded, and in the one way in which these bytes are written.

    Raises:
        TokenError: `text` is not that.
    """
    try:
        content = base64.urlsafe_b64decode(text) if _BASE64URL.fullmatch(text) else None
    except binascii.Error:
        content = None
    if content is None or encode_base64url(content) != text:
        raise TokenError("A value is not base64url with padding.")
    return content


def _is_ours(parameters: dict[str, str]) -> bool:
    return decode_base64url(parameters.get("challenge", ""))[:2] == TOKEN_TYPE.to_bytes(2)


def _offered(parameters: dict[str, str]) -> OfferedChallenge:
    key, age = parameters.get("token-key"), parameters.get("max-age")
    if age is not None and not (re.fullmatch(r"[0-9]{1,10}", age) and int(age) <= MOST_AGE_SECONDS):
        raise TokenError(f"WWW-Authenticate has a max-age that is no number of seconds up to {MOST_AGE_SECONDS}.")
    return OfferedChallenge(
        decode_challenge(decode_base64url(parameters["challenge"])),
        None if key is None else decode_token_key(decode_base64url(key)),
        None if age is None else int(age),
    )


def _check_size(header: str, value: str, most: int) -> None:
    if len(value) > most:
        raise TokenError(f"{header} has more than {most} characters.")


def _challenges(header: str, value: str) -> list[tuple[str, dict[str, str]]]:
    """Schemes and their parameters, names in lower case: the lists of RFC 9110, sections 11.3, 11.4 and 5.6.1."""
    found: list[tuple[str, dict[str, str]]] = []
    leading = _BETWEEN.match(value)
    position = leading.end() if leading else _after_blanks(value, 0)
    while position < len(value):
        scheme = _SCHEME.match(value, position)
        parameter = _PARAMETER.match(value, position)
        if parameter and found:
            _add(header, found[-1][1], parameter)
            position = _next(header, value, parameter.end())
        elif scheme and not parameter:
            found.append((scheme.group(), {}))
            position = _after_scheme(header, value, scheme.end(), found[-1][1])
        else:
            raise TokenError(f"{header} breaks the grammar of RFC 9110, section 11, at character {position}.")
    return found


def _after_scheme(header: str, value: str, position: int, parameters: dict[str, str]) -> int:
    """Behind a scheme and a blank come its first parameter, or what RFC 9110 calls token68, or neither."""
    start = _after_blanks(value, position)
    if start > position and (parameter := _PARAMETER.match(value, start)):
        _add(header, parameters, parameter)
        return _next(header, value, parameter.end())
    if start > position and (token68 := _TOKEN68.match(value, start)):
        return _next(header, value, token68.end())
    return _next(header, value, position)


def _add(header: str, parameters: dict[str, str], parameter: re.Match[str]) -> None:
    name = parameter.group(1).lower()
    if name in parameters:
        raise TokenError(f"{header} has a parameter twice in one challenge.")
    quoted = parameter.group(3)
    parameters[name] = parameter.group(2) if quoted is None else re.sub(r"\\(.)", r"\1", quoted)


def _next(header: str, value: str, position: int) -> int:
    """Where the next element of the list begins: behind a comma, or more of them."""
    if between := _BETWEEN.match(value, position):
        return between.end()
    if _after_blanks(value, position) != len(value):
        raise TokenError(f"{header} lacks a comma at character {position}.")
    return len(value)


def _after_blanks(value: str, position: int) -> int:
    while position < len(value) and value[position] in " \t":
        position += 1
    return position
