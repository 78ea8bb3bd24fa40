"""`pomona chat FILE`."""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import tyro

from pomona.cli.device_options import drafter_of, open_model
from pomona.cli.parse import parse, print_stdout
from pomona.core.errors import UserError

COMMANDS = "Say something. /forget begins anew, /quit or Ctrl-D ends, Ctrl-C stops an answer."


@dataclasses.dataclass(frozen=True)
class ChatOptions:
    """A conversation with a model in the terminal."""

    file: Annotated[Path, tyro.conf.Positional]
    """A device file (`pomona export RUN --format pomona`)."""
    system: str = ""
    """What comes before all turns, and is never forgotten."""
    turn: str = "User: {}\nAssistant:"
    """How a turn reads, {} being what you say: what the model was trained on, if on anything of the kind."""
    max_tokens: int = 500
    """Tokens of an answer at most."""
    temperature: float = 0.8
    """0 always takes the most likely token."""
    top_k: int = 0
    """Only the k most likely tokens; 0 for all."""
    top_p: float = 0.95
    """Only the most likely tokens that together have this probability."""
    seed: int = 0
    """Another seed draws other tokens."""
    adapter: Path | None = None
    """An adapter to talk to (`pomona export RUN --format adapter`)."""
    context: int = 4096
    """Tokens that are kept; the oldest turns are left out beyond."""
    threads: int | None = None
    """The threads that compute; all that there are by default."""
    instruction_set: str = ""
    """avx512, avxvnni, avx2, neon, portable or numpy; the best that the processor has by default."""
    speculate: str = "none"
    """lookup: guess what came before in the conversation; a device file: guess what this smaller model says."""


def run(arguments: list[str]) -> None:
    """Reads lines and answers them until there are no more."""
    options = parse(ChatOptions, arguments, "chat")
    from pomona.device.chat import Chat
    from pomona.model.sampling import Sampling, check_sampling

    sampling = Sampling(options.temperature, options.top_k, options.top_p)
    check_sampling(sampling)
    model = open_model(options.file)
    adapter = model.adapter(options.adapter) if options.adapter else None
    session = model.open(options.context, options.threads, options.instruction_set, adapter)
    drafter = drafter_of(options.speculate, model, options.context, options.threads, sampling)
    chat = Chat(model, session, options.turn, options.system, sampling, drafter)
    print(f"{options.file}, {session.engine.threads} threads, {session.engine.instruction_set}", file=sys.stderr)
    print(COMMANDS, file=sys.stderr)
    for number, line in enumerate(_lines()):
        if line == "/quit":
            return
        if line == "/forget":
            chat.forget()
        elif line.startswith("/"):
            print(f"there is no {line}. {COMMANDS}", file=sys.stderr)
        elif line:
            _answer(chat, line, options.max_tokens, options.seed + number)


def _answer(chat, line: str, max_tokens: int, seed: int) -> None:
    try:
        with contextlib.suppress(KeyboardInterrupt):
            for piece in chat.say(line, max_tokens, seed):
                print_stdout(piece)
    except UserError as error:  # too long a line ends no conversation
        print(f"pomona: {error}", file=sys.stderr)
        return
    print_stdout("\n")
    told = f"{chat.tokens} tokens, {chat.tokens / chat.seconds if chat.seconds else 0:.1f} a second"
    told += f", the first after {chat.first:.2f} s"
    if chat.pace.guessed:
        told += f"; {chat.pace.right} of {chat.pace.guessed} guesses were right so far"
    if chat.forgotten:
        told += f"; the oldest {chat.forgotten} turns have no room in the context any more"
    print(f"({told})", file=sys.stderr)


def _lines() -> Iterator[str]:
    """What is typed, line by line, or what comes through a pipe."""
    if not sys.stdin.isatty():
        yield from (line.rstrip("\n") for line in sys.stdin)
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (arrows and history for input())
    with contextlib.suppress(EOFError):
        while True:
            yield input("> ").strip()
