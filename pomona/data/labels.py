"""A teacher's labels: its most likely token for every prediction of the training documents, computed once and kept.

    <corpus>/labels/<teacher>-<T>/about.json            what the labels are of
    <corpus>/labels/<teacher>-<T>/<source>/00012.labels one label for every id of the source's 00012.tokens
    <corpus>/labels/<teacher>-<T>/<source>/00012.json   their CRC-32; written last, it says that the shard is done

`<corpus>` is the folder of the token files, whose name is the corpus's fingerprint, `<teacher>` the fingerprint of the
teacher's checkpoint, T the number of predictions in a record. A document longer than T is cut into pieces of which each
is read alone, so a label depends on the document and on T, never on what it is packed with: every mixture, seed and
number of devices reads the same files. Labels are 2 bytes, 4 where the vocabulary has more than 65,536 tokens, and lie
where their ids lie: the label at an id is what the teacher expects after it. Held-out documents and the last id of each
document have zeros, which nobody reads. A build that was killed goes on with the first shard that is missing.
"""

import dataclasses
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pomona.core.errors import UserError
from pomona.core.files import read_json, write_bytes, write_json
from pomona.data.loader import Records
from pomona.data.pack import pack
from pomona.data.token_files import TokenFiles, token_dtype

FORMAT = 1


def label_folder(corpus: Path, teacher: str, sequence_length: int) -> Path:
    """Where the labels of a corpus are, by the fingerprint of the teacher's checkpoint and the length of a record."""
    return corpus / "labels" / f"{teacher}-{sequence_length}"


def claim_labels(folder: Path, vocab_size: int, about: dict[str, Any]) -> None:
    """Makes the folder of labels, or recognises it as made for the same.

    Args:
        vocab_size: the teacher's; a label takes two bytes where they suffice.
        about: what else decides the labels, and is not in the folder's name.

    Raises:
        UserError: it was made for something else that has the same key.
    """
    about = {"format": FORMAT, "vocab_size": vocab_size, **about}
    if not (folder / "about.json").exists():
        write_json(folder / "about.json", about)
        return
    found = read_json(folder / "about.json")
    if found != about:
        changed = [name for name in sorted(found.keys() | about.keys()) if found.get(name) != about.get(name)]
        raise UserError(
            f"the labels in {folder} are stale: "
            + ", ".join(f"{name} was {found.get(name)!r} and is {about.get(name)!r}" for name in changed)
            + ".",
            "labels are used only with exactly the teacher and the text that they were computed for.",
            f"remove {folder}; the same command then computes them anew.",
        )


def is_sound(folder: Path, source: str, shard: int) -> bool:
    """Whether a shard's labels are there as they were written; reads every byte."""
    path, seal = _paths(folder, source, shard)
    try:
        record, content = read_json(seal), path.read_bytes()
    except (UserError, OSError):
        return False
    return bool(record == _seal(content))


def write_labels(folder: Path, source: str, shard: int, labels: np.ndarray) -> None:
    """Writes the labels of one shard of a source, atomically."""
    path, seal = _paths(folder, source, shard)
    content = labels.tobytes()
    write_bytes(path, content)
    write_json(seal, _seal(content))


def open_labels(folder: Path, source: str, files: TokenFiles) -> TokenFiles:
    """The labels of a source: what `files` holds, with a label in the place of every id.

    Raises:
        UserError: they are not complete.
    """
    missing = missing_shards(folder, source, files)
    if missing:
        raise UserError(
            f"the labels in {folder / source} lack shard {missing[0]}, {len(missing)} in all of {len(files.shards)}.",
            "a student learns from its teacher's labels of all of its training text.",
            "pomona distill, with what the run was started with: it computes what is missing, then goes on.",
        )
    dtype = label_dtype(folder)
    paths = [_paths(folder, source, shard)[0] for shard in range(len(files.shards))]
    shards = [np.memmap(path, dtype, "r") if ids.size else ids for path, ids in zip(paths, files.shards)]
    return dataclasses.replace(files, shards=tuple(shards))


def missing_shards(folder: Path, source: str, files: TokenFiles) -> list[int]:
    """The shards of a source without finished labels, by the names and sizes of the files alone."""
    if not (folder / "about.json").exists():
        return list(range(len(files.shards)))
    size, missing = label_dtype(folder).itemsize, []
    for shard, ids in enumerate(files.shards):
        path, seal = _paths(folder, source, shard)
        if not (seal.exists() and path.exists() and path.stat().st_size == ids.size * size):
            missing.append(shard)
    return missing


def label_dtype(folder: Path) -> np.dtype:
    """The type of a label, which depends on the teacher's vocabulary."""
    return token_dtype(read_json(folder / "about.json")["vocab_size"])


def shard_records(files: TokenFiles, shard: int, sequence_length: int) -> Records:
    """The training documents of one shard alone, as records for the teacher to read."""
    begin, end = files.shard_starts[shard : shard + 2]
    inside = slice(*np.searchsorted(files.starts, [begin, end]))
    return Records(files, pack(files.starts[inside], files.lengths[inside], sequence_length), sequence_length)


def place_labels(records: Records, rows: Sequence[np.ndarray], shard: int, dtype: np.dtype) -> np.ndarray:
    """The labels of a shard's ids, from the labels [T] of each of its records."""
    files, plan = records.files, records.plan
    begin = int(files.shard_starts[shard])
    labels = np.zeros(files.shards[shard].size, dtype)
    for row, (first, last) in zip(rows, zip(plan.records, plan.records[1:]), strict=True):
        at = 0
        for start, size in zip(plan.starts[first:last] - begin, plan.lengths[first:last].tolist()):
            labels[start : start + size] = row[at : at + size]
            at += size
    return labels


def _seal(content: bytes) -> dict[str, int]:
    return {"size_bytes": len(content), "crc32": zlib.crc32(content)}


def _paths(folder: Path, source: str, shard: int) -> tuple[Path, Path]:
    """A shard's labels, and what says that they are whole."""
    return folder / source / f"{shard:05}.labels", folder / source / f"{shard:05}.json"
