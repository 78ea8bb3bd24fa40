"""What the entries of the log say: JSON with one form only, so that the same statement is always the same bytes.

Keys sorted, no spaces, UTF-8, no escapes but those that JSON needs. Every leaf has a `kind`, and counts from
`not_before` to before `expires`, in whole seconds since the epoch:

    release      what a node runs: digests of image, model and adapters, and the registers that they lead to
    issuer-key   a key that signs tokens
    gateway-key  a key that requests are encrypted to
    directory    the nodes there are, or one part of them
    machine      a machine that was enrolled, by the name of its TPM's attestation key
    revocation   a leaf that no longer counts
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from pomona.private.transparency.errors import TransparencyError
from pomona.private.transparency.merkle import leaf_hash
from pomona.private.transparency.text import decode_base64, decode_hex
from pomona.private.transparency.tiles import MOST_ENTRY_BYTES

MOST_SECONDS = (1 << 53) - 1  # what every reader of JSON keeps exactly
MOST_NODES, MOST_PARTS = 10_000, 128
NAME = re.compile("[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}")
ADDRESS = re.compile("[!-~]{0,255}")
REGISTER = re.compile("[a-z0-9-]{1,16}/(0|[1-9][0-9]{0,2})")
TEXT = re.compile("[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,1000}")
REGISTER_BYTES = (32, 48, 64)
# TPM 2.0 Part 1, "Names": a hash algorithm's number in two bytes, and a digest by it.
KEY_NAME_BYTES = {"000b": 34, "000c": 50, "000d": 66}


@dataclass(frozen=True, kw_only=True)
class Dated:
    """From when, and until before when, a leaf counts: seconds since the epoch."""

    not_before: int
    expires: int


@dataclass(frozen=True, kw_only=True)
class Release(Dated):
    """What a node runs. Digests are SHA-256 in hexadecimal; `measurements` has a register's digest (32, 48 or 64 bytes
    in hexadecimal) by its bank and number, as `sha256/11`; `profile` names the guarantees.
    """

    name: str
    version: str
    image: str
    model: str
    adapters: dict[str, str] = field(default_factory=dict)
    measurements: dict[str, str] = field(default_factory=dict)
    profile: str


@dataclass(frozen=True, kw_only=True)
class IssuerKey(Dated):
    """A token key: its SubjectPublicKeyInfo in base64, and the SHA-256 of that in hexadecimal (RFC 9578, Section 6)."""

    issuer: str
    token_key: str
    token_key_id: str


@dataclass(frozen=True, kw_only=True)
class GatewayKey(Dated):
    """A gateway's key configuration (RFC 9458, Section 3) in base64."""

    gateway: str
    key_config: str


@dataclass(frozen=True)
class NodeEntry:
    """A node: the SHA-256 of its bundle and its release's leaf hash, in hexadecimal, and where it may be found."""

    identity: str
    address: str
    release: str


@dataclass(frozen=True, kw_only=True)
class Directory(Dated):
    """Part `part` of `parts`, from 1, of all the nodes, which are 10,000 at most."""

    nodes: tuple[NodeEntry, ...]
    part: int
    parts: int


@dataclass(frozen=True, kw_only=True)
class Machine(Dated):
    """A machine by the name of its TPM's attestation key, in hexadecimal, and who vouches that it is one."""

    key_name: str
    enrolled_by: str


@dataclass(frozen=True, kw_only=True)
class Revocation(Dated):
    """From `not_before` on the leaf with this hash, in hexadecimal, does not count, wherever it is in the log, and also
    after this leaf's `expires`.
    """

    leaf: str
    reason: str


Leaf = Release | IssuerKey | GatewayKey | Directory | Machine | Revocation
KINDS: dict[str, type[Leaf]] = {
    "release": Release,
    "issuer-key": IssuerKey,
    "gateway-key": GatewayKey,
    "directory": Directory,
    "machine": Machine,
    "revocation": Revocation,
}
KIND_OF = {leaf_class: kind for kind, leaf_class in KINDS.items()}


class _Kind(msgspec.Struct):
    kind: str


def encode(leaf: Leaf) -> bytes:
    """The entry, at most 65,535 bytes.

    Raises:
        TransparencyError: a value that its field cannot have, or an entry that is too long.
    """
    check(leaf)
    data = _canonical(leaf)
    if decode(data) != leaf:
        raise TransparencyError("a leaf's fields are of the types that it declares.")
    return data


def decode(data: bytes) -> Leaf:
    """What an entry says.

    Raises:
        TransparencyError: it is not what `encode` makes: an unknown kind or field, a value that its field cannot have,
            or other bytes for the same statement.
    """
    if len(data) > MOST_ENTRY_BYTES:
        raise TransparencyError(f"an entry has at most {MOST_ENTRY_BYTES} bytes.")
    try:
        kind = msgspec.json.decode(data, type=_Kind).kind
        if kind not in KINDS:
            raise TransparencyError("an entry is of a kind that is not known.")
        leaf: Leaf = msgspec.json.decode(data, type=KINDS[kind])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TransparencyError("an entry is not a leaf in JSON, or lacks a field of its kind.") from error
    check(leaf)
    if _canonical(leaf) != data:
        raise TransparencyError("an entry is not in the one form that its leaf has, or has a field too many.")
    return leaf


