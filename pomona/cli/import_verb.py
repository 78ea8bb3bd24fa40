"""`pomona import hf FOLDER --run RUN`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pomona.cli.parse import parse
from pomona.core.files import check_new


@dataclasses.dataclass(frozen=True)
class Import:
    """Reads a model of another format into a run folder."""

    format: Annotated[Literal["hf"], tyro.conf.Positional]
    """hf: a Qwen3 folder with a SentencePiece tokenizer, such as `pomona export` writes."""
    folder: Annotated[Path, tyro.conf.Positional]
    """What to read."""
    run: Path | None = None
    """The run folder to write; runs/FOLDER by default."""


def run(arguments: list[str]) -> None:
    """Writes the run folder and says where."""
    options = parse(Import, arguments, "import")
    target = options.run or Path("runs") / options.folder.name
    check_new(target)
    from pomona.export.hf import import_hf

    import_hf(options.folder, target)
    print(f'written to {target}\nnext: pomona generate {target} "def main():"')
