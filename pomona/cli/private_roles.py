"""The roles of the private cloud, as they are started."""

import asyncio
import dataclasses
import logging
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import tyro

from pomona.cli.parse import parse, print_stdout
from pomona.cli.private_publishing import log_of
from pomona.cli.serve_verb import adapters_of
from pomona.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class At:
    """Where a role listens."""

    host: str = "127.0.0.1"
    """The address to listen at; 0.0.0.0 lets other machines in."""
    port: int = 0
    """0 takes any that is free."""


@dataclasses.dataclass(frozen=True)
class Up:
    """Starts issuer, relay, gateway, nodes and log on this machine."""

    model: Annotated[Path | None, tyro.conf.Positional] = None
    """A run folder or a device file; by default what `make demo` or `pomona train tiny` has made here."""
    folder: Path = Path("private")
    """Where keys and the log are kept."""
    adapter: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """NAME=FOLDER: an adapter of the model; may be given several times."""
    nodes: int = 2
    """Nodes, each with the model in its memory."""
    slots: int = 8
    """Requests that each computes at a time."""
    context: int = 0
    """Tokens of a prompt and its answer together; 0 for 4096, or less where the model was trained on less."""
    port: int = 8710
    """The first of the ports, one for each process."""


def up(arguments: list[str]) -> None:
    """Runs all until it is ended."""
    options = parse(Up, arguments, "private up")
    from pomona.private.roles.up import Laptop, run_laptop

    model = options.model or _made_here()
    if not 1 <= options.nodes <= 100:
        raise UserError(f"--nodes {options.nodes}.", "1 to 100.", "--nodes 2")
    given = (f"--slots={options.slots}", f"--context={options.context}")
    adapters = {name: Path(path) for name, path in adapters_of(options.adapter).items()}
    laptop = Laptop(options.folder, model, adapters, options.nodes, options.port, given)
    run_laptop(laptop, lambda text: print_stdout(text + "\n"))


def _made_here() -> Path:
    for place in (Path("lives/tiny/parent"), Path("runs/tiny")):
        if place.exists():
            return place
    raise UserError(
        "there is no model here yet.",
        "a private cloud serves a run folder or a device file.",
        "make demo, or pomona train tiny; or the path of one",
    )


@dataclasses.dataclass(frozen=True)
class LogOptions(At):
    """Publishes the log of a folder, and takes leaves from those who may write them."""

    folder: Annotated[Path, tyro.conf.Positional] = Path("log")
    """Its key, and `public/`, which any file server may hand out."""
    origin: str = "log.localhost"
    """Its name, for ever: a host name, and a path if there are several."""
    writers: Path = Path("writers")
    """A file of who may write, a line each: a name, a key, and kinds of leaves."""
    address: str = ""
    """What clients reach it by, where that is not where it listens."""


def log(arguments: list[str]) -> None:
    """Serves until it is ended."""
    options = parse(LogOptions, arguments, "private log")
    from pomona.listen.server import address_of, bound
    from pomona.private.roles.log import build_log, open_role
    from pomona.private.roles.publishing import read_writers

    writers = read_writers(options.writers)
    sock = bound(options.host, options.port)
    opened, trust = open_role(options.folder, options.origin, options.address or address_of(sock))
    _serve(build_log(opened, writers, time.time), sock, f"log {trust.vkey}")


@dataclasses.dataclass(frozen=True)
class IssuerOptions(At):
    """Signs tokens for accounts. The key for the log is read from POMONA_LOG_KEY."""

    folder: Annotated[Path, tyro.conf.Positional] = Path("issuer")
    """Keys and counts."""
    log: Path = Path("log.json")
    """The log's settings, which it writes when it starts."""
    name: str = "issuer.localhost"
    """As the log names it."""
    accounts: Path = Path("accounts")
    """A file of accounts, a line each: a name and a key."""
    per_day: int = 1000
    """Tokens that an account may have a day."""


def issuer(arguments: list[str]) -> None:
    """Serves until it is ended."""
    options = parse(IssuerOptions, arguments, "private issuer")
    from pomona.api.keys import read_keys
    from pomona.private.roles.issuer import IssuerSettings, build_issuer

    trust, publisher = log_of(options.log)
    options.folder.mkdir(parents=True, exist_ok=True)
    settings = IssuerSettings(
        options.folder, options.name, read_keys(options.accounts), options.per_day, trust, publisher
    )
    _serve(build_issuer(settings), _bound(options), f"issuer {options.name}")


@dataclasses.dataclass(frozen=True)
class RelayOptions(At):
    """Passes sealed requests to one gateway. Its operator has to be another than the gateway's."""

    gateway: Annotated[str, tyro.conf.Positional] = ""
    """The gateway's address."""


def relay(arguments: list[str]) -> None:
    """Serves until it is ended."""
    options = parse(RelayOptions, arguments, "private relay")
    from pomona.private.roles.relay import build_relay

    if not options.gateway.startswith(("http://", "https://")):
        raise UserError(
            f"the gateway {options.gateway!r} is no address.", "a relay has one gateway.", "https://gateway.example/"
        )
    _serve(build_relay(options.gateway), _bound(options), f"relay to {options.gateway}")


