"""`pomona import hf FOLDER --run RUN`, `pomona import peft FOLDER --base RUN --adapter NEW`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pomona.cli.parse import parse
from pomona.core.errors import UserError
from pomona.core.files import check_new


@dataclasses.dataclass(frozen=True)
class Import:
    """Reads a model of another format into a run folder, or an adapter into a bundle."""

    format: Annotated[Literal["hf", "peft"], tyro.conf.Positional]
    """hf: a Qwen3 folder with a SentencePiece tokenizer, such as `pomona export` writes. peft: a LoRA that the peft
    package has trained on the hf export of a run."""
    folder: Annotated[Path, tyro.conf.Positional]
    """What to read."""
    run: Path | None = None
    """hf: the run folder to write; runs/FOLDER by default."""
    base: Path | None = None
    """peft: the run whose hf export it was trained on."""
    adapter: Path | None = None
    """peft: the bundle to write; FOLDER-adapter by default."""


def run(arguments: list[str]) -> None:
    """Writes the run folder, or the bundle, and says where."""
    options = parse(Import, arguments, "import")
    if options.format == "peft":
        return _peft(options)
    if options.base or options.adapter:
        given = "--base" if options.base else "--adapter"
        raise UserError(f"{given} with import hf.", "this is for import peft.", "leave it out.")
    target = options.run or Path("runs") / options.folder.name
    check_new(target)
    from pomona.export.hf import import_hf

    import_hf(options.folder, target)
    print(f'written to {target}\nnext: pomona generate {target} "def main():"')


def _peft(options: Import) -> None:
    if options.base is None or options.run:
        raise UserError(
            "--run with import peft." if options.run else "import peft without --base.",
            "an adapter becomes a bundle for the run that it was trained on.",
            f"pomona import peft {options.folder} --base RUN --adapter NEW",
        )
    target = options.adapter or options.folder.with_name(options.folder.name + "-adapter")
    from pomona.export.peft import import_peft

    import_peft(options.folder, options.base, target)
    print(f'written to {target}\nnext: pomona generate {options.base} "def main():" --adapter {target}')
