"""TensorBoard event files, on request: every number of a record under its own name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pomona.core.errors import UserError


class TensorBoard:
    """A writer of event files in `folder`.

    Args:
        first_step: the first step that will be written; what an earlier process wrote from there on is
        hidden.

    Raises:
        UserError: the library is not installed.
    """

    def __init__(self, folder: Path, first_step: int = 1):
        try:
            # Small, and without TensorFlow or PyTorch, which the writers of the same name in those need.
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise UserError(
                "metrics.tensorboard is on, but tensorboardX is not installed.",
                "TensorBoard files need the extra `tensorboard`; metrics.jsonl needs nothing.",
                "pip install 'pomona[tensorboard]', or leave the setting off.",
            ) from error
        self._writer = SummaryWriter(str(folder), purge_step=first_step, flush_secs=30)

    def write(self, record: Mapping[str, Any]) -> None:
        """Adds the numbers of one record at its step."""
        for name, value in record.items():
            value = value.item() if hasattr(value, "item") else value
            if name != "step" and isinstance(value, (int, float)):
                self._writer.add_scalar(name, value, int(record["step"]), display_name=name)

    def close(self) -> None:
        """Flushes and closes the files."""
        self._writer.close()
