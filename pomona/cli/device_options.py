"""What the verbs that compute a device file share."""

from pathlib import Path
from typing import TYPE_CHECKING

from pomona.core.errors import UserError

if TYPE_CHECKING:
    from pomona.device.engine import DeviceModel
    from pomona.device.speculate import Drafter
    from pomona.model.sampling import Sampling


def open_model(path: Path) -> "DeviceModel":
    """Opens a device file and reads all of it against its checksums.

    Raises:
        UserError: it is a run folder, not there, or damaged.
    """
    from pomona.device.engine import load

    if path.is_dir():
        raise UserError(
            f"{path} is a folder.",
            "this is for a device file.",
            f"pomona export {path} --format pomona --output {path.name}.pom",
        )
    return load(path, check=True)


def drafter_of(
    speculate: str, model: "DeviceModel", context: int, threads: int | None, sampling: "Sampling"
) -> "Drafter | None":
    """What guesses tokens: nothing for `none`, the text so far for `lookup`, or the smaller model of a file.

    Raises:
        UserError: the smaller model has another tokenizer, or cannot be opened.
    """
    from pomona.device.engine import load_drafter
    from pomona.device.speculate import DraftModel, LookUp

    if speculate == "none":
        return None
    if speculate == "lookup":
        return LookUp()
    smaller = load_drafter(speculate, model.tokenizer)
    return DraftModel(smaller.open(context, threads), sampling)
