"""`pomona chat RUN|FILE|URL`."""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from pomona.cli.device_options import drafter_of, open_model
from pomona.cli.parse import parse, print_stdout, refuse
from pomona.core.errors import UserError

if TYPE_CHECKING:
    from pomona.device.speculate import Pace
    from pomona.model.sampling import Sampling

COMMANDS = "Say something. /forget begins anew, /quit or Ctrl-D ends, Ctrl-C stops an answer."


@dataclasses.dataclass(frozen=True)
class ChatOptions:
    """A conversation with a model in the terminal. A server's key is read from POMONA_API_KEY."""

    model: Annotated[str, tyro.conf.Positional]
    """A run folder, a device file (`pomona export RUN --format pomona`), or the address of a server."""
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
    name: str = ""
    """Of a server: which of its models, MODEL or MODEL:ADAPTER; its first by default."""
    context: int = 4096
    """Tokens that are kept; the oldest turns are left out beyond."""
    threads: int | None = None
    """Of a device file: the threads that compute; all that there are by default."""
    instruction_set: str = ""
    """Of a device file: avx512, avxvnni, avx2, neon, portable or numpy; the best that the processor has by default."""
    speculate: str = "none"
    """Of a device file: lookup guesses what came before in the conversation; a device file guesses what this smaller
    model says."""


def run(arguments: list[str]) -> None:
    """Reads lines and answers them until there are no more."""
    options = parse(ChatOptions, arguments, "chat")
    from pomona.model.sampling import Sampling, check_sampling

    sampling = Sampling(options.temperature, options.top_k, options.top_p)
    check_sampling(sampling)
    chat, guesses = _open(options, sampling)
    print(COMMANDS, file=sys.stderr)
    for number, line in enumerate(_lines()):
        if line == "/quit":
            return
        if line == "/forget":
            chat.forget()
        elif line.startswith("/"):
            print(f"there is no {line}. {COMMANDS}", file=sys.stderr)
        elif line:
            _answer(chat, line, options.max_tokens, options.seed + number, guesses)


def _open(options: ChatOptions, sampling: "Sampling") -> tuple[Any, "Pace | None"]:
    """The conversation, and how guessing goes where there is any."""
    if options.model.startswith(("http://", "https://")):
        return _served(options, sampling), None
    if Path(options.model).is_file():
        return _on_device(options, sampling)
    if not Path(options.model).is_dir():
        raise UserError(
            f"{options.model} is not there.",
            "one talks to a run folder, a device file, or the address of a server.",
            "pomona chat runs/mine",
        )
    return _of_run(options, sampling), None


def _served(options: ChatOptions, sampling: "Sampling") -> Any:
    refuse(
        options,
        ("adapter", "turn", "context", "threads", "instruction_set", "speculate"),
        "a server",
        "the server decides that.",
    )
    from pomona.api.client import ServedChat

    key = os.environ.get("POMONA_API_KEY", "")
    chat = ServedChat(options.model, options.name, key, options.system, sampling)
    print(f"{chat.model} at {chat.url}", file=sys.stderr)
    return chat


def _on_device(options: ChatOptions, sampling: "Sampling") -> tuple[Any, "Pace"]:
    refuse(options, ("name",), "a device file", "this is for a server.")
    from pomona.device.speculate import Pace, generate
    from pomona.infer.chat import Chat

    model, pace = open_model(Path(options.model)), Pace()
    adapter = model.adapter(options.adapter) if options.adapter else None
    session = model.open(options.context, options.threads, options.instruction_set, adapter)
    drafter = drafter_of(options.speculate, model, options.context, options.threads, sampling)
    speak = None
    if drafter is not None:
        speak = lambda rest, most, sampling, seed: generate(session, rest, drafter, most, sampling, seed, pace)
    print(f"{options.model}, {session.engine.threads} threads, {session.engine.instruction_set}", file=sys.stderr)
    return Chat(model.tokenizer, session, options.turn, options.system, sampling, speak), pace


def _of_run(options: ChatOptions, sampling: "Sampling") -> Any:
    rule = "this is for a server or a device file."
    refuse(options, ("name", "threads", "instruction_set", "speculate"), "a run folder", rule)
    import jax

    from pomona.infer.chat import Chat
    from pomona.infer.session import SlotSession
    from pomona.infer.slots import Setting, Slots
    from pomona.model.config import resolve
    from pomona.train.load import load_adapted

    adapters = [options.adapter] if options.adapter else []
    model = load_adapted(Path(options.model), None, adapters)
    execution = resolve(model.run.execution, jax.default_backend())
    setting = Setting(model.run.architecture, execution, model.stage.rope_base)
    session = SlotSession(Slots(model.params, setting, 1, options.context), 0 if adapters else -1)
    print(f"{options.model}, step {model.step}, {jax.devices()[0].device_kind}", file=sys.stderr)
    return Chat(model.tokenizer, session, options.turn, options.system, sampling)


def _answer(chat, line: str, max_tokens: int, seed: int, pace: "Pace | None") -> None:
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
    if pace is not None and pace.guessed:
        told += f"; {pace.right} of {pace.guessed} guesses were right so far"
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
