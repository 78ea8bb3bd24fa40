"""The training loop: one for every objective, from an empty folder or from wherever it was stopped."""

import dataclasses
import math
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from pomona.checkpoint.store import Store, restore, set_aside
from pomona.core.chips import chip_for_device_kind
from pomona.core.errors import Preempted, UserError
from pomona.core.run_folder import RunFolder, claim, record_event
from pomona.data.loader import Batches
from pomona.data.prepare import Prepared, heldout_batches, open_batches, prepare
from pomona.data.tokenizer import MODEL_FILE, load_tokenizer
from pomona.metrics import tensorboard
from pomona.metrics.live import Live
from pomona.metrics.rates import Meter, Work
from pomona.metrics.records import append_record, drop_after, read_records
from pomona.model.count import training_flops
from pomona.optim.build import start_stage
from pomona.parallel import rules
from pomona.parallel.config import shards
from pomona.parallel.mesh import any_process, any_text, build_mesh, same_fate, start_processes
from pomona.train.config import Run, Stage, check_run, decide, total_steps
from pomona.train.evaluate import HeldOut, evaluate
from pomona.train.feed import Feed
from pomona.train.flight import About, Flight
from pomona.train.signals import StopRequest, stop_requests
from pomona.train.state import TrainState, abstract_state, create_state, state_shardings
from pomona.train.step import evaluation_step, train_step
from pomona.train.watchdog import Watchdog

AGREE_EVERY_STEPS = 10  # how often several processes ask each other whether to stop or to save


@dataclasses.dataclass(frozen=True)
class Session:
    """One process's view of a run in progress."""

    run: Run
    folder: RunFolder
    mesh: Mesh
    prepared: Prepared
    store: Store
    live: Live
    watchdog: Watchdog
    stop: StopRequest
    writer: Any  # a TensorBoard writer, or None

    @property
    def leads(self) -> bool:
        return jax.process_index() == 0


def train(run: Run, path: Path, live: Live | None = None) -> dict[str, float]:
    """Trains a run in a folder, or goes on where the folder's newest sound checkpoint is.

    Returns:
        The first and last evaluation: bits_per_byte_before, bits_per_byte, heldout_loss.

    Raises:
        UserError: anything in the configuration, the data or the folder that cannot work.
        Preempted: a signal asked to stop; the state is saved.
    """
    check_run(run)
    start_processes()
    mesh = build_mesh(run.mesh)
    devices = mesh.devices.flat
    asked, run = run, decide(run, devices[0].platform, len(devices), shards("batch", mesh.shape))
    shardings = state_shardings(run, mesh)  # an impossible mesh is found before anything is written
    for stage in run.stages:
        Feed(mesh, stage)
    folder, leads = RunFolder(path), jax.process_index() == 0
    live = live or Live(total_steps(run), silent=not leads)
    with same_fate():
        if run.metrics.tensorboard:
            tensorboard.check_installed()
        if leads:
            claim(folder, asked)
    with same_fate():
        prepared = prepare(run.data, live.message)
        _check_corpus(run, prepared)
        if leads:
            _keep_tokenizer(prepared, folder)
    stalled = lambda: record_event(folder, "stalled", process=jax.process_index())
    with (
        jax.set_mesh(mesh),
        stop_requests() as stop,
        Watchdog(run.stall_seconds, stalled) as watchdog,
        live,
    ):
        state, step = _start(run, folder, mesh, shardings, prepared, live)
        before, after = _evaluations(folder, total_steps(run))
        if step == total_steps(run) and after:
            live.message(f"all {step} steps of this run are done already; nothing was changed")
            return before | after
        writer = _begin(run, folder, step, live, len(devices))
        store = Store(folder.checkpoints, run.checkpoint)
        session = Session(run, folder, mesh, prepared, store, live, watchdog, stop, writer)
        try:
            result = before | _run_stages(session, state, step)
        finally:
            store.close()
            if writer is not None:
                writer.close()
        if leads:
            record_event(folder, "end", step=total_steps(run), **result)
        return result


