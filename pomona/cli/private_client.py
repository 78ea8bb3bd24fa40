"""Who asks the private cloud, and who checks it."""

import asyncio
import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import tyro

from pomona.cli.parse import parse, print_stdout
from pomona.core.errors import UserError
from pomona.core.files import read_bytes


@dataclasses.dataclass(frozen=True)
class Config:
    """What a client has been told."""

    config: Path | None = None
    """The client's settings; POMONA_PRIVATE, or private/client.json, by default."""


@dataclasses.dataclass(frozen=True)
class Ask(Config):
    """Asks once, and prints the answer as it comes."""

    prompt: Annotated[str, tyro.conf.Positional] = "-"
    """What is asked; - reads standard input."""
    model: str = ""
    """MODEL or MODEL:ADAPTER; the newest release's by default."""
    max_tokens: int = 500
    """Tokens of the answer at most."""
    temperature: float = 0.8
    """0 always takes the most likely token."""
    system: str = ""
    """What comes before."""


def ask(arguments: list[str]) -> None:
    """One question, one answer."""
    options = parse(Ask, arguments, "private ask")
    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    _guarded(lambda: _ask(options, prompt))


async def _ask(options: Ask, prompt: str) -> None:
    from pomona.private.client.asking import releases
    from pomona.private.client.oblivious import BrokenOff
    from pomona.private.client.proxy import model_of, request_of

    async with _asker(options.config) as asker:
        model = options.model
        if not model:
            found = releases(await asker.known())
            if not found:
                raise UserError(
                    "the log has no release that is accepted.",
                    "a client uses what is published and in force.",
                    "pomona private audit, which shows the log",
                )
            model = found[-1].name
        turns = [{"role": "system", "content": options.system}] if options.system else []
        body = {
            "model": model,
            "messages": [*turns, {"role": "user", "content": prompt}],
            "max_tokens": options.max_tokens,
            "temperature": options.temperature,
            "stream": True,
        }
        content = json.dumps(body).encode()
        async with asker.ask(request_of("/v1/chat/completions", content), model_of(content)) as answer:
            if answer.status != 200:
                told = json.loads(await answer.whole())["error"]["message"]
                raise UserError(f"the node refuses: {told}", f"it answers {answer.status}.", "another request")
            buffer = b""
            async for piece in answer.pieces:
                *lines, buffer = (buffer + piece).split(b"\n")
                for line in lines:
                    _print_event(line, BrokenOff)
            print(flush=True)


def _print_event(line: bytes, broken: type[Exception]) -> None:
    if not line.startswith(b"data: ") or line == b"data: [DONE]":
        return
    event = json.loads(line[6:])
    if "error" in event:
        raise broken(event["error"]["message"])
    for choice in event["choices"]:
        print(choice["delta"].get("content") or "", end="", flush=True)


@dataclasses.dataclass(frozen=True)
class Proxy(Config):
    """OpenAI's interface on this machine, in front of the private cloud."""

    host: str = "127.0.0.1"
    """The address to listen at. Whoever reaches it spends this account's tokens, and is read by this machine."""
    port: int = 8700
    """0 takes any that is free."""


def proxy(arguments: list[str]) -> None:
    """Serves until it is ended."""
    options = parse(Proxy, arguments, "private proxy")
    from pomona.core.machine import hide_memory
    from pomona.listen.server import Server, address_of, bound
    from pomona.private.client.proxy import build_proxy

    asker = _asker(options.config)
    sock = bound(options.host, options.port)
    hide_memory()

    async def served() -> None:
        print(f"OpenAI's interface at {address_of(sock)}/v1", file=sys.stderr, flush=True)
        await Server(build_proxy(asker), drain_seconds=10).serve([sock])

    with sock:
        asyncio.run(served())


@dataclasses.dataclass(frozen=True)
class Audit(Config):
    """Replays the log, and holds every node to every clause. Needs no account."""

    bundle: Path | None = None
    """Judges the bundle in a file, in place of the nodes of the directory."""
    json: bool = False
    """For programs."""


def audit(arguments: list[str]) -> None:
    """Prints every clause; leaves with 1 where one refuses."""
    options = parse(Audit, arguments, "private audit")
    reports = _guarded(lambda: _audit(options))
    if options.json:
        _line(json.dumps([dataclasses.asdict(each) | {"passed": each.passed} for each in reports], indent=2))
    else:
        for report in reports:
            _line(f"{report.about}: {'passed' if report.passed else 'REFUSED'}")
            for each in report.findings:
                sign = "FAIL" if each.refusal else "pass"
                _line(f"  {sign}  {each.clause}: {each.refusal or each.about}")
    if not all(each.passed for each in reports):
        sys.exit(1)


async def _audit(options: Audit) -> list[Any]:
    from pomona.private.client.audit import audit_bundle, audit_log, audit_nodes

    async with _asker(options.config) as asker:
        known = await asker.known()
        if options.bundle:
            return [audit_log(known), audit_bundle(read_bytes(options.bundle), known, f"bundle {options.bundle}")]
        return [audit_log(known), *await audit_nodes(asker, known)]


@dataclasses.dataclass(frozen=True)
class Status(Config):
    """Which profiles there are, what each promises, and which this client accepts."""


def status(arguments: list[str]) -> None:
    """Prints the profiles."""
    options = parse(Status, arguments, "private status")
    from pomona.private.attestation.profiles import PROFILES
    from pomona.private.client.trust import place_of, read_trust

    place = place_of(options.config)
    accepted = read_trust(place).profiles if options.config or place.exists() else ()
    for name, profile in PROFILES.items():
        sign = "  (accepted here)" if name in accepted else ""
        _line(f"{name}: {profile.about}{sign}")
        _line(f"  could read requests: {profile.reads_requests}")
        for each in profile.guarantees:
            _line(f"  + {each}")
        for each in profile.missing:
            _line(f"  - {each}")


def _line(text: str) -> None:
    print_stdout(text + "\n")


def _asker(config: Path | None) -> Any:
    from pomona.private.client.asking import Asker
    from pomona.private.client.trust import place_of, read_trust

    place = place_of(config)
    return Asker(read_trust(place), place.parent / "client")


def _guarded(do: Any) -> Any:
    """Runs it, with the errors of the private cloud as a user's."""
    from pomona.private.client.asking import NoSuchModel, Refused
    from pomona.private.client.buying import OutOfTokens
    from pomona.private.client.oblivious import BrokenOff
    from pomona.private.client.reading import Unreachable
    from pomona.private.tokens.errors import TokenError
    from pomona.private.transparency.errors import TransparencyError

    try:
        return asyncio.run(do())
    except (Unreachable, NoSuchModel, Refused, BrokenOff, OutOfTokens, TokenError, TransparencyError) as error:
        raise UserError(
            f"{error}.".replace("..", "."),
            "what cannot be reached or checked is not used; nothing was sent in the clear.",
            "the same again, or pomona private audit, which shows what is refused",
        ) from error
