"""The run folder: what a stage of a model's life reads and writes.

config.json     the whole resolved configuration
events.jsonl    what happened: start, resume, checkpoint, fallback, rollback, faults, preemption, end
metrics.jsonl   one record per logged step
samples.jsonl   what the model said when `pomona generate --keep` asked it
tokenizer/      the tokenizer the model was trained with
checkpoints/    one folder per saved step
palettes/       a palettized model, instead of checkpoints
logs/           what the processes of `pomona launch local` print, but for the first one
"""

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

from pomona.core.config import C, differences, from_json, to_json
from pomona.core.errors import UserError
from pomona.core.files import disk_errors, read_json, write_json


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """The paths of one run. Making the object touches no disk."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        return self.path / "samples.jsonl"

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def palettes(self) -> Path:
        return self.path / "palettes"

    @property
    def logs(self) -> Path:
        return self.path / "logs"


@dataclasses.dataclass(frozen=True)
class Origin:
    """A checkpoint of another run, from which a run begins."""

    run: str
    """Its run folder, as seen from the folder in which commands are typed."""
    step: int
    fingerprint: str
    """Of the checkpoint's contents, so that another model in its place is noticed."""


def claim(folder: RunFolder, config: Any) -> bool:
    """Makes the run folder for `config`, or recognises it as the one to resume. True means resume.

    Raises:
        UserError: the folder belongs to another configuration, or is no run folder and not empty.
    """
    if folder.config.exists():
        changes = differences(read_config(folder, type(config)), config)
        if changes:
            shown = "; ".join(changes[:3]) + (f"; and {len(changes) - 3} more" if len(changes) > 3 else "")
            raise UserError(
                f"{folder.path} holds a run with another configuration ({shown}).",
                "a run is resumed with exactly the configuration it was started with.",
                "repeat the original command, or choose a new folder with --run.",
            )
        return True
    # A launcher opens its logs before the first process knows whether there is a run at all.
    if folder.path.exists() and (not folder.path.is_dir() or any(p != folder.logs for p in folder.path.iterdir())):
        raise UserError(
            f"{folder.path} exists and is not a run folder (it has no config.json).",
            "a run starts in a new or empty folder.",
            "choose another folder with --run.",
        )
    write_json(folder.config, to_json(config))
    return False


def read_config(folder: RunFolder, kind: type[C]) -> C:
    """The configuration of an existing run.

    Raises:
        UserError: there is no such run, or its config was written by an incompatible version.
    """
    if not folder.config.exists():
        raise UserError(
            f"{folder.path} is not a run folder (it has no config.json).",
            "this command reads a folder that `pomona train` wrote.",
            "pomona train tiny --run " + str(folder.path),
        )
    return from_json(kind, read_json(folder.config))


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Appends one JSON line in a single write, so that a kill leaves whole lines behind."""
    line = json.dumps(record, allow_nan=False) + "\n"
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)


def record_event(folder: RunFolder, event: str, **details: Any) -> None:
    """Adds one line to `events.jsonl`: the event's name, the Unix time in seconds, and the details."""
    append_line(folder.events, {"event": event, "time_seconds": round(time.time(), 3), **details})