def check(leaf: Leaf) -> None:
    """Raises `TransparencyError` where a field has a value that it cannot have."""
    if not 0 <= leaf.not_before < leaf.expires <= MOST_SECONDS:
        raise TransparencyError("a leaf has not_before before expires, from 0 to 2^53 - 1 seconds.")
    match leaf:
        case Release():
            _check_release(leaf)
        case IssuerKey():
            _check_names(leaf.issuer)
            key = decode_base64(leaf.token_key, "a token key")
            if decode_hex(leaf.token_key_id, "a token key's id") != hashlib.sha256(key).digest() or not key:
                raise TransparencyError("a token key's id is the SHA-256 of the key.")
        case GatewayKey():
            _check_names(leaf.gateway)
            if not decode_base64(leaf.key_config, "a key configuration"):
                raise TransparencyError("a key configuration is not empty.")
        case Directory():
            _check_nodes(leaf.nodes)
            if not 1 <= leaf.part <= leaf.parts <= MOST_PARTS:
                raise TransparencyError(f"a directory is in parts 1 to {MOST_PARTS} at most.")
        case Machine():
            _check_names(leaf.enrolled_by)
            _check_key_name(leaf.key_name)
        case Revocation():
            decode_hex(leaf.leaf, "the hash of a revoked leaf")
            _check_form(TEXT, leaf.reason, "a reason has 1 to 1,000 characters, none of them for control.")


def hash_of(leaf: Leaf) -> bytes:
    """The leaf hash of its entry, 32 bytes: what releases and revocations are named by.

    Raises:
        TransparencyError: as `encode`.
    """
    return leaf_hash(encode(leaf))


def valid_at(leaf: Leaf, now: float) -> bool:
    """Whether `now` is from `not_before` to before `expires`; revocations are not looked at."""
    return leaf.not_before <= now < leaf.expires


def in_force(leaves: Sequence[Leaf], now: float) -> list[Leaf]:
    """Of all the leaves of a log, those that are valid and not revoked at `now`, in the log's order. A leaf that is
    appended again after it was revoked stays revoked.
    """
    revoked = {leaf.leaf for leaf in leaves if isinstance(leaf, Revocation) and leaf.not_before <= now}
    valid = [leaf for leaf in leaves if valid_at(leaf, now)]
    return [leaf for leaf in valid if not revoked or hash_of(leaf).hex() not in revoked]


def split_directory(nodes: Sequence[NodeEntry], not_before: int, expires: int) -> list[Directory]:
    """A directory as leaves, each as large as an entry may be; to be appended at once.

    Raises:
        TransparencyError: more than 10,000 nodes, one of them twice, or a value that its field cannot have.
    """
    _check_nodes(nodes)
    empty = Directory(not_before=not_before, expires=expires, nodes=(), part=MOST_PARTS, parts=MOST_PARTS)
    room = MOST_ENTRY_BYTES - len(encode(empty))
    groups: list[list[NodeEntry]] = [[]]
    left = room
    for node in nodes:
        size = len(_json(dataclasses.asdict(node))) + len(",")
        if size > left:
            groups.append([])
            left = room
        groups[-1].append(node)
        left -= size
    dates = {"not_before": not_before, "expires": expires}
    return [Directory(**dates, nodes=tuple(each), part=at, parts=len(groups)) for at, each in enumerate(groups, 1)]


def newest_directory(leaves: Iterable[Leaf], now: float) -> tuple[NodeEntry, ...]:
    """All nodes of the last directory, in the log's order, whose parts are all there and valid at `now`.

    Raises:
        TransparencyError: there is none, or it has a node twice or more than 10,000.
    """
    newest: list[Directory] = []
    run: list[Directory] = []
    for leaf in leaves:
        if not isinstance(leaf, Directory) or not valid_at(leaf, now):
            continue
        last = run[-1] if run else None
        goes_on = last and dataclasses.replace(last, nodes=leaf.nodes, part=last.part + 1) == leaf
        run = [*run, leaf] if goes_on else [leaf] if leaf.part == 1 else []
        newest = run if run and len(run) == leaf.parts else newest
    if not newest:
        raise TransparencyError("no directory in the log is complete and valid now.")
    nodes = tuple(node for part in newest for node in part.nodes)
    _check_nodes(nodes)
    return nodes


def _canonical(leaf: Leaf) -> bytes:
    return _json(dataclasses.asdict(leaf) | {"kind": KIND_OF[type(leaf)]})


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _check_release(leaf: Release) -> None:
    _check_names(leaf.name, leaf.version, leaf.profile, *leaf.adapters)
    for digest in (leaf.image, leaf.model, *leaf.adapters.values()):
        decode_hex(digest, "a release's digest")
    for register, digest in leaf.measurements.items():
        _check_form(REGISTER, register, "a register is a bank and a number, as sha256/11.")
        decode_hex(digest, "a register's digest", REGISTER_BYTES)


def _check_key_name(name: str) -> None:
    size = KEY_NAME_BYTES.get(name[:4])
    if size is None:
        raise TransparencyError("a key's name begins with 000b, 000c or 000d, for SHA-256, SHA-384 or SHA-512.")
    decode_hex(name, "a key's name", (size,))


def _check_nodes(nodes: Sequence[NodeEntry]) -> None:
    if len(nodes) > MOST_NODES or len({node.identity for node in nodes}) != len(nodes):
        raise TransparencyError(f"a directory has at most {MOST_NODES} nodes, and none of them twice.")
    for node in nodes:
        decode_hex(node.identity, "a node's identity")
        decode_hex(node.release, "the hash of a node's release")
        _check_form(ADDRESS, node.address, "an address has at most 255 visible ASCII characters.")


def _check_names(*names: str) -> None:
    for name in names:
        _check_form(NAME, name, "a name has 1 to 128 letters, digits and ._:/@+- and begins with a letter or a digit.")


def _check_form(form: re.Pattern[str], text: str, rule: str) -> None:
    if not form.fullmatch(text):
        raise TransparencyError(rule)