def _start(
    run: Run, folder: RunFolder, mesh: Mesh, shardings: TrainState, prepared: Prepared, live: Live
) -> tuple[TrainState, int]:
    """The state and the number of steps already done."""
    found = restore(folder.checkpoints, abstract_state(run, mesh).trees())
    leads = jax.process_index() == 0
    for step, problem in found.skipped if found else ():
        live.message(f"checkpoint of step {step} is damaged and set aside: {problem}")
        if leads:
            kept = set_aside(folder.checkpoints, step)
            record_event(folder, "fallback", step=step, problem=problem, kept=kept.name)
    corpus = prepared.folder.name
    if found and found.about.get("corpus") != corpus:
        raise UserError(
            f"the text of this run has changed since it was started (corpus {found.about.get('corpus')} -> {corpus}).",
            "a resumed run sees the same batches, so its text stays as it was.",
            "restore the text, or start a new run with --run FOLDER.",
        )
    with same_fate():
        if leads:
            drop_after(folder.metrics, found.step if found else -1)
    if found:
        return TrainState(**found.trees), found.step
    return jax.jit(lambda: create_state(run), out_shardings=shardings)(), 0


def _begin(run: Run, folder: RunFolder, done: int, live: Live, num_devices: int) -> Any:
    """Says and records where training begins; returns the TensorBoard writer, or None."""
    if done:
        live.message(f"resuming after step {done}")
    if jax.process_index() != 0:
        return None
    if done:
        record_event(folder, "resume", step=done, devices=num_devices)
    else:
        record_event(folder, "start", devices=num_devices)
    if not run.metrics.tensorboard:
        return None
    return tensorboard.open_writer(folder.path / "tensorboard", first_step=done + 1 if done else 0)


def _evaluations(folder: RunFolder, total: int) -> tuple[dict[str, float], dict[str, float]]:
    """What earlier starts of this run have measured before its first step, and after its last one."""
    before: dict[str, float] = {}
    after: dict[str, float] = {}
    for record in read_records(folder.metrics):
        if record["step"] == 0:
            before = {"bits_per_byte_before": record["bits_per_byte"]}
        elif record["step"] == total:  # a log line, then an evaluation
            after = {name: record[name] for name in ("heldout_loss", "bits_per_byte") if name in record}
    return before, after


def _run_stages(session: Session, state: TrainState, done: int) -> dict[str, float]:
    """All steps that are left; `done` of them are in `state`."""
    run, total = session.run, total_steps(session.run)
    before: dict[str, float] = {}
    after: dict[str, float] = {}
    first = 0
    for index, stage in enumerate(run.stages):
        last = first + stage.steps
        if done < last or index == len(run.stages) - 1:
            if done == first and index > 0:
                state = TrainState(state.params, start_stage(state.optimizer))
            heldout = _held_out(session, stage)
            if done == first == 0:
                bits = evaluate(state.params, heldout)["bits_per_byte"]
                session.live.message(f"{bits:.3f} bits per byte on held-out text before training")
                _record(session, {"step": 0, "stage": stage.name, "bits_per_byte": bits})
                before = {"bits_per_byte_before": bits}
            if done < last:
                state = _run_stage(session, state, index, first, done, heldout)
                done = last
            if done == total:
                after = evaluate(state.params, heldout)
                _record(session, {"step": total, "stage": stage.name, **after})
        first = last
    return before | after


def _run_stage(session: Session, state: TrainState, index: int, first: int, done: int, heldout: HeldOut) -> TrainState:
    """The steps of one stage after `done`; the stage's own first step is `first`."""
    run, stage, mesh = session.run, session.run.stages[index], session.mesh
    last = first + stage.steps
    batches = _batches(run, session.prepared, index)
    feed = Feed(mesh, stage)
    body = train_step(run, index)
    shardings = state_shardings(run, mesh)
    step_function = jax.jit(body, donate_argnums=0, out_shardings=(shardings, rules.sharding(mesh, ())))

    meter = Meter(len(mesh.devices.flat), chip_for_device_kind(mesh.devices.flat[0].device_kind))

    def finished(step: int, unlogged: list[About]) -> bool:
        session.watchdog.progress()
        meter.step()
        if step == done + 1:
            meter.start()  # it was compiled
        due = step % run.metrics.log_every_steps == 0 or step == last
        if due:
            _log(session, stage, step, unlogged, meter)
        return due

    flight = Flight(finished)
    source = feed.stream(batches, done - first, stage.steps)
    for step in range(done + 1, last + 1):
        began = time.perf_counter()
        batch = next(source)
        meter.waited(time.perf_counter() - began)
        state, about = step_function(state, feed.put(batch))
        flight.started(step, about)
        session.store.poll()
        if step % run.evaluation.every_steps == 0 and step < total_steps(run):
            flight.land()
            _record(session, {"step": step, "stage": stage.name, **evaluate(state.params, heldout)})
            session.watchdog.progress()
            meter.start()
        stop, due = _agree(session, step)
        if stop or due or step == last:
            flight.land()
            _save(session, state, stage, step, stop)
    return state


