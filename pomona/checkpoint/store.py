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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from pomona.checkpoint.config import CheckpointConfig
from pomona.checkpoint.courier import Courier
from pomona.checkpoint.manifest import damage, is_sealed, write_manifest
from pomona.checkpoint.remote import Remote, RemoteProblem
from pomona.core.errors import UserError
from pomona.parallel.mesh import any_text

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports every phase of every save at INFO and WARNING


class Store:
    """The checkpoints of one run folder, for the process that writes them.

    Args:
        courier: takes sealed checkpoints to the remote tier; only the first process has one.
    """

    def __init__(
        self,
        folder: Path,
        config: CheckpointConfig,
        clock: Callable[[], float] = time.monotonic,
        courier: Courier | None = None,
    ):
        self._folder, self._config, self._clock, self._courier = folder.absolute(), config, clock, courier
        self._saved_at = clock()
        self._unsealed: list[tuple[int, dict[str, Any], bool]] = []
        folder.mkdir(parents=True, exist_ok=True)
        policies = ocp.training.preservation_policies
        self._orbax = ocp.training.Checkpointer(
            self._folder,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(config.keep), _InTransit(courier)]),
            cleanup_tmp_directories=True,
        )

    def due(self, step: int) -> bool:
        """Whether an interval has passed. Processes may disagree on the clock: let them agree before saving."""
        return step % self._config.every_steps == 0 or (self._clock() - self._saved_at >= self._config.every_seconds)

    def save(self, step: int, trees: dict[str, Any], about: dict[str, Any], last: bool = False) -> None:
        """Starts to save named trees under a step; the arrays may be donated as soon as this returns.

        Args:
            last: the process is about to end, so this one goes to the remote tier whatever its interval.

        Raises:
            UserError: the disk is full, now or since the last save; earlier checkpoints are intact.
        """
        with _full_disk(self._folder):
            self._seal()
            self._orbax.save_checkpointables_async(step, trees, custom_metadata=about)
        self._unsealed.append((step, about, last))
        self._saved_at = self._clock()

    def poll(self) -> None:
        """Seals a save that has become final meanwhile; cheap, for every step."""
        if self._unsealed and not self._orbax.is_saving_in_progress():
            with _full_disk(self._folder):
                self._seal()

    def seal(self) -> None:
        """Waits for the save under way and seals it."""
        with _full_disk(self._folder):
            self._seal()

    def close(self) -> None:
        """As `seal`; nothing can be saved afterwards."""
        try:
            with _full_disk(self._folder):
                self._seal()
        finally:
            with contextlib.suppress(Exception):  # the error of a failed save was raised above
                self._orbax.close()

    def _seal(self) -> None:
        unsealed, self._unsealed = self._unsealed, []
        self._orbax.wait()
        for step, about, last in unsealed:
            if jax.process_index() == 0 and (self._folder / str(step)).is_dir():
                write_manifest(self._folder / str(step), about)
                if self._courier is not None:
                    self._courier.offer(step, must=last)


@dataclasses.dataclass
class _InTransit:
    """Keeps what the courier has not delivered yet."""

    courier: Courier | None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        needed = self.courier.in_transit() if self.courier else set()
        return [checkpoint.step in needed for checkpoint in checkpoints]


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A checkpoint that was passed over."""

    step: int
    problem: str
    remote: bool


@dataclasses.dataclass(frozen=True)
class Restored:
    """What was read, from which tier, and which newer checkpoints were passed over."""

    step: int
    trees: dict[str, Any]
    about: dict[str, Any]
    skipped: tuple[Skipped, ...]
    remote: bool = False


def steps(folder: Path) -> list[int]:
    """The saved steps, newest first; half-written ones have other names."""
    if not folder.is_dir():
        return []
    return sorted((int(p.name) for p in folder.iterdir() if p.name.isdigit() and p.is_dir()), reverse=True)


def restore(
    folder: Path,
    abstract: Callable[[int], dict[str, Any]],
    step: int | None = None,
    remote: Remote | None = None,
    remote_steps: Sequence[int] = (),
) -> Restored | None:
    """Reads the newest sound checkpoint (or one step), into the shapes, types and shardings of `abstract`.

    What the local folder lacks comes from the remote tier, and belongs to the folder from then on.

    Args:
        abstract: the trees of a step, as `ShapeDtypeStruct`s; where arrays go may depend on it.
        remote_steps: what the remote tier holds; the same on all processes.

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
    skipped: list[Skipped] = []
    local = [(number, False) for number in (present if step is None else [step])]
    for candidate, far in sorted(local + [(number, True) for number in remote_steps], key=lambda c: (-c[0], c[1])):
        # Processes take the same checkpoint or none: what one cannot read is passed over by all.
        problem, path = "", folder / str(candidate)
        if far:
            assert remote is not None
            path = folder / f"{candidate}.fetched"
            problem = any_text(_fetch(remote, candidate, path))
        problem = problem or any_text(damage(path, jax.process_index(), jax.process_count()) or "")
        if not problem:
            try:
                trees, about = _load(path, abstract(candidate))
            except (OSError, ValueError, KeyError) as error:
                problem = [*str(error).splitlines(), type(error).__name__][0][:200]
            problem = any_text(problem)
        if not problem:
            return Restored(candidate, trees, about, tuple(skipped), far)
        skipped.append(Skipped(candidate, problem, far))
    if skipped:
        listed = "; ".join(f"step {each.step}{' (remote)' * each.remote}: {each.problem}" for each in skipped)
        raise UserError(
            f"no checkpoint in {folder} can be read ({listed}).",
            "a checkpoint is used only if all its files are as they were written.",
            "restore the folder from a copy, or start again with a new --run folder.",
        )
    return None


def _fetch(remote: Remote, step: int, path: Path) -> str:
    """Brings this process's part of a remote checkpoint; returns what went wrong."""
    try:
        remote.pull(step, path, jax.process_index(), jax.process_count())
    except RemoteProblem as problem:
        return str(problem)
    return ""


def adopt(folder: Path, found: Restored) -> None:
    """After a restore: a fetched checkpoint takes its place in the folder, one that was never sealed is sealed now."""
    path = folder / str(found.step)
    if found.remote:
        (folder / f"{found.step}.fetched").rename(path)
    if not is_sealed(path):
        write_manifest(path, found.about)
    for fetched in folder.glob("*.fetched"):  # of damaged copies, or of a start that was killed
        shutil.rmtree(fetched)


def about_step(folder: Path, step: int) -> dict[str, Any] | None:
    """What was said about a step when it was saved; None if even that cannot be read."""
    try:
        return dict(ocp.checkpointables_metadata((folder / str(step)).absolute()).custom_metadata or {})
    except (OSError, ValueError, KeyError):
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
