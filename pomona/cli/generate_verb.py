"""`pomona generate RUN|FILE "prompt" ...`."""

import dataclasses
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from pomona.cli.parse import parse, print_stdout, refuse
from pomona.core.errors import UserError
from pomona.core.run_folder import RunFolder, append_line


@dataclasses.dataclass(frozen=True)
class Generate:
    """Lets a trained model continue one or more prompts."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder, or a device file (`pomona export --format pomona`), which needs no JAX."""
    prompts: Annotated[tuple[str, ...], tyro.conf.Positional] = ("",)
    """What to continue; several prompts make one batch."""
    max_tokens: int = 100
    """Tokens to add at most; a document's end stops earlier."""
    temperature: float = 0.8
    """0 always takes the most likely token."""
    top_k: int = 0
    """Only the k most likely tokens; 0 for all."""
    top_p: float = 1.0
    """Only the most likely tokens that together have this probability."""
    stop: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A text that ends a continuation and is left out; may be given several times."""
    seed: int = 0
    """Another seed draws other tokens."""
    step: int | None = None
    """The checkpoint to use; the newest by default."""
    adapter: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction] = ()
    """An adapter to generate with, in place of the run's own; may be given several times: once for each prompt."""
    cache: Literal["auto", "int8"] = "auto"
    """The type of the keys and values that are kept; auto: that of the computation."""
    threads: int | None = None
    """Of a device file: the threads that compute; all that there are by default."""
    instruction_set: str = ""
    """Of a device file: avx512, avxvnni, avx2, neon, portable or numpy; the best that the processor has by default."""
    speculate: str = "none"
    """Of a device file: lookup guesses what came before in the text; a device file guesses what this smaller model
    says. The text has the same distribution, and with temperature 0 is the same."""
    keep: bool = False
    """Also keep what is said, and how fast, in the run folder's samples.jsonl: its card shows it."""


def run(arguments: list[str]) -> None:
    """Prints the prompts with their continuations."""
    options = parse(Generate, arguments, "generate")
    if options.run.is_file():
        return _on_device(options)
    refuse(options, ("threads", "instruction_set", "speculate"), "a run folder", "this is for a device file.")
    import jax

    from pomona.data.stream import until_stop
    from pomona.data.tokenizer import BEGIN, END
    from pomona.infer.generate import generate
    from pomona.model.config import resolve
    from pomona.model.sampling import Sampling
    from pomona.train.load import load_adapted

    folders = list(dict.fromkeys(options.adapter))
    model = load_adapted(options.run, options.step, folders)
    chosen = [folders.index(folder) for folder in _each_adapter(options) if folder]
    speak = lambda: generate(
        model.params,
        [[BEGIN, *model.tokenizer.encode(prompt)] for prompt in options.prompts],
        model.run.architecture,
        resolve(model.run.execution, jax.default_backend()),
        rope_base=model.stage.rope_base,
        max_tokens=options.max_tokens,
        sampling=Sampling(options.temperature, options.top_k, options.top_p),
        stop_tokens=(END,),
        seed=options.seed,
        cache_dtype="int8" if options.cache == "int8" else None,
        adapters=chosen,
    )
    continuations, texts = speak(), []
    for number, (prompt, tokens) in enumerate(zip(options.prompts, continuations)):
        text = until_stop(model.tokenizer.decode(tokens), options.stop)
        texts.append(text)
        print_stdout(("\n---\n" if number else "") + prompt + text + "\n")
    if options.keep:
        began = time.perf_counter()
        speak()  # the same again, since the first call compiled
        rate = sum(map(len, continuations)) / (time.perf_counter() - began)
        _keep(options, model.step, texts, rate, jax.devices()[0].device_kind)


def _on_device(options: Generate) -> None:
    """Prints the prompts with their continuations as the device runtime computes them, piece by piece."""
    refuse(options, ("step", "cache", "keep"), "a device file", "this is for a run folder.")
    from pomona.cli.device_options import drafter_of, open_model
    from pomona.model.sampling import Sampling

    model = open_model(options.run)
    sampling = Sampling(options.temperature, options.top_k, options.top_p)
    read = {path: model.adapter(path) for path in _each_adapter(options) if path}
    for number, (prompt, path) in enumerate(zip(options.prompts, _each_adapter(options))):
        print_stdout(("\n---\n" if number else "") + prompt)
        context = len(model.encode(prompt)) + options.max_tokens
        asked: dict[str, Any] = {"threads": options.threads, "instruction_set": options.instruction_set}
        asked |= {"adapter": read[path] if path else None, "context": context}
        drafter = drafter_of(options.speculate, model, context, options.threads, sampling)
        seed = options.seed + number
        for piece in model.stream(prompt, options.max_tokens, sampling, seed, options.stop, drafter, **asked):
            print_stdout(piece)
        print_stdout("\n")


def _each_adapter(options: Generate) -> tuple[Path | None, ...]:
    """One for each prompt.

    Raises:
        UserError: neither none, nor one, nor as many as prompts.
    """
    if not options.adapter:
        return (None,) * len(options.prompts)
    if len(options.adapter) not in (1, len(options.prompts)):
        raise UserError(
            f"{len(options.adapter)} adapters for {len(options.prompts)} prompts.",
            "one adapter serves all prompts, or each prompt has its own, in their order.",
            "--adapter FOLDER once, or once for each prompt.",
        )
    return options.adapter * (len(options.prompts) if len(options.adapter) == 1 else 1)


def _keep(options: Generate, step: int, texts: list[str], tokens_per_second: float, device: str) -> None:
    """Adds a line to samples.jsonl for every prompt; tokens per second are those of all prompts together."""
    for prompt, text in zip(options.prompts, texts):
        about = {"step": step, "prompt": prompt, "text": text, "prompts": len(texts)}
        asked = {name: getattr(options, name) for name in ("temperature", "top_k", "top_p", "seed", "max_tokens")}
        speed = {"tokens_per_second": tokens_per_second, "device": device, "time_seconds": round(time.time(), 3)}
        append_line(RunFolder(options.run).samples, about | asked | speed)
