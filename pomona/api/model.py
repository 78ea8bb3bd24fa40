"""What is known of a model before its engine runs."""

from pathlib import Path

from pomona.data.tokenizer import Tokenizer, load_tokenizer


def name_of(path: Path) -> str:
    """What a model is called where nothing else is said."""
    return path.stem if path.is_file() else path.resolve().name


def tokenizer_of(path: Path) -> tuple[Tokenizer, int]:
    """The tokenizer of a run folder or a device file, and the longest sequence that the model was trained on.

    Raises:
        UserError: it is neither.
    """
    if path.is_file():
        from pomona.device.engine import load

        return load(path).tokenizer, 4096
    from pomona.core.run_folder import RunFolder, read_config
    from pomona.train.config import Run

    config = read_config(RunFolder(path), Run)
    return load_tokenizer(RunFolder(path).tokenizer), max(stage.sequence_length for stage in config.stages)
