"""From a run folder and its remote tier to a state: after the newest sound step that is part of the run's history."""

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Sequence
from typing import Any

import jax

from pomona.checkpoint.courier import Courier
from pomona.checkpoint.remote import Remote, RemoteProblem
from pomona.checkpoint.store import Restored, about_step, adopt, restore, set_aside, steps
from pomona.core.errors import UserError
from pomona.core.provenance import provenance
from pomona.core.run_folder import RunFolder
from pomona.metrics import tensorboard
from pomona.metrics.goodput import Account, account
from pomona.metrics.records import drop_after, read_records
from pomona.parallel.mesh import any_text, same_fate
from pomona.train import rollback
from pomona.train.config import Run, stage_after
from pomona.train.rollback import Rollback, Trend
from pomona.train.session import Place
from pomona.train.state import TrainState, abstract_state, first_state

SHARED_SECONDS = 30.0  # that a network disk may take to show a new file to other hosts
MOST_STEPS = 100  # of the remote tier that are looked at: they fit a message between processes


@dataclasses.dataclass(frozen=True)
class Beginning:
    """A state, the number of steps in it, and what the run has gone through before."""

    state: TrainState
    step: int
    rollbacks: tuple[Rollback, ...]
    trend: Trend
    kept_seconds: float
    began_seconds: float | None
    remote_steps: tuple[int, ...]


def begin(place: Place) -> Beginning:
    """The newest sound checkpoint of either tier, or the state before the first step.

    Raises:
        UserError: no checkpoint can be read, or they belong to other text or to another run.
    """
    run, folder = place.run, place.folder
    address = run.checkpoint.remote
    remote = Remote(address, place.watchdog.progress) if address else None
    with same_fate():
        far = _claim(place, remote) if remote and place.leads else {}
        rollbacks = _history(place, far) if place.leads else ()
        if place.leads:
            _without_abandoned(place, rollbacks, far, remote)
    # What the first process sees holds for all, for the others may see a shared disk a moment later.
    rollbacks = rollback.from_json(json.loads(any_text(json.dumps(rollback.to_json(rollbacks)) if place.leads else "")))
    remote_steps = tuple(json.loads(any_text(json.dumps(sorted(far)[-MOST_STEPS:]) if place.leads else "")))
    # The arrays go straight to where the next step wants them.
    abstract = lambda step: abstract_state(run, place.meshes[stage_after(run, step)]).trees()
    found = restore(folder.checkpoints, abstract, None, remote, remote_steps)
    with same_fate():
        if place.leads and found:
            _tidy(place, found)
    if found:
        _check_text(place, found.about)
    with same_fate():
        if place.leads:
            drop_after(folder.metrics, found.step if found else -1)
    if found is None:
        return Beginning(first_state(run, place.meshes[0]), 0, rollbacks, Trend(), 0.0, None, remote_steps)
    about = found.about
    return Beginning(
        state=TrainState(**found.trees),
        step=found.step,
        rollbacks=rollbacks,
        trend=Trend.from_json(about["trend"]),
        kept_seconds=about["kept_seconds"],
        began_seconds=about["began_seconds"],
        remote_steps=remote_steps,
    )


def announce(place: Place, begun: Beginning) -> tuple[Account, Any]:
    """Says and records where training begins; returns the run's account and the TensorBoard writer, or None."""
    step, made_by = begun.step, {"devices": jax.device_count(), "device": jax.devices()[0].device_kind, **provenance()}
    if step:
        place.live.message(f"resuming after step {step}")
        kept = {"began_seconds": begun.began_seconds, "kept_seconds": begun.kept_seconds}
        place.event("resume", step=step, **made_by, **kept)
    else:
        place.event("start", **made_by)
    if not place.leads:
        return Account(0.0, 0.0), None
    writer = None
    if place.run.metrics.tensorboard:
        writer = tensorboard.open_writer(place.folder.path / "tensorboard", first_step=step + 1 if step else 0)
    return account(read_records(place.folder.events)), writer


def check_remote(asked: Run) -> None:
    """Raises `UserError` for an address that is none or another run's, before anything is written for this run."""
    if asked.checkpoint.remote is not None:
        remote = Remote(asked.checkpoint.remote)
        with contextlib.suppress(RemoteProblem):  # `begin` knows whether the run can do without it
            remote.check(asked)


def check_shared(folder: RunFolder, hosts: Sequence[str]) -> None:
    """Raises `UserError` where this process does not see the run folder that the first one has made."""
    deadline = time.monotonic() + SHARED_SECONDS
    while not folder.config.exists():
        if time.monotonic() > deadline:
            process = jax.process_index()
            raise UserError(
                f"process {process} on host {hosts[process]} does not see {folder.path / 'config.json'}.",
                "the run folder is one folder on a disk that all processes share; each writes its part of a "
                "checkpoint there.",
                "a --run folder on the shared disk (Lustre, Filestore, NFS, a mounted bucket).",
            )
        time.sleep(0.1)


