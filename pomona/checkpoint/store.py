"""Checkpoints on Orbax: asynchronous, sharded, restored onto any mesh, and never trusted blindly.

A checkpoint is a few named trees (`params`, `optimizer`, ...), so that one can be read without the others. Its values
are logical arrays; the mesh they came from leaves no trace.
"""

import contextlib
import dataclasses
import errno
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from pomona.checkpoint.config import CheckpointConfig
from pomona.checkpoint.manifest import damage, write_manifest
from pomona.core.errors import UserError
from pomona.parallel.mesh import any_text

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports every phase of every save at INFO and WARNING


class Store:
    """The checkpoints of one run folder, for the process that writes them."""

    def __init__(self, folder: Path, config: CheckpointConfig, clock: Callable[[], float] = time.monotonic):
        self._folder, self._config, self._clock = folder.absolute(), config, clock
        self._saved_at = clock()
        self._unsealed: list[int] = []
        folder.mkdir(parents=True, exist_ok=True)
        self._orbax = ocp.training.Checkpointer(
            self._folder,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=ocp.training.preservation_policies.LatestN(config.keep),
            cleanup_tmp_directories=True,
        )

    def due(self, step: int) -> bool:
        """Whether an interval has passed. Processes may disagree on the clock: let them agree before saving."""
        return step % self._config.every_steps == 0 or (self._clock() - self._saved_at >= self._config.every_seconds)

    def save(self, step: int, trees: dict[str, Any], about: dict[str, Any]) -> None:
        """Starts to save named trees under a step; the arrays may be donated as soon as this returns.

        Raises:
            UserError: the disk is full, now or since the last save; earlier checkpoints are intact.
        """
        with _full_disk(self._folder):
            self._seal()
            self._orbax.save_checkpointables_async(step, trees, custom_metadata=about)
        self._unsealed.append(step)
        self._saved_at = self._clock()

    def poll(self) -> None:
        """Seals a save that has become final meanwhile; cheap, for every step."""
        if self._unsealed and not self._orbax.is_saving_in_progress():
            with _full_disk(self._folder):
                self._seal()

    def close(self) -> None:
        """Waits for the save under way and seals it."""
        try:
            with _full_disk(self._folder):
                self._seal()
        finally:
            with contextlib.suppress(Exception):  # the error of a failed save was raised above
                self._orbax.close()

    def _seal(self) -> None:
        unsealed, self._unsealed = self._unsealed, []
        self._orbax.wait()
        for step in unsealed:
            if jax.process_index() == 0 and (self._folder / str(step)).is_dir():
                write_manifest(self._folder / str(step))


@dataclasses.dataclass(frozen=True)
class Restored:
    """What was read, and which newer checkpoints were passed over, with the reason."""

    step: int
    trees: dict[str, Any]
    about: dict[str, Any]
    skipped: tuple[tuple[int, str], ...]


def steps(folder: Path) -> list[int]:
    """The saved steps, newest first; half-written ones have other names."""
    if not folder.is_dir():
        return []
    return sorted((int(p.name) for p in folder.iterdir() if p.name.isdigit() and p.is_dir()), reverse=True)


def restore(folder: Path, abstract: dict[str, Any], step: int | None = None) -> Restored | None:
    """Reads the newest sound checkpoint (or one step), as the abstract trees describe shapes, types and shardings.

    Returns:
        None where there is no checkpoint.

    Raises:
        UserError: the step is not there, or every checkpoint is damaged.
    """
    present = steps(folder)
    if step is not None and step not in present:
        raise UserError(
            f"{folder} has no checkpoint of step {step}.",
            "only the newest checkpoints are kept.",
            "one of: " + (", ".join(map(str, present)) or "(none)"),
        )
    skipped: list[tuple[int, str]] = []
    for candidate in present if step is None else [step]:
        # Processes take the same checkpoint or none: what one cannot read is passed over by all.
        problem = any_text(damage(folder / str(candidate), jax.process_index(), jax.process_count()) or "")
        if not problem:
            try:
                trees, about = _load(folder / str(candidate), abstract)
            except (OSError, ValueError, KeyError) as error:
                problem = [*str(error).splitlines(), type(error).__name__][0][:200]
            problem = any_text(problem)
        if not problem:
            return Restored(candidate, trees, about, tuple(skipped))
        skipped.append((candidate, problem))
    if skipped:
        listed = "; ".join(f"step {number}: {problem}" for number, problem in skipped)
        raise UserError(
            f"no checkpoint in {folder} can be read ({listed}).",
            "a checkpoint is used only if all its files are as they were written.",
            "restore the folder from a copy, or start again with a new --run folder.",
        )
    return None


def set_aside(folder: Path, step: int) -> Path:
    """Renames a damaged checkpoint out of the way; nothing is deleted."""
    target = folder / f"{step}.damaged"
    if target.exists():
        shutil.rmtree(target)
    return (folder / str(step)).rename(target)


def _load(folder: Path, abstract: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    folder = folder.absolute()
    trees = ocp.load_checkpointables(folder, abstract)
    about = ocp.checkpointables_metadata(folder).custom_metadata
    return trees, dict(about or {})


@contextlib.contextmanager
def _full_disk(folder: Path) -> Iterator[None]:
    """A full disk reaches us through Orbax and TensorStore as various exceptions; it leaves as one `UserError`."""
    try:
        yield
    except Exception as error:
        chain: list[BaseException] = []
        link: BaseException | None = error
        while link is not None:
            chain.append(link)
            link = link.__cause__ or link.__context__
        text = " ".join(str(e) for e in chain)
        if any(isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT) for e in chain) or (
            "No space left" in text or "RESOURCE_EXHAUSTED" in text
        ):
            raise UserError(
                f"the disk is full: a checkpoint could not be written to {folder}.",
                "checkpoints written before are intact; the unfinished one is not used.",
                "free some space, then type the same command again: it resumes from the last checkpoint.",
            ) from error
        raise
