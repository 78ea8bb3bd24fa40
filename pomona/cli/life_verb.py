"""`pomona life RECIPE [--run FOLDER] [--from CHAPTER] [--dry-run]`."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from pomona.card.family import LIFE_FILE
from pomona.cli.parse import parse
from pomona.core.config import did_you_mean
from pomona.core.errors import UserError
from pomona.core.run_folder import RunFolder
from pomona.launch.turns import Turn, left, take_turns
from pomona.recipes.life import turns
from pomona.recipes.registry import life

PROGRAM = (sys.executable, "-m", "pomona.cli.main")


@dataclasses.dataclass(frozen=True)
class LifeOptions:
    """Carries a pair of models through every stage of its life: the commands of its recipe, one after the other. What
    is done is passed over, so the same command goes on where it was stopped."""

    recipe: Annotated[str, tyro.conf.Positional]
    """Whose life; `pomona recipes` lists them."""
    run: Path | None = None
    """The folder that the run folders are made in; lives/RECIPE by default."""
    from_: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """The chapter to begin with; the earlier ones have to be there. The first that is left by default."""
    dry_run: bool = False
    """Only say the commands."""


def run(arguments: list[str]) -> None:
    """Takes the turns that are left; leaves with the exit code of the one that fails."""
    options = parse(LifeOptions, arguments, "life")
    chosen = life(options.recipe)
    folder = options.run or Path("lives") / chosen.name
    _check_folder(folder)
    ledger = folder / LIFE_FILE
    asked = _from(turns(chosen, folder), options.from_)
    if options.dry_run:
        waiting = left(asked, ledger)
        for turn in asked:
            print(turn.typed if turn in waiting else f"# done: {turn.typed}")
        return
    failed = take_turns(asked, ledger, PROGRAM, lambda text: print(text, flush=True))
    if failed:
        turn, code = failed
        print(
            f"pomona: {turn.name} ended with exit code {code}; what it said stands above.\n"
            f"  rule: the chapters before it are done and stay.\n"
            f"  try:  the same command again goes on there; alone it is: {turn.typed}",
            file=sys.stderr,
        )
        sys.exit(code)
    print(f"\nserver model: {folder / chosen.server}", end="")
    print(f"\ndevice model: {folder / chosen.device}" if chosen.device else "")
    print(f"the card of this life: {folder / 'card.html'}")


def _from(planned: list[Turn], name: str | None) -> list[Turn]:
    """The turns from a chapter on.

    Raises:
        UserError: there is no such chapter.
    """
    names = [turn.name for turn in planned]
    if name is not None and name not in names:
        raise UserError(
            f"this life has no chapter {name!r}.",
            f"its chapters are {', '.join(dict.fromkeys(names))}.",
            did_you_mean(name, set(names)),
        )
    return planned[names.index(name) :] if name else planned


def _check_folder(folder: Path) -> None:
    if RunFolder(folder).config.exists() or (folder.exists() and not folder.is_dir()):
        raise UserError(
            f"{folder} is {'a run folder' if folder.is_dir() else 'no folder'}.",
            "a life makes run folders inside a folder of its own.",
            f"--run {folder}-life",
        )
