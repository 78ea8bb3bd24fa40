"""TensorBoard files, on request, without TensorFlow or PyTorch."""

from pathlib import Path
from typing import Any

from pomona.core.errors import UserError
from pomona.metrics.records import Record


def open_writer(folder: Path, first_step: int = 1) -> Any:
    """A tensorboardX writer; `close` it at the end.

    Args:
        first_step: the first step it will be given. TensorBoard hides what an earlier, killed process wrote from
            there on.

    Raises:
        UserError: tensorboardX is not installed.
    """
    check_installed()
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(folder), purge_step=first_step, flush_secs=30)


def check_installed() -> None:
    """Raises `UserError` where tensorboardX is missing, to be asked before hours of work."""
    try:
        import tensorboardX  # noqa: F401
    except ImportError as error:
        raise UserError(
            "TensorBoard files were asked for, but tensorboardX is not installed.",
            "metrics.jsonl needs nothing; TensorBoard files need the extra `tensorboard`.",
            "pip install 'pomona[tensorboard]', or leave --metrics.tensorboard out",
        ) from error


def write(writer: Any, record: Record) -> None:
    """Adds every number of a record under its own name."""
    for name, value in record.items():
        if name != "step" and isinstance(value, (int, float)):
            writer.add_scalar(name, value, record["step"], display_name=name)