def _agree(session: Session, step: int) -> tuple[bool, bool]:
    """Whether all processes stop after this step, and whether they save. Several ask each other only now and then."""
    every = session.run.checkpoint.every_steps
    if jax.process_count() == 1 or step % AGREE_EVERY_STEPS == 0 or step % every == 0:
        return any_process(bool(session.stop)), any_process(session.store.due(step))
    return False, False


def _save(session: Session, state: TrainState, stage: Stage, step: int, stop: bool) -> None:
    """Saves, and leaves by `Preempted` where a signal came."""
    about = {"stage": stage.name, "corpus": session.prepared.folder.name, "step": step}
    session.store.save(step, state.trees(), about)
    if session.leads:
        record_event(session.folder, "checkpoint", step=step)
    if stop and step < total_steps(session.run):
        session.store.close()
        signal = any_text(session.stop.signal or "")
        if session.leads:
            record_event(session.folder, "preempted", step=step, signal=signal)
        raise Preempted(f"stopped after step {step}; the same command resumes there.")


def _log(session: Session, stage: Stage, step: int, unlogged: list[About], meter: Meter) -> None:
    """Writes the last step's numbers, and complains about every step since the last time that was not finite."""
    values = [{name: float(value) for name, value in about.items()} for about in jax.device_get(unlogged)]
    bad = [step - len(values) + 1 + i for i, v in enumerate(values) if not math.isfinite(v["loss"])]
    record = {"step": step, "stage": stage.name, **values[-1]}
    record["loss"] = float(np.mean([v["loss"] for v in values]))
    if "skipped" in record:
        record["skipped"] = int(sum(v["skipped"] for v in values))
    flops = training_flops(session.run.architecture, stage.sequence_length)
    work = Work(stage.batch_tokens, flops.causal * stage.batch_tokens, flops.full * stage.batch_tokens)
    record |= meter.read(work, total_steps(session.run) - step)
    _record(session, record)
    if not bad:
        return
    span = f"steps {bad[0]} to {bad[-1]}" if len(bad) > 1 else f"step {bad[0]}"
    if session.leads:
        record_event(session.folder, "not_finite", first=bad[0], last=bad[-1], steps=len(bad))
    if len(bad) < len(values) or len(values) == 1:
        session.live.message(f"the loss was not finite in {span}; the optimizer skipped what was not")
        return
    raise UserError(
        f"the loss was not finite in {span}.",
        "a single such step is skipped; when all steps between two log lines are, training has diverged.",
        "a lower --stages.0.schedule.peak-learning-rate in a new --run folder.",
    )


def _record(session: Session, record: dict[str, Any]) -> None:
    if session.leads:
        append_record(session.folder.metrics, record)
        session.live.step(record)
        if session.writer is not None:
            tensorboard.write(session.writer, record)


def _held_out(session: Session, stage: Stage) -> HeldOut:
    run, mesh = session.run, session.mesh
    token_bytes = load_tokenizer(session.prepared.tokenizer).token_bytes()
    return HeldOut(
        batches=heldout_batches(session.prepared, stage.sequence_length, stage.batch_size, run.evaluation.max_batches),
        token_bytes=token_bytes,
        feed=Feed(mesh, stage),
        step=jax.jit(evaluation_step(run, stage)),
    )


def _check_corpus(run: Run, prepared: Prepared) -> None:
    if prepared.vocab_size > run.architecture.vocab_size:
        raise UserError(
            f"the tokenizer has {prepared.vocab_size} pieces, the model {run.architecture.vocab_size}.",
            "every piece needs a row of the embedding.",
            f"--architecture.vocab-size {prepared.vocab_size}",
        )
    for index in range(len(run.stages)):  # too small a corpus is found before the first step
        _batches(run, prepared, index)


def _batches(run: Run, prepared: Prepared, index: int) -> Batches:
    """The batches of stage `index`; each stage shuffles by a seed of its own."""
    stage, seed = run.stages[index], run.seed + 1_000_003 * index
    return open_batches(prepared, stage.sequence_length, stage.batch_size, seed, stage.mixture)


def _keep_tokenizer(prepared: Prepared, folder: RunFolder) -> None:
    if not (folder.tokenizer / MODEL_FILE).exists():
        folder.tokenizer.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(prepared.tokenizer / MODEL_FILE, folder.tokenizer / MODEL_FILE)
