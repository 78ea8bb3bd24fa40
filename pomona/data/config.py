"""What text a model reads and how it becomes records. No JAX, no NumPy."""

import dataclasses

from pomona.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Source:
    """One collection of documents."""

    name: str
    address: str
    """`stdlib` (Python's own standard library), a file, a folder, a glob, an fsspec address, or hf:DATASET[:SPLIT].
    Files: .jsonl and .parquet (one document a row), anything else is text (one document a file); also .gz .xz .zst."""
    text_field: str = "text"
    """The field of a JSONL or Parquet row that holds the text. `prompt:response` names two: the first is given, and
    only the second is learned."""
    weight: float = 1.0
    """Share of the records, relative to the other sources."""


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """SentencePiece BPE as AFM used it (AFM report, section 3.1)."""

    vocab_size: int = 4096
    path: str | None = None
    """An existing tokenizer's folder to use instead of training one."""
    sample_bytes: int = 50_000_000
    """Text the training reads at most."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The corpus of a run."""

    sources: tuple[Source, ...] = (Source("stdlib", "stdlib"),)
    tokenizer: TokenizerConfig = TokenizerConfig()
    heldout_fraction: float = 0.02
    """Share of the documents kept for evaluation, chosen by content."""
    cache: str = "runs/cache"
    """Where token files are kept, to be shared by runs."""
    workers: int = 0
    """Processes that tokenize; 0 for one per core."""


@dataclasses.dataclass(frozen=True)
class Weight:
    """A source's share of the records in one stage, in place of its own weight."""

    source: str
    weight: float


def check_data(data: DataConfig) -> None:
    """Raises `UserError` for a corpus description that cannot be meant."""
    names = [source.name for source in data.sources]
    if not names or len(set(names)) < len(names) or any(not n or "/" in n for n in names):
        raise UserError(
            f"the sources are named {names}.",
            "there is at least one source, and each has a name of its own without a slash.",
            "rename them in the recipe.",
        )
    if any(source.weight < 0 for source in data.sources) or not any(s.weight > 0 for s in data.sources):
        raise UserError(
            "the weights of the sources are " + ", ".join(f"{s.name} {s.weight}" for s in data.sources) + ".",
            "no weight is negative, and one at least is positive.",
            "--data.sources.0.weight 1",
        )
    if not 0 < data.heldout_fraction < 1:
        raise UserError(
            f"data.heldout_fraction is {data.heldout_fraction}.",
            "it is a share of the documents, above 0 and below 1.",
            "--data.heldout-fraction 0.02",
        )
