"""What a node's own processes tell each other: the node, the process that forks, and a worker for each request.

Each message is one MessagePack map, framed by its length in 4 bytes, little-endian. Besides these, the engine's own
orders and events go through (`pomona.serve.messages`).
"""

import socket
from typing import Any

import msgspec

from pomona.serve.messages import Cancel, Finished, Prompted, Ready, Said, Submit, exactly, size_of


class Prepare(msgspec.Struct, tag="prepare", frozen=True):
    """To the process that forks: what all requests share. Nothing of any request ever comes there."""

    model: str
    """A run folder, a device file, or the tokenizer's folder of a mock."""
    name: str
    adapters: list[str]
    template: str
    """A file, or empty for the plain form."""
    stops: list[str]
    context: int
    most_waiting: int
    identity: bytes
    public_point: bytes
    """Of the key whose other half is in the TPM, 65 bytes."""
    mlkem_seed: bytes
    """64 bytes."""
    mock: bool = False


class Request(msgspec.Struct, tag="request", frozen=True):
    """To a worker: the only request it will ever see, still sealed."""

    envelope: bytes
    ready: Ready | None
    """Of the engine, if it runs."""
    in_flight: int


class DiffieHellman(msgspec.Struct, tag="diffie-hellman", frozen=True):
    """To the node: the step that only its TPM can do."""

    peer: bytes


class Secret(msgspec.Struct, tag="secret", frozen=True):
    """To a worker: what that step gave; nothing where the TPM refused it."""

    shared: bytes


class Piece(msgspec.Struct, tag="piece", frozen=True):
    """To the node: more of the answer, sealed."""

    content: bytes


class Ended(msgspec.Struct, tag="ended", frozen=True):
    """To the node: it is over, and how: one of `OUTCOMES`, and nothing else of it."""

    outcome: str


OUTCOMES = ("answered", "failed", "unsealed", "unreadable", "key-gone", "lost")
"""`failed`: answered with an error; `unsealed`: it was not for this node or was damaged; `unreadable`: no HTTP in it;
`key-gone`: the TPM no longer lets the key be used; `lost`: the worker or the asker is gone."""

_down = msgspec.msgpack.Decoder(Prepare | Request | Secret | Prompted | Said | Finished)
_up = msgspec.msgpack.Decoder(DiffieHellman | Piece | Ended | Submit | Cancel)


def to_worker(content: bytes | bytearray) -> Any:
    """What the node told."""
    return _down.decode(content)


def to_node(content: bytes) -> Any:
    """What a worker told."""
    return _up.decode(content)


def receive(connection: socket.socket) -> Any:
    """The next message from the node, waited for; None at the end."""
    head = exactly(connection, 4)
    content = exactly(connection, size_of(head)) if head else b""
    return to_worker(content) if content else None
