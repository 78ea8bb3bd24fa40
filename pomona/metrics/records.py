"""`metrics.jsonl`: one line per logged step, each step once, whatever was killed and resumed."""

import json
import math
from pathlib import Path
from typing import Any

from pomona.core.files import write_text
from pomona.core.run_folder import append_line

Record = dict[str, Any]


def append_record(path: Path, record: Record) -> None:
    """Adds a line. JSON has no NaN and no infinity: they are written as null."""
    plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
    append_line(path, plain)


def read_records(path: Path) -> list[Record]:
    """All lines; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def drop_after(path: Path, step: int) -> None:
    """Removes the lines of steps after `step`, atomically: a resumed run makes those steps again."""
    records = read_records(path)
    kept = [record for record in records if record.get("step", 0) <= step]
    if path.exists():
        write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
