"""How a run leaves its state behind: a checkpoint in both tiers, or a note of where it goes back to."""

import time

from pomona.checkpoint.courier import Courier
from pomona.checkpoint.remote import Remote, RemoteProblem
from pomona.checkpoint.store import steps
from pomona.core.errors import Preempted, UserError
from pomona.parallel.mesh import any_process, any_text, same_fate
from pomona.train.config import Stage, total_steps
from pomona.train.rollback import RollBack, Rollback, check_allowed, to_json
from pomona.train.session import Place, Session
from pomona.train.state import TrainState

ASK_SECONDS = 0.1  # how often processes ask each other whether the remote tier has the last checkpoint


def save(session: Session, state: TrainState, stage: Stage, step: int, stop: bool) -> None:
    """Saves, and leaves by `Preempted` where a signal came."""
    total = total_steps(session.run)
    about = session.about(step, stage.name)
    session.store.save(step, state.trees(), about, stop or step == total)
    session.event("checkpoint", step=step, kept_seconds=about["kept_seconds"])
    session.clock.restart()
    if stop and step < total:
        session.store.seal()
        signal = any_text(session.stop.signal or "")
        session.event("preempted", step=step, signal=signal)
        deliver(session, session.courier, step)
        raise Preempted(f"stopped after step {step}; the same command resumes there.")


def deliver(place: Place, courier: Courier | None, step: int) -> str:
    """Waits for the remote tier to get a step; says what went wrong. All processes wait for the first one."""
    if place.run.checkpoint.remote is None:
        return ""
    copied_bytes = -1
    while any_process(courier is not None and bool(courier.in_transit())):
        if courier is None or courier.copied_bytes != copied_bytes:
            place.watchdog.progress()  # a copy that stands still is a stall like any other
        copied_bytes = courier.copied_bytes if courier else 0
        time.sleep(ASK_SECONDS)
    place.report_deliveries(courier)
    return any_text(courier.problem(step) if courier else "")


def check_delivered(place: Place, courier: Courier | None, total: int) -> None:
    """Raises `UserError` if the remote tier does not get the last checkpoint of a run."""
    if problem := deliver(place, courier, total):
        raise UserError(
            f"the run is done, but {place.run.checkpoint.remote} lacks its last checkpoint: {problem}.",
            "a run with a remote tier ends when its last checkpoint is there; the run folder has it.",
            "the same command again copies it, once the address can be written.",
        )


def roll_back(session: Session, fault: RollBack) -> None:
    """Records where the run goes back to; the next start does the rest, as it would after a kill."""
    session.store.seal()
    with same_fate():
        if not session.leads:
            return
        saved = steps(session.folder.checkpoints)
        if session.run.checkpoint.remote is not None:
            try:
                saved += Remote(session.run.checkpoint.remote).steps()
            except RemoteProblem as problem:
                session.tell(f"the remote tier cannot be asked: {problem}", "remote_failed", problem=str(problem))
        step = check_allowed(fault, saved, session.rollbacks, session.run.faults)
        text = f"{fault}; back to step {step}, and past the data of steps {step + 1} to {fault.last}"
        details = {"step": step, "last": fault.last, "first": fault.first, "reason": fault.reason}
        rollbacks = to_json((*session.rollbacks, Rollback(step, fault.last)))
        session.tell(text, "rollback", **details, rollbacks=rollbacks)
