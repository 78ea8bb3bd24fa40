"""The gateway's own keys: a new one every day, each good for three, the private half deleted when its days are over."""

import base64
import datetime
import secrets
from pathlib import Path

from pomona.core.errors import UserError
from pomona.core.files import disk_errors
from pomona.core.private_files import read_private, write_private
from pomona.private.sealing.errors import SealingError
from pomona.private.sealing.kem import SECRET_BYTES, X25519, private_key
from pomona.private.sealing.oblivious_http import GatewayKey, KeyConfig, encode_key_configs
from pomona.private.tokens.quota import DAY_SECONDS
from pomona.private.transparency import leaves

KEY_DAYS = 3
_ALGORITHMS = ((0x0001, 0x0001), (0x0001, 0x0003))
"""HKDF-SHA256 with AES-128-GCM, or with ChaCha20-Poly1305."""


def prepare_gateway_keys(folder: Path, now: float) -> dict[int, GatewayKey]:
    """The keys that are good now, by the day on which each began; today's is made where it is missing.

    Raises:
        UserError: the folder cannot be written, or a file in it is no key or may be read by others.
    """
    today = int(now // DAY_SECONDS)
    with disk_errors(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in folder.glob("????-??-??.key"):
            if path.stem <= _date(today - KEY_DAYS):
                path.unlink(missing_ok=True)
    found = {}
    for day in range(today - KEY_DAYS + 1, today + 1):
        path = folder / f"{_date(day)}.key"
        if day == today and not path.exists():
            write_private(path, secrets.token_bytes(SECRET_BYTES))
        if path.exists():
            found[day] = _key(path, day)
    return found


def drop_gateway_key(folder: Path, day: int) -> None:
    """Deletes a key before its time, because it is not to be used again; `prepare_gateway_keys` makes another."""
    (folder / f"{_date(day)}.key").unlink(missing_ok=True)


def published_config(name: str, day: int, key: GatewayKey) -> leaves.GatewayKey:
    """What the log says of a key."""
    return leaves.GatewayKey(
        not_before=day * DAY_SECONDS,
        expires=(day + KEY_DAYS) * DAY_SECONDS,
        gateway=name,
        key_config=base64.b64encode(encode_key_configs([key.config])).decode(),
    )


def _key(path: Path, day: int) -> GatewayKey:
    try:
        private = private_key(X25519, read_private(path))
    except SealingError as error:
        raise UserError(f"{path} is no key of a gateway.", "32 bytes of X25519.", "remove it") from error
    return GatewayKey(KeyConfig(day % 256, X25519.id, private.public_bytes, _ALGORITHMS), private)


def _date(day: int) -> str:
    return (datetime.date(1970, 1, 1) + datetime.timedelta(days=day)).isoformat()
