"""What is measured of a node before it may serve: the programs, the model, the adapters. The same files give the same
digests on any machine; what is published of a release is compared with what a node has extended into its TPM.
"""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from pathlib import Path

from pomona.core.errors import UserError
from pomona.core.run_folder import RunFolder
from pomona.private.evidence.tpm.registers import extended

REGISTER = 13
"""Of the TPM, into which a node extends what it measures. What the machine measures at its start is in others."""
_LABEL = b"pomona private cloud measurement v1\0"
EPHEMERAL = {"metrics.jsonl", "events.jsonl", "card.html"}
"""Of a run folder, what says how it came to be and not what it computes."""


def measurement(image: str, model: str, adapters: Mapping[str, str]) -> bytes:
    """What is extended into the register: 32 bytes over the digests."""
    said = {"image": image, "model": model, "adapters": dict(adapters)}
    return hashlib.sha256(_LABEL + json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).digest()


def register_after(digest: bytes) -> bytes:
    """What the register holds then, 32 bytes, where nothing else was extended into it."""
    return extended(bytes(32), digest)


def model_digest(model: Path) -> str:
    """SHA-256 of a device file, or of all that a run folder serves from: configuration, tokenizer, newest checkpoint.

    Raises:
        UserError: it is neither.
    """
    if model.is_file():
        return file_digest(model)
    run = RunFolder(model)
    steps = sorted(int(each.name) for each in run.checkpoints.glob("*") if each.name.isdigit())
    weights = run.checkpoints / str(steps[-1]) if steps else run.palettes
    if not weights.is_dir():
        raise UserError(
            f"{model} holds no model.", "a run folder with a checkpoint or palettes, or a device file.", "its folder"
        )
    files = [run.config, *_below(run.tokenizer), *_below(weights)]
    return files_digest(run.path, files)


def adapter_digests(adapters: Mapping[str, Path]) -> dict[str, str]:
    """The same of adapters, by name."""
    return {name: files_digest(folder, _below(folder)) for name, folder in sorted(adapters.items())}


def image_digest() -> str:
    """SHA-256 of the programs that run here: Python's version, Pomona's files, and of every installed package its
    version and the digests that it was installed with.

    It stands in for an image's digest where nothing else is measured. Who builds images gives theirs (`--image`).
    """
    parts = [platform.python_version(), files_digest(Path(__file__).parents[2], _below(Path(__file__).parents[2]))]
    for package in sorted(importlib.metadata.distributions(), key=lambda each: each.metadata["Name"].lower()):
        record = package.read_text("RECORD") or ""
        known = sorted(line.rsplit(",", 1)[0] for line in record.splitlines() if ",sha256=" in line)
        digest = hashlib.sha256("\n".join(known).encode()).hexdigest()
        parts.append(f"{package.metadata['Name']} {package.version} {digest}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def files_digest(root: Path, files: list[Path]) -> str:
    """SHA-256 over the names, relative to a folder, and the digests of files, in the names' order."""
    names = sorted(file.relative_to(root).as_posix() for file in files)
    return hashlib.sha256("".join(f"{file_digest(root / name)}  {name}\n" for name in names).encode()).hexdigest()


def file_digest(file: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _below(folder: Path) -> list[Path]:
    # Compiled Python says when it was compiled; it is made from what is measured.
    skipped = lambda each: "__pycache__" in each.parts or each.name in EPHEMERAL
    return [each for each in folder.rglob("*") if each.is_file() and not skipped(each)]
