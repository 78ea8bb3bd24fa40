"""`metrics.jsonl`: one line per recorded step, each step once, whatever was killed and resumed."""

import json
import math
from pathlib import Path
from typing import Any

from pomona.core.files import write_text
from pomona.core.run_folder import append_line

Record = dict[str, Any]


def append_record(path: Path, record: Record) -> None:
    """Adds a line.

    JSON has no NaN and no infinity: they become null, and the line says which was what, as in
    `{"step": 7, "loss": null, "non_finite": {"loss": "nan"}}`.

    Raises:
        UserError: the disk is full.
    """
    wrong = {k: str(v) for k, v in record.items() if isinstance(v, float) and not math.isfinite(v)}
    append_line(path, {**record, **dict.fromkeys(wrong), **({"non_finite": wrong} if wrong else {})})


def read_records(path: Path) -> list[Record]:
    """All whole lines, oldest first; one that a crash cut short is left out, and an absent file has none."""
    if not path.exists():
        return []
    records = []
    for line in path.read_bytes().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def drop_after(path: Path, step: int) -> None:
    """Removes the lines of steps after `step`, atomically: a resumed run makes those steps again.

    Raises:
        UserError: the disk is full; the file is as it was.
    """
    kept = [record for record in read_records(path) if record["step"] <= step]
    if path.exists():
        write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
