"""A model's life as data: which stage begins at whose model, and the commands that this comes to. No JAX.

A life is a list of chapters. Each is one command that reads the run folders of earlier chapters and writes its own,
FOLDER/NAME, so each can be typed alone, again, or on another machine.
"""

import dataclasses
from pathlib import Path

from pomona.core.errors import UserError
from pomona.launch.turns import Turn

SAMPLE_TOKENS = 80
SAMPLES, CARD = "samples", "card"  # what the turns after the chapters are called


@dataclasses.dataclass(frozen=True)
class Train:
    """Training by the next token: from random weights, or from an earlier chapter's model."""

    name: str
    recipe: str
    of: str | None = None
    """The chapter whose model it begins with."""
    settings: tuple[str, ...] = ()
    """Typed at the end, as in `pomona train RECIPE`."""
    budget_seconds: float | None = None
    """What the chapter may take on the life's own hardware: the plan that a card compares with."""

    def words(self, folder: Path) -> list[str]:
        return ["train", self.recipe, *(["--from", str(folder / self.of)] if self.of else [])]


@dataclasses.dataclass(frozen=True)
class Prune:
    """Feed-forward units learned away, down to `ffn` of them in every layer."""

    name: str
    of: str
    ffn: int
    settings: tuple[str, ...] = ()
    budget_seconds: float | None = None

    def words(self, folder: Path) -> list[str]:
        return ["prune", str(folder / self.of), "--ffn", str(self.ffn)]


@dataclasses.dataclass(frozen=True)
class Distill:
    """Training by what a teacher would have said next."""

    name: str
    of: str
    teacher: str
    settings: tuple[str, ...] = ()
    budget_seconds: float | None = None

    def words(self, folder: Path) -> list[str]:
        return ["distill", str(folder / self.of), "--teacher", str(folder / self.teacher)]


@dataclasses.dataclass(frozen=True)
class Palettize:
    """Weights out of tables, at so many bits each on average."""

    name: str
    of: str
    bits: float
    settings: tuple[str, ...] = ()
    budget_seconds: float | None = None

    def words(self, folder: Path) -> list[str]:
        return ["palettize", str(folder / self.of), "--bits", f"{self.bits:g}"]


@dataclasses.dataclass(frozen=True)
class Recover:
    """An adapter that wins back what palettes lost."""

    name: str
    of: str
    rank: int = 16
    settings: tuple[str, ...] = ()
    budget_seconds: float | None = None

    def words(self, folder: Path) -> list[str]:
        return ["recover", str(folder / self.of), "--rank", str(self.rank)]


Chapter = Train | Prune | Distill | Palettize | Recover


@dataclasses.dataclass(frozen=True)
class Life:
    """A server model, its device model, or both, from the first weights to the card."""

    name: str
    what: str
    """What it is, in a line."""
    chapters: tuple[Chapter, ...]
    server: str
    """The chapter whose model serves from a datacentre."""
    device: str | None
    """The chapter whose model goes to a device; None where none does."""
    prompt: str = ""
    """What every model of the life is asked to continue."""


def turns(life: Life, folder: Path) -> list[Turn]:
    """Every command in its order: the chapters, then what each model says, then the card.

    Raises:
        UserError: the chapters do not fit together.
    """
    check_life(life)
    found = []
    for chapter in life.chapters:
        run = folder / chapter.name
        words = (*chapter.words(folder), "--run", str(run), *chapter.settings)
        reads = tuple(folder / name for name in read_by(chapter))
        found.append(Turn(chapter.name, words, run, reads, chapter.budget_seconds))
    for chapter in life.chapters:
        run = folder / chapter.name
        words = ("generate", str(run), life.prompt, "--max-tokens", str(SAMPLE_TOKENS), "--keep")
        found.append(Turn(SAMPLES, words, run, (run,)))
    last = folder / (life.device or life.server)
    words = ("card", str(last), "--output", str(folder / "card.html"))
    return [*found, Turn(CARD, words, last, (last,), always=True)]


def read_by(chapter: Chapter) -> list[str]:
    """The chapters whose run folders a chapter reads."""
    return [name for name in (chapter.of, getattr(chapter, "teacher", None)) if name]


def check_life(life: Life) -> None:
    """Raises `UserError` where two chapters share a name, or one reads what no chapter before it has written."""
    written: list[str] = []
    for chapter in life.chapters:
        unknown = [name for name in read_by(chapter) if name not in written]
        if chapter.name in (*written, SAMPLES, CARD) or unknown:
            raise UserError(
                f"the chapter {chapter.name!r} of {life.name} "
                + (f"reads {unknown[0]!r}, which is not written yet." if unknown else "has a name that is taken."),
                "each chapter has a name of its own and reads what an earlier one has written.",
                f"look at the recipe's file; written before it: {', '.join(written) or '(nothing)'}.",
            )
        written.append(chapter.name)
    ends = [each for each in (life.server, life.device) if each and each not in written]
    if ends:
        raise UserError(
            f"{life.name} ends with {ends[0]!r}, which it has no chapter for.",
            "a life's two models are chapters of it.",
            f"one of: {', '.join(written)}.",
        )
