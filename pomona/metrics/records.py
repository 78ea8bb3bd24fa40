"""`metrics.jsonl`: one JSON object a line, one line per recorded step, each step once whatever happened to the run."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pomona.core.files import write_bytes
from pomona.core.run_folder import append_line

NON_FINITE = "non_finite"
"""The key under which a record names its values that JSON cannot hold."""


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Appends one record.

    NaN and infinities become null, and `non_finite` says which was what: `{"loss": null, "non_finite":
    {"loss": "nan"}}`.

    Args:
        record: numbers (array scalars too), strings, booleans and None; `step` is required.

    Raises:
        UserError: the disk is full.
    """
    append_line(path, to_json(record))


def read_records(path: Path) -> list[dict[str, Any]]:
    """All whole records, oldest first; an absent file has none. A line cut short by a kill is not a record."""
    return [record for _, record in _lines(path)]


def forget_after(path: Path, step: int) -> int:
    """Drops the records of steps beyond `step`, which a run resumed at `step` is about to do again.

    The file is replaced at once or not at all, and is left alone where nothing has to go.

    Returns:
        How many records were dropped.

    Raises:
        UserError: the disk is full.
    """
    records = list(_lines(path))
    kept = [line for line, record in records if record["step"] <= step]
    content = b"".join(kept)
    if path.exists() and content != path.read_bytes():
        write_bytes(path, content)
    return len(records) - len(kept)


def to_json(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with plain Python values, all of which JSON can hold."""
    assert "step" in record, record
    plain = {name: value.item() if hasattr(value, "item") else value for name, value in record.items()}
    wrong = {name: str(value) for name, value in plain.items() if _is_non_finite(value)}
    if wrong:
        plain |= dict.fromkeys(wrong) | {NON_FINITE: wrong}
    return plain


def _is_non_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    if not path.exists():
        return []
    found = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            record = json.loads(line)
        except (
            ValueError
        ):  # cut short; `append_line` writes whole lines, so only a crash of the machine does this
            continue
        if line.endswith(b"\n") and isinstance(record, dict) and isinstance(record.get("step"), int):
            found.append((line, record))
    return found
