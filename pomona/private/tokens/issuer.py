"""What an issuer does, without HTTP: a key a day, a quota an account, and signatures of what it cannot read.

A key signs on one day, from midnight to midnight UTC, and its tokens are good until the end of the next day: each is
good for 24 hours at least. The private half lies in a folder, unencrypted and with mode 0600, and is deleted when its
day is over. The log publishes the public halves, tomorrow's too, under their identifiers.

Nothing about requests and answers is kept: what an issuer knows of an account is how many tokens it took today.
"""

import dataclasses
import datetime
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from pomona.core.errors import UserError
from pomona.core.files import disk_errors
from pomona.core.private_files import check_private, new_private_file
from pomona.private.tokens.batches import decode_batch_request, encode_batch_response
from pomona.private.tokens.blind_rsa import blind_sign
from pomona.private.tokens.directory import DirectoryKey, IssuerDirectory
from pomona.private.tokens.errors import TokenError
from pomona.private.tokens.privacy_pass import (
    KEY_BITS,
    PUBLIC_EXPONENT,
    IssuerKey,
    TokenResponse,
    encode_token_key,
    token_key_id,
)
from pomona.private.tokens.quota import DAY_SECONDS, Quota, take_quota

KEY_DAYS = 2
"""How many days a key's tokens are good, from the beginning of the day on which it signs."""
_EPOCH = datetime.date(1970, 1, 1)


@dataclasses.dataclass(frozen=True)
class SigningKey:
    """A key and the day on which it signs."""

    private_key: rsa.RSAPrivateKey = dataclasses.field(repr=False)
    day: int
    """Since 1970-01-01, UTC."""


@dataclasses.dataclass(frozen=True)
class Issuer:
    """What an issuing process has at hand."""

    keys: tuple[SigningKey, ...]
    """Of `prepare_keys`, which is to be called again every day."""
    quota: Quota


def issue(issuer: Issuer, account: str, batch: bytes, now: float) -> bytes:
    """The answer to an account's batch, with every token that it asks for.

    Each token takes 10 to 15 ms, most of which the interpreter's lock is held: serve from several processes.
    The quota is taken first: a batch that breaks off afterwards is not given back, and a retry is a new batch.

    Raises:
        TokenError: the batch is malformed, or under a key that does not sign today; nothing was counted. Or a blinded
            message is not below the modulus, which no honest client sends; then the batch was counted.
        QuotaExceeded: fewer tokens are left of this day than are asked for; nothing was counted.
        SigningFailure: the machine computes wrongly.
    """
    requests = decode_batch_request(batch)
    signing = {truncated_key_id(one): one for one in issuer.keys if one.day == int(now // DAY_SECONDS)}
    if not all(request.truncated_token_key_id in signing for request in requests):
        raise TokenError("The batch is under a key that does not sign today.")
    take_quota(issuer.quota, account, len(requests), now)
    return encode_batch_response(
        [
            TokenResponse(blind_sign(signing[one.truncated_token_key_id].private_key, one.blinded_msg))
            for one in requests
        ]
    )


def prepare_keys(folder: Path, now: float) -> tuple[SigningKey, ...]:
    """Today's key and tomorrow's, made where they are missing; keys of earlier days are deleted.

    Several processes may do it at once: they end up with the same keys.

    Raises:
        UserError: the folder cannot be written, or a file in it is no key or may be read by others.
    """
    today = int(now // DAY_SECONDS)
    with disk_errors(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in folder.glob("????-??-??.pem"):
            if path.stem < _date(today):
                path.unlink(missing_ok=True)
    first = _prepare_key(folder, today, ())
    return first, _prepare_key(folder, today + 1, (first,))


def drop_key(folder: Path, key: SigningKey) -> None:
    """Deletes a key before its time, because it is not to be used again; `prepare_keys` makes another."""
    (folder / f"{_date(key.day)}.pem").unlink(missing_ok=True)


def published_key(key: SigningKey) -> IssuerKey:
    """What the log says of a key."""
    return IssuerKey(key.private_key.public_key(), key.day * DAY_SECONDS, (key.day + KEY_DAYS) * DAY_SECONDS)


def issuer_directory(issuer: Issuer, issuer_request_uri: str) -> IssuerDirectory:
    """What an issuer publishes: the key that begins last comes first, as RFC 9578, section 4, wants it."""
    latest_first = sorted(map(published_key, issuer.keys), key=lambda one: -one.not_before)
    return IssuerDirectory(
        issuer_request_uri, tuple(DirectoryKey(one.public_key, one.not_before) for one in latest_first)
    )


def truncated_key_id(key: SigningKey) -> int:
    """The last byte of a key's identifier, by which requests name it (RFC 9578, section 6.5)."""
    return token_key_id(key.private_key.public_key())[-1]


def _date(day: int) -> str:
    return (_EPOCH + datetime.timedelta(days=day)).isoformat()


def _prepare_key(folder: Path, day: int, others: tuple[SigningKey, ...]) -> SigningKey:
    path = folder / f"{_date(day)}.pem"
    if not path.exists():
        key = SigningKey(_generate(), day)
        while truncated_key_id(key) in map(truncated_key_id, others):  # requests could not tell them apart
            key = SigningKey(_generate(), day)
        with new_private_file(path) as draft:
            draft.write_bytes(
                key.private_key.private_bytes(
                    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
                )
            )
    return SigningKey(_read_key(path), day)


def _generate() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(PUBLIC_EXPONENT, KEY_BITS)


def _read_key(path: Path) -> rsa.RSAPrivateKey:
    check_private(path)
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        if not isinstance(key, rsa.RSAPrivateKey):
            raise TypeError("not of RSA")
        encode_token_key(key.public_key())  # refuses other sizes and exponents
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UserError(
            f"{path} is no private key of an issuer.",
            f"those are PKCS #8 files in PEM, RSA, {KEY_BITS} bits, exponent {PUBLIC_EXPONENT}.",
            "restore it, or remove it and have a new one published.",
        ) from error
    return key
