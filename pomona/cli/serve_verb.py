"""`pomona serve RUN|FILE`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pomona.cli.parse import parse, refuse
from pomona.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Serve:
    """Serves a model to many users: OpenAI's interface, and a chat page."""

    model: Annotated[Path, tyro.conf.Positional]
    """A run folder, or a device file (`pomona export RUN --format pomona`)."""
    adapter: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """NAME=FOLDER: an adapter of this model, which requests ask for as MODEL:NAME; may be given several times."""
    name: str = ""
    """What the model is called; by default as its folder or file."""
    host: str = "127.0.0.1"
    """The address to listen at; 0.0.0.0 lets other machines in."""
    port: int = 8000
    """0 takes any that is free."""
    api_keys: Path | None = None
    """A file of who may ask, a line a key: a name, the key, and optionally a priority."""
    chat_template: Path | None = None
    """How a conversation reads, in Jinja; a plain form with names and colons by default."""
    template_stop: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """With --chat-template: a text that never belongs to an answer; may be given several times."""
    slots: int = 8
    """Sequences that are computed at a time."""
    context: int = 0
    """Tokens of a prompt and its answer together; 0 for 4096, or less where the model was trained on less."""
    waiting: int = 64
    """Sequences that may wait for a slot; whoever comes then is asked to come again."""
    step: int | None = None
    """Of a run folder: the checkpoint to use; the newest by default."""
    cache: Literal["auto", "int8"] = "auto"
    """Of a run folder: the type of the keys and values that are kept; auto: that of the computation."""
    tensor_parallel: int = 1
    """Of a run folder: devices that share every layer."""
    draws: int = 0
    """Of a run folder: tokens of each sequence in one dispatch; 0 for 8."""
    chunk: int = 0
    """Tokens of prompts between two steps of the others; 0 for what suits the engine."""
    threads: int | None = None
    """Of a device file: the threads that compute; all that there are by default."""
    instruction_set: str = ""
    """Of a device file: as `pomona generate` has it."""
    speculate: str = "none"
    """lookup guesses what came before in a text; a device file guesses what this smaller model says. Several guesses
    are checked at once, and what is said is the same with and without them."""
    private: bool = False
    """Nothing computed for one request serves another: how soon an answer begins then says nothing of other prompts."""


def run(arguments: list[str]) -> None:
    """Serves until it is ended."""
    options = parse(Serve, arguments, "serve")
    try:
        import llguidance  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"{error.name} is not installed.", "a server needs a few more packages.", "pip install 'pomona[serve]'"
        ) from error
    from pomona.api.keys import Keys, read_keys
    from pomona.api.model import name_of, tokenizer_of
    from pomona.api.server import Listening, run_server
    from pomona.api.template import Template, read_template
    from pomona.serve.messages import Start

    _check(options)
    tokenizer, trained = tokenizer_of(options.model)
    start = Start(
        model=str(options.model),
        adapters=adapters_of(options.adapter),
        step=options.step,
        slots=options.slots,
        context=options.context or min(4096, trained),
        chunk=options.chunk,
        draws=options.draws,
        cache=options.cache,
        tensor=options.tensor_parallel,
        threads=options.threads,
        instruction_set=options.instruction_set,
        keep_prefixes=not options.private,
        speculate=options.speculate,
    )
    template = read_template(options.chat_template, options.template_stop) if options.chat_template else Template()
    keys = read_keys(options.api_keys) if options.api_keys else Keys()
    name = options.name or name_of(options.model)
    run_server(Listening(start, name, tokenizer, template, keys, options.host, options.port, options.waiting))


def _check(options: Serve) -> None:
    if options.model.is_file():
        refuse(options, ("step", "cache", "tensor_parallel", "draws"), "a device file", "this is for a run folder.")
    else:
        refuse(options, ("threads", "instruction_set"), "a run folder", "this is for a device file.")
    default = {field.name: field.default for field in dataclasses.fields(Serve)}
    least = {"slots": 1, "tensor_parallel": 1, "context": 0, "waiting": 0, "draws": 0, "chunk": 0}
    for name, number in least.items():
        if getattr(options, name) < number:
            option = f"--{name.replace('_', '-')}"
            raise UserError(
                f"{option} {getattr(options, name)}.", f"it is {number} at least.", f"{option} {default[name]}"
            )
    if options.template_stop and not options.chat_template:
        raise UserError(
            "--template-stop without a template.", "the plain form has stops of its own.", "--chat-template FILE"
        )
    if ":" in options.name:
        raise UserError(f"--name {options.name}.", "a colon separates a model from its adapter.", "a name without one")


def adapters_of(given: tuple[str, ...]) -> dict[str, str]:
    """The folders of adapters by name, from NAME=FOLDER.

    Raises:
        UserError: one is not of that form, or a name comes twice.
    """
    found: dict[str, str] = {}
    for each in given:
        name, equals, path = each.partition("=")
        if not (name and equals and path) or name in found or ":" in name:
            raise UserError(
                f"--adapter {each}.",
                "an adapter is NAME=FOLDER, each with a name of its own.",
                "--adapter task=task-adapter",
            )
        found[name] = path
    return found
