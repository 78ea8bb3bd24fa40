"""What is published of the private cloud by whoever answers for it: releases, machines, and what is taken back."""

import dataclasses
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import tyro

from pomona.cli.parse import parse, print_stdout
from pomona.cli.serve_verb import adapters_of
from pomona.core.errors import UserError
from pomona.core.files import read_bytes

KEY = "POMONA_LOG_KEY"
"""The environment variable with the key for the log."""


@dataclasses.dataclass(frozen=True)
class ReleaseOptions:
    """Measures what nodes run, and publishes it. The key for the log is read from POMONA_LOG_KEY."""

    model: Annotated[Path, tyro.conf.Positional]
    """A run folder or a device file."""
    log: Path = Path("log.json")
    """The log's settings, which it writes when it starts."""
    profile: str = "operator"
    """What the machines promise: `pomona private status` lists them."""
    name: str = ""
    """What the model is called; by default as its folder or file."""
    version: str = ""
    """Of the release; today's date by default."""
    adapter: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """NAME=FOLDER: an adapter of the model; may be given several times."""
    image: str = ""
    """The digest of the machines' image; that of the installed programs by default."""
    register: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """BANK/NUMBER=HEX: what else the machines measure at their start, as sha256/4, mrtd/0, rtmr/0 or sev-snp/0; several
    times."""
    days: int = 30
    """How long it counts."""
    dry_run: bool = False
    """Prints the leaf and publishes nothing."""


def release(arguments: list[str]) -> None:
    """Measures, publishes, prints."""
    options = parse(ReleaseOptions, arguments, "private release")
    from pomona.api.model import name_of
    from pomona.private.attestation.profiles import PROFILES
    from pomona.private.roles.publishing import publish
    from pomona.private.roles.release import measured, release_of
    from pomona.private.transparency.leaves import encode, hash_of

    if options.profile not in PROFILES:
        raise UserError(f"--profile {options.profile}.", f"there are {', '.join(PROFILES)}.", "pomona private status")
    publisher = None if options.dry_run else log_of(options.log)[1]
    adapters = {name: Path(path) for name, path in adapters_of(options.adapter).items()}
    ours = measured(options.name or name_of(options.model), options.model, adapters, options.image)
    version = options.version or time.strftime("%Y-%m-%d")
    registers = dict(each.partition("=")[::2] for each in options.register)
    leaf = _leaf(lambda: release_of(ours, version, options.profile, registers, time.time(), options.days * 86400))
    print_stdout(encode(leaf).decode() + "\n")
    if publisher is not None:
        _published(lambda: publish(publisher, [leaf]))
        print(f"published as {hash_of(leaf).hex()}", file=sys.stderr)


@dataclasses.dataclass(frozen=True)
class EnrolOptions:
    """Has a node's machine prove its TPM, and publishes that. The key for the log is read from POMONA_LOG_KEY."""

    node: Annotated[str, tyro.conf.Positional]
    """The node's address."""
    by: str
    """Who enrols, as the log will say."""
    log: Path = Path("log.json")
    """The log's settings, which it writes when it starts."""
    maker: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction] = ()
    """A certificate (PEM) of who certifies the TPM's endorsement key; may be given several times."""
    any_tpm: bool = False
    """Believes any TPM, an emulator among them."""
    days: int = 365
    """How long it counts."""


def enrol(arguments: list[str]) -> None:
    """Asks, checks, publishes."""
    options = parse(EnrolOptions, arguments, "private enrol")
    from pomona.private.roles.enrolment import enrol
    from pomona.private.roles.publishing import publish
    from pomona.private.transparency.leaves import encode

    if bool(options.maker) == options.any_tpm:
        raise UserError("who vouches for the TPM?", "its maker's certificate, or nobody.", "--maker FILE, or --any-tpm")
    publisher = log_of(options.log)[1]
    makers = None if options.any_tpm else [read_bytes(path) for path in options.maker]
    leaf = enrol(options.node.rstrip("/"), makers, options.by, time.time(), options.days * 86400)
    _published(lambda: publish(publisher, [leaf]))
    print_stdout(_leaf(lambda: encode(leaf)).decode() + "\n")


@dataclasses.dataclass(frozen=True)
class RevokeOptions:
    """Takes back what the log says; there is no way back from that. The key for the log is read from POMONA_LOG_KEY."""

    kind: Annotated[str, tyro.conf.Positional]
    """release, machine, issuer-key or gateway-key."""
    text: Annotated[str, tyro.conf.Positional]
    """What is in the leaves that are meant, as the log has it: a machine's key_name, a release's version, a name."""
    reason: str
    """What the log will say."""
    log: Path = Path("log.json")
    """The log's settings, which it writes when it starts."""
    dry_run: bool = False
    """Prints the leaves that are meant, and publishes nothing."""


def revoke(arguments: list[str]) -> None:
    """Finds, publishes, prints what is taken back."""
    options = parse(RevokeOptions, arguments, "private revoke")
    from pomona.private.client.reading import read_log
    from pomona.private.client.trust import read_log_trust
    from pomona.private.roles.publishing import publish
    from pomona.private.roles.revoking import REVOCABLE, meant, revocation_of
    from pomona.private.transparency.leaves import encode

    if options.kind not in REVOCABLE or not options.text:
        raise UserError(
            f"{options.kind} {options.text!r} cannot be taken back.",
            f"a kind, {', '.join(REVOCABLE)}, and a text that is in what is meant.",
            "pomona private revoke machine 000b12... --reason stolen",
        )
    trust, now = read_log_trust(options.log), time.time()
    with tempfile.TemporaryDirectory() as state:
        found = meant(_published(lambda: read_log(trust, Path(state), now)), options.kind, options.text)
    if not found:
        raise UserError(
            f"the log has no {options.kind} with {options.text!r} that counts.",
            "what has expired, or was taken back, needs nothing.",
            "pomona private audit, which shows the log",
        )
    revocations = [_leaf(lambda leaf=leaf: revocation_of(leaf, options.reason, now)) for leaf in found]
    if not options.dry_run:
        _published(lambda: publish(log_of(options.log)[1], revocations))
    for leaf in found:
        print_stdout(encode(leaf).decode() + "\n")


def log_of(path: Path) -> tuple[Any, Any]:
    """A log's settings, and the end of it that this process may write at."""
    from pomona.private.client.trust import read_log_trust
    from pomona.private.roles.publishing import Publisher

    trust, key = read_log_trust(path), os.environ.get(KEY, "")
    if not key:
        raise UserError(
            f"{KEY} is not set.", "who writes into the log has a key for it.", f"{KEY}=... pomona private ..."
        )
    return trust, Publisher(trust.address, key)


def _leaf(make: Any) -> Any:
    from pomona.private.transparency.errors import TransparencyError
    from pomona.private.transparency.leaves import encode

    try:
        leaf = make()
        return leaf if isinstance(leaf, bytes) else (encode(leaf), leaf)[1]
    except TransparencyError as error:
        raise UserError(
            f"the log would not take it: {error}", "names, digests and registers have forms of their own.", "others"
        ) from error


def _published(do: Any) -> Any:
    from pomona.private.client.reading import Unreachable
    from pomona.private.roles.publishing import NotPublished
    from pomona.private.transparency.errors import TransparencyError

    try:
        return do()
    except (NotPublished, Unreachable, TransparencyError) as error:
        raise UserError(f"{error}", "the log lets writers write the kinds that they may.", f"another {KEY}") from error
