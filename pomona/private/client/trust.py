"""What a client has to be told once, and by somebody it trusts: which log, which relay, which issuer, what it accepts.

All else, every key, release and node, comes from the log and is checked.
"""

import dataclasses
import json
import os
from pathlib import Path

import msgspec

from pomona.core.errors import UserError
from pomona.core.private_files import read_private, write_private
from pomona.private.attestation.profiles import PROFILES
from pomona.private.transparency.errors import TransparencyError
from pomona.private.transparency.view import new_view

PLACE = "POMONA_PRIVATE"
"""The environment variable that says where the file is."""
DEFAULT = Path("private/client.json")


@dataclasses.dataclass(frozen=True)
class LogTrust:
    """A log, and who vouches for it. All of it is public."""

    address: str
    """Of its files."""
    origin: str
    vkey: str
    """Its name for itself and its key, as C2SP's signed notes write keys."""
    cosigners: tuple[str, ...] = ()
    """Keys of witnesses who date its checkpoints; it dates its own where there are none."""
    quorum: int = 1
    """How many of them have to."""


@dataclasses.dataclass(frozen=True)
class Trust:
    """The client's own settings."""

    log: LogTrust
    relay: str
    issuer: str
    """Addresses."""
    account: str = dataclasses.field(repr=False)
    """The key of an account at the issuer."""
    issuer_name: str
    gateway_name: str
    """As the log's leaves name them."""
    profiles: tuple[str, ...]
    """Of releases that are used; see `pomona private status`."""
    models: tuple[str, ...] = ()
    """Digests of models that are used; any where none is named."""


def place_of(given: Path | None) -> Path:
    """The file that is meant: what was given, or what the environment says, or the one that `pomona private up`
    makes."""
    return given or Path(os.environ.get(PLACE) or DEFAULT)


def check_log(log: LogTrust) -> None:
    """Raises `TransparencyError` where the keys are none."""
    new_view(log.origin, log.vkey, log.cosigners, log.quorum)


def read_log_trust(path: Path) -> LogTrust:
    """A log's public settings, as `pomona private log` writes them.

    Raises:
        UserError: there are none, or they are not of the form.
    """
    try:
        log = msgspec.json.decode(path.read_bytes(), type=LogTrust)
        check_log(log)
    except (OSError, msgspec.MsgspecError, TransparencyError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} does not say which log is meant: {error}.",
            "the log writes it when it starts: address, origin, key.",
            "--log FILE, the log.json in the log's folder",
        ) from error
    return log


def read_trust(path: Path) -> Trust:
    """The settings of a file.

    Raises:
        UserError: there is none, or it is not of the form.
    """
    if not path.exists():
        raise UserError(
            f"{path} cannot be read: there is no such file.",
            "a client is told once which log, relay and issuer it trusts.",
            "pomona private up, which writes one; or --config FILE, as the operators give it out",
        )
    try:
        trust = msgspec.json.decode(read_private(path), type=Trust)
        check_log(trust.log)
    except (msgspec.MsgspecError, TransparencyError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is no client's settings: {error}", "deploy/private/README.md has an example.", "that form"
        ) from error
    unknown = set(trust.profiles) - set(PROFILES)
    if unknown or not trust.profiles:
        raise UserError(
            f"{path} accepts the profiles {', '.join(sorted(unknown)) or 'none'}.",
            f"there are {', '.join(PROFILES)}.",
            "pomona private status, which says what each promises",
        )
    return trust


def write_trust(trust: Trust, path: Path) -> None:
    """Writes settings that only their owner may read: the account's key is in them.

    Raises:
        UserError: the folder cannot be written.
    """
    write_private(path, (json.dumps(dataclasses.asdict(trust), indent=2) + "\n").encode())