def evaluations(folder: RunFolder, total: int) -> tuple[dict[str, float], dict[str, float]]:
    """What earlier starts of this run have measured before its first step, and after its last one."""
    before: dict[str, float] = {}
    after: dict[str, float] = {}
    for record in read_records(folder.metrics):
        if record["step"] == 0:
            before = {"bits_per_byte_before": record["bits_per_byte"]}
        elif record["step"] == total:  # a log line, then an evaluation
            after = {name: record[name] for name in ("heldout_loss", "bits_per_byte") if name in record}
    return before, after


def open_courier(place: Place, begun: Beginning) -> Courier | None:
    """The first process's courier to the remote tier, if there is one."""
    config = place.run.checkpoint
    if config.remote is None or not place.leads:
        return None
    remote = Remote(config.remote)
    return Courier(place.folder.checkpoints, remote, config, last=max(begun.remote_steps, default=0))


def _claim(place: Place, remote: Remote) -> dict[int, dict[str, Any]]:
    """What the remote tier holds of this run; nothing, with a message, where it cannot be asked."""
    try:
        remote.claim(place.asked)
        return remote.steps()
    except RemoteProblem as problem:
        if not steps(place.folder.checkpoints):
            raise UserError(
                f"the remote tier {remote.address} cannot be reached: {problem}.",
                "without it nobody knows whether this run has checkpoints, since the run folder has none.",
                "check the address and your rights to it, or leave --checkpoint.remote out.",
            ) from problem
        text = f"the remote tier {remote.address} cannot be reached: {problem}; the run folder's checkpoints are used"
        place.tell(text, "remote_failed", problem=str(problem))
        return {}


def _history(place: Place, far: dict[int, dict[str, Any]]) -> tuple[Rollback, ...]:
    """All rollbacks of this run: the longest list that is written anywhere."""
    lists = [rollback.recorded(read_records(place.folder.events))]
    abouts = [about_step(place.folder.checkpoints, step) for step in steps(place.folder.checkpoints)]
    abouts += [manifest["about"] for manifest in far.values()]
    lists += [rollback.from_json(about.get("rollbacks", ())) for about in abouts if about]
    return max(lists, key=len)


def _without_abandoned(
    place: Place, rollbacks: tuple[Rollback, ...], far: dict[int, dict[str, Any]], remote: Remote | None
) -> None:
    """Removes the checkpoints of steps that a rollback threw away; takes the remote ones out of `far`."""
    gone = lambda step, about: rollback.abandoned(step, rollback.from_json(about.get("rollbacks", ())), rollbacks)
    for step in steps(place.folder.checkpoints):
        if gone(step, about_step(place.folder.checkpoints, step) or {}):
            shutil.rmtree(place.folder.checkpoints / str(step))
            place.event("abandoned", step=step)
    for step in [step for step, manifest in far.items() if gone(step, manifest["about"])]:
        assert remote is not None, "only a remote tier has remote steps"
        del far[step]
        try:
            remote.remove(step)
        except RemoteProblem as problem:
            text = f"step {step} was rolled back, but cannot be removed from {remote.address}: {problem}"
            place.tell(text, "remote_failed", step=step, problem=str(problem))


def _tidy(place: Place, found: Restored) -> None:
    """Puts damaged local checkpoints out of the way, and the one that was read in its place."""
    folder = place.folder.checkpoints
    for each in found.skipped:
        if each.remote:
            text = f"the remote checkpoint of step {each.step} is damaged and passed over: {each.problem}"
            place.tell(text, "fallback", step=each.step, problem=each.problem, kept=place.run.checkpoint.remote)
        else:
            kept = set_aside(folder, each.step)
            text = f"checkpoint of step {each.step} is damaged and set aside: {each.problem}"
            place.tell(text, "fallback", step=each.step, problem=each.problem, kept=kept.name)
    adopt(folder, found)
    if found.remote:
        place.tell(f"step {found.step} was fetched from the remote tier", "fetched", step=found.step)


def _check_text(place: Place, about: dict[str, Any]) -> None:
    corpus = place.prepared.folder.name
    if about.get("corpus") != corpus:
        raise UserError(
            f"the text of this run has changed since it was started (corpus {about.get('corpus')} -> {corpus}).",
            "a resumed run sees the same batches, so its text stays as it was.",
            "restore the text, or start a new run with --run FOLDER.",
        )
