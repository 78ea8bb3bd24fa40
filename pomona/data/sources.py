"""From an address to documents: text, JSONL, Parquet, compressed or not, local or remote."""

import importlib
import io
import json
import lzma
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import fsspec

from pomona.core.config import did_you_mean
from pomona.core.errors import UserError
from pomona.data import stdlib
from pomona.data.config import Source
from pomona.data.token_files import Text

COMPRESSIONS = {".gz": "gzip", ".xz": "xz", ".zst": "zstd", ".bz2": "bz2"}
HUB = "hf:"


def documents(source: Source) -> Iterator[tuple[str, Text]]:
    """(where it came from, text) of every document of a source, in a fixed order; a text of two fields is a pair.

    Raises:
        UserError: nothing at the address, bytes that are not UTF-8, a row that is not JSON or lacks the field, or
            a missing optional package. The message names file and place.
    """
    if source.address == "stdlib":
        yield from stdlib.documents()
    elif source.address.startswith(HUB):
        yield from _hub_documents(source)
    else:
        for address in files(source):
            yield from _file_documents(address, source)


def state(source: Source) -> list[tuple[str, int, str]]:
    """(name, bytes, time of change) of every file of a source: what tells one state of a corpus from another."""
    if source.address == "stdlib":
        root = Path(os.__file__).parent
        return [(str(p.relative_to(root)), p.stat().st_size, "") for p in stdlib.module_paths(root)]
    if source.address.startswith(HUB):
        return [(source.address, 0, "")]
    states = []
    for address in files(source):
        system, path = fsspec.core.url_to_fs(address)
        info = system.info(path)
        changed = info.get("mtime") or info.get("LastModified") or info.get("ETag") or ""
        states.append((address, int(info.get("size") or 0), str(changed)))
    return states


def files(source: Source) -> list[str]:
    """The files an address names, sorted; a folder means everything below it but hidden files.

    Raises:
        UserError: there are none.
    """
    try:
        system, path = fsspec.core.url_to_fs(os.path.expanduser(source.address))
        if system.isdir(path):
            found = [p for p in system.find(path) if not any(q.startswith(".") for q in _below(p, path))]
        else:
            found = [p for p in system.glob(path) if system.isfile(p)]
    except (ValueError, ImportError) as error:
        raise UserError(
            f"the address {source.address!r} cannot be opened: {error}.",
            "an address is a file, a folder, a glob, or a URL whose fsspec package is installed.",
            "a path such as 'texts/*.jsonl', or install the package that the message names.",
        ) from error
    if not found:
        raise UserError(
            f"there is no text at {source.address!r}.",
            "a source is a file, a folder with files, or a glob that matches some.",
            f"ls {source.address}",
        )
    return sorted(str(system.unstrip_protocol(p)) if "://" in source.address else str(p) for p in found)


def _below(path: str, folder: str) -> tuple[str, ...]:
    return Path(os.path.relpath(path, folder)).parts


def _file_documents(address: str, source: Source) -> Iterator[tuple[str, Text]]:
    stem, extension = os.path.splitext(address)
    compression = COMPRESSIONS.get(extension)
    kind = os.path.splitext(stem)[1] if compression else extension
    broken: tuple[type[Exception], ...] = (EOFError, OSError, lzma.LZMAError, zlib.error)
    if compression == "zstd":
        broken += (_optional("zstandard", address).ZstdError,)
    try:
        with fsspec.open(address, "rb", compression=compression) as file:
            content: Any = io.BufferedReader(file) if compression == "zstd" else file  # zstd has no lines
            if kind == ".parquet":
                yield from _parquet_documents(content, address, source.text_field)
            elif kind in (".jsonl", ".ndjson"):
                yield from _jsonl_documents(content, address, source.text_field)
            else:
                yield address, _decode(content.read(), address, 0)
    except broken as error:
        if not compression:
            raise
        raise UserError(
            f"{address} cannot be decompressed: {error}.",
            f"a file named {extension} is a whole {compression} stream.",
            "fetch the file again, or rename it if it is not compressed.",
        ) from error


def _jsonl_documents(file: IO[bytes], address: str, field: str) -> Iterator[tuple[str, Text]]:
    offset = 0
    for number, line in enumerate(file, start=1):
        where = f"{address}:{number}"
        text, offset = _decode(line, address, offset), offset + len(line)
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{where} is not JSON: {error.msg} at column {error.colno}.",
                "every line of a .jsonl file is one JSON object.",
                "mend the line, or give the file the ending .txt if it is plain text.",
            ) from error
        yield where, _text(row, field, where)


def _parquet_documents(file: IO[bytes], address: str, field: str) -> Iterator[tuple[str, Text]]:
    parquet = _optional("pyarrow.parquet", address)
    table = parquet.ParquetFile(file)
    fields = field.split(":")
    if not set(fields) <= set(table.schema_arrow.names):
        _text(dict.fromkeys(table.schema_arrow.names), field, address)
    row = 0
    for batch in table.iter_batches(columns=fields, batch_size=1024):
        for each in batch.to_pylist():
            row += 1
            yield f"{address}:{row}", _text(each, field, f"{address}:{row}")


def _hub_documents(source: Source) -> Iterator[tuple[str, Text]]:
    datasets = _optional("datasets", source.address, "pip install datasets")
    name, _, split = source.address.removeprefix(HUB).partition(":")
    try:
        rows = datasets.load_dataset(name, split=split or "train", streaming=True)
        for number, row in enumerate(rows):
            yield f"{source.address}:{number}", _text(row, source.text_field, f"{source.address}:{number}")
    except (OSError, ValueError) as error:
        raise UserError(
            f"the dataset {name!r} could not be read: {error}.",
            "a Hugging Face dataset needs a network and an existing name and split.",
            "hf:NAME or hf:NAME:SPLIT, or download the files and give their folder.",
        ) from error


def _text(row: Any, fields: str, where: str) -> Text:
    """The text of a row, or where two fields are named, the prompt and the response."""
    given, colon, learned = fields.partition(":")
    return (_field(row, given, where), _field(row, learned, where)) if colon else _field(row, fields, where)


def _field(row: Any, field: str, where: str) -> str:
    if isinstance(row, dict) and isinstance(row.get(field), str):
        return row[field]
    known = [name for name, value in row.items() if name != field] if isinstance(row, dict) else []
    raise UserError(
        f"{where} has no text in the field {field!r}.",
        "every row carries its document as a string in the field that `text_field` names.",
        f"--data.sources.0.text-field NAME; {did_you_mean(field, known)}" if known else "mend the row.",
    )


def _decode(content: bytes, address: str, offset: int) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{address} has bytes that are not UTF-8 at offset {offset + error.start}.",
            "text is UTF-8; nothing is replaced or dropped silently.",
            f"iconv -f latin1 -t utf-8 {address}",
        ) from error


def _optional(module: str, address: str, install: str = "pip install 'pomona[data]'") -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{address} needs the package {module.split('.')[0]}, which is not installed.",
            "the base install reads text, JSONL, gzip and xz.",
            install,
        ) from error