@dataclasses.dataclass(frozen=True)
class GatewayOptions(At):
    """Takes tokens and finds nodes. The key for the log is read from POMONA_LOG_KEY."""

    folder: Annotated[Path, tyro.conf.Positional] = Path("gateway")
    """Keys, and which tokens were spent."""
    log: Path = Path("log.json")
    """The log's settings, which it writes when it starts."""
    name: str = "gateway.localhost"
    """As the log and tokens name it."""
    issuer_name: str = "issuer.localhost"
    """Whose tokens it takes."""
    node: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """The address of a node; may be given several times."""


def gateway(arguments: list[str]) -> None:
    """Serves until it is ended."""
    options = parse(GatewayOptions, arguments, "private gateway")
    from pomona.private.roles.gateway import GatewaySettings, build_gateway

    if not options.node:
        raise UserError("there are no nodes.", "a gateway passes requests to nodes.", "--node http://10.0.0.1:8714")
    trust, publisher = log_of(options.log)
    options.folder.mkdir(parents=True, exist_ok=True)
    nodes = tuple(address.rstrip("/") for address in options.node)
    settings = GatewaySettings(options.folder, options.name, options.issuer_name, nodes, trust, publisher)
    _serve(build_gateway(settings), _bound(options), f"gateway {options.name}")


@dataclasses.dataclass(frozen=True)
class NodeOptions(At):
    """Serves a model to sealed requests, and keeps nothing of them."""

    model: Annotated[Path, tyro.conf.Positional] = Path()
    """A run folder or a device file."""
    folder: Annotated[Path, tyro.conf.Positional] = Path("node")
    """What it has seen of the log; nothing of any request."""
    log: Path = Path("log.json")
    """The log's settings, which it writes when it starts."""
    name: str = ""
    """What the model is called; by default as its folder or file."""
    adapter: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """NAME=FOLDER: an adapter of the model; may be given several times."""
    image: str = ""
    """The digest of the machine's image; that of the installed programs by default."""
    tpm: str = ""
    """/dev/tpmrm0, or unix:PATH or tcp:HOST:PORT of an emulator."""
    processor: bool = False
    """Also by TDX or SEV-SNP, whichever Linux offers here."""
    chat_template: Path | None = None
    """How a conversation reads, in Jinja; a plain form with names and colons by default."""
    template_stop: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """With --chat-template: a text that never belongs to an answer; may be given several times."""
    slots: int = 8
    """Requests that are computed at a time."""
    context: int = 0
    """Tokens of a prompt and its answer together; 0 for 4096, or less where the model was trained on less."""
    waiting: int = 64
    """Requests that may wait for a slot."""


def node(arguments: list[str]) -> None:
    """Serves until it is ended."""
    options = parse(NodeOptions, arguments, "private node")
    from pomona.private.roles.forgetting import overwriting

    wanted = overwriting(os.environ)
    if wanted != dict(os.environ):  # memory is overwritten from a program's start on, or not at all
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], wanted)
    from pomona.api.model import name_of, tokenizer_of
    from pomona.private.client.trust import read_log_trust
    from pomona.private.evidence.processors.configfs import FOLDER
    from pomona.private.roles.between import Prepare
    from pomona.private.roles.node import Node, NodeSettings, build_node
    from pomona.private.roles.node_keys import open_tpm
    from pomona.private.roles.release import measured
    from pomona.serve.messages import Start

    if options.processor and not options.tpm:
        raise UserError("--processor without a TPM.", "the processor vouches for the TPM's quote.", "--tpm /dev/tpmrm0")
    adapters = adapters_of(options.adapter)
    name, (_, trained) = options.name or name_of(options.model), tokenizer_of(options.model)
    context = options.context or min(4096, trained)
    model = str(options.model)
    start = Start(model, adapters, slots=options.slots, context=context, keep_prefixes=False, hidden=True)
    template = str(options.chat_template or "")
    prepare = Prepare(
        *(model, name, list(adapters), template, list(options.template_stop), context, options.waiting, b"", b"", b"")
    )
    ours = measured(name, options.model, {key: Path(path) for key, path in adapters.items()}, options.image)
    trust, processor = read_log_trust(options.log), FOLDER if options.processor else None
    options.folder.mkdir(parents=True, exist_ok=True)
    settings = NodeSettings(options.folder, start, prepare, ours, trust, processor, options.waiting)
    served = Node(settings, open_tpm(options.tpm) if options.tpm else None)
    _serve(build_node(served), _bound(options), f"node of {name}", served.engine)


def _bound(options: At) -> Any:
    from pomona.listen.server import bound

    return bound(options.host, options.port)


def _serve(app: Any, sock: Any, what: str, engine: Any = None) -> None:
    """Serves an application, and starts and ends the engine around it where there is one. Every role holds keys: none
    leaves a core dump, and none lets others read its memory."""
    from pomona.core.machine import hide_memory
    from pomona.listen.server import Server, address_of

    hide_memory()

    async def served() -> None:
        try:
            if engine is not None:
                await engine.start()
            print(f"{what} at {address_of(sock)}", file=sys.stderr, flush=True)
            server = Server(app, drain_seconds=10)
            # An answer that cannot go on is cut on purpose; uvicorn takes that for a mistake.
            logging.getLogger("uvicorn.error").addFilter(lambda told: "without completing" not in told.getMessage())
            await server.serve([sock])
        finally:
            if engine is not None:
                await engine.stop()

    with sock:
        asyncio.run(served())
