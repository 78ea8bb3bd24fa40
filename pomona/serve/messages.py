"""What the server and the engine's process tell each other: tokens and numbers. Of text there are grammars alone.

Each message is one MessagePack map, framed by its length in 4 bytes, little-endian.
"""

import socket
from typing import Any

import msgspec

LARGEST = 1 << 28
"""Bytes of a message at most."""


class Start(msgspec.Struct, tag="start", frozen=True, omit_defaults=True):
    """What to serve: the first order an engine's process gets."""

    model: str
    """A run folder, a device file, or `mock`."""
    adapters: dict[str, str] = {}
    """Their folders, by name."""
    step: int | None = None
    slots: int = 8
    context: int = 4096
    chunk: int = 0
    """Tokens of prompts in one step at most; 0 for what suits the engine."""
    draws: int = 0
    """Tokens of each sequence in one dispatch; likewise."""
    cache: str = "auto"
    tensor: int = 1
    threads: int | None = None
    instruction_set: str = ""
    keep_prefixes: bool = True
    hidden: bool = False
    """No core dumps, and no other process of the same user reads the engine's memory."""
    speculate: str = "none"
    """What guesses tokens: `none`, `lookup`, or the path of a smaller device file."""
    mock: dict[str, Any] = {}
    """Of the mock: what `MockBackend` takes, and `tokenizer`, a folder."""


class Submit(msgspec.Struct, tag="submit", frozen=True, omit_defaults=True):
    """A request: its prompt, and how to go on from it."""

    id: int
    tokens: list[int]
    max_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    logprobs: int | None = None
    """How many of the most likely tokens are told beside each token's own log-probability; None tells nothing."""
    echo: bool = False
    """Also the log-probabilities of the prompt's tokens."""
    embed: bool = False
    """The mean of the last hidden states of the prompt, and no tokens."""
    grammar: str | None = None
    """What the text has to be, as llguidance reads it."""
    adapter: str | None = None
    principal: str = ""
    """On whose behalf: fairness is between principals."""
    sharing: str = ""
    """What is computed for one request serves others with the same text here, and no more."""
    priority: int = 0
    """Higher goes first, and takes the place of lower where there is none."""


class Cancel(msgspec.Struct, tag="cancel", frozen=True):
    """Nobody waits for it any more."""

    id: int


class Refused(msgspec.Struct, tag="refused", frozen=True):
    """The engine cannot serve this: the three parts of a `UserError`."""

    what: str
    rule: str
    fix: str


class Ready(msgspec.Struct, tag="ready", frozen=True):
    """The engine computes."""

    slots: int
    context: int
    device: str
    memory_bytes: int
    seconds: float
    """From its start."""


class Likely(msgspec.Struct, frozen=True, array_like=True):
    """A token's log-probability in nats, and the most likely tokens at its place with theirs."""

    logprob: float
    tokens: list[int]
    logprobs: list[float]


class Prompted(msgspec.Struct, tag="prompted", frozen=True, omit_defaults=True):
    """The prompt of a request has been computed."""

    id: int
    cached: int
    """Tokens of it that were known already."""
    likely: list[Likely] = []
    """With `echo`: of all its tokens after the first."""
    embedding: list[float] = []


class Said(msgspec.Struct, tag="said", frozen=True, omit_defaults=True):
    """The next tokens of a request."""

    id: int
    tokens: list[int]
    likely: list[Likely] = []


class Finished(msgspec.Struct, tag="finished", frozen=True):
    """A request has ended: `stop` at the end of its document, `length`, or `failed` with a text that says why."""

    id: int
    reason: str
    text: str = ""


class Stats(msgspec.Struct, tag="stats", frozen=True):
    """What the engine has done since it started, sent at most once a second."""

    running: int
    waiting: int
    prompt_tokens: int
    cached_tokens: int
    said_tokens: int
    preempted: int
    guessed: int
    guessed_right: int
    dispatches: int
    compiled: int
    """Programs that a request has made it compile; 0 after warming up."""
    busy_seconds: float
    backend_seconds: float


Order = Submit | Cancel
Event = Refused | Ready | Prompted | Said | Finished | Stats

_orders = msgspec.msgpack.Decoder(Start | Order)
_events = msgspec.msgpack.Decoder(Event)
_encoder = msgspec.msgpack.Encoder()


def framed(message: msgspec.Struct) -> bytes:
    """A message as it goes over the wire."""
    content = _encoder.encode(message)
    return len(content).to_bytes(4, "little") + content


def size_of(head: bytes | bytearray) -> int:
    """How long a message is, by its first 4 bytes.

    Raises:
        ValueError: longer than any.
    """
    size = int.from_bytes(head, "little")
    if size > LARGEST:
        raise ValueError(f"a message of {size} bytes")
    return size


def read_order(connection: socket.socket) -> Any:
    """The next order, waited for; None at the end. Nothing is read ahead, and nothing of it is kept here."""
    head = exactly(connection, 4)
    content = exactly(connection, size_of(head)) if head else b""
    return _orders.decode(content) if content else None


def exactly(connection: socket.socket, size: int) -> bytearray:
    """So many bytes, waited for; none where the other end has closed."""
    content = bytearray(size)
    view, got = memoryview(content), 0
    while got < size:
        more = connection.recv_into(view[got:])
        if not more:
            return bytearray()
        got += more
    return content


def event_of(content: bytes) -> Any:
    """The event of a message's content."""
    return _events.decode(content)
