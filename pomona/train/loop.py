"""The training loop: one for every objective, from an empty folder or from wherever it was stopped."""

import collections
import contextlib
import dataclasses
import math
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pomona.checkpoint.store import Store
from pomona.core.chips import chip_for_device_kind
from pomona.core.errors import UserError
from pomona.core.run_folder import RunFolder, claim, record_event
from pomona.data.loader import Batches
from pomona.data.prepare import Prepared, heldout_batches, open_batches, prepare
from pomona.data.tokenizer import MODEL_FILE, load_tokenizer
from pomona.metrics import tensorboard
from pomona.metrics.live import Live
from pomona.metrics.rates import Meter, Work
from pomona.model.count import training_flops
from pomona.optim.build import start_stage
from pomona.parallel import rules
from pomona.parallel.compiler import compiler_options
from pomona.parallel.mesh import build_mesh, gather, host_names, num_slices, same_fate, start_processes
from pomona.train.begin import announce, begin, check_remote, check_shared, evaluations, open_courier
from pomona.train.config import (
    Run,
    Stage,
    at_stage,
    check_run,
    check_stage_mesh,
    decide,
    mesh_option,
    stage_after,
    total_steps,
)
from pomona.train.corruption import CorruptionCheck
from pomona.train.endings import check_delivered, roll_back, save
from pomona.train.evaluate import HeldOut, evaluate
from pomona.train.feed import Feed
from pomona.train.flight import About, Flight
from pomona.train.objectives import objective_of
from pomona.train.rollback import LossWatch, RollBack, passed_over
from pomona.train.session import Place, Session
from pomona.train.signals import stop_requests
from pomona.train.state import TrainState, move, state_shardings
from pomona.train.step import evaluation_step, train_step
from pomona.train.watchdog import Watchdog

AGREE_EVERY_STEPS = 10  # how often several processes ask each other whether to stop or to save


def train(run: Run, path: Path, live: Live | None = None) -> dict[str, float]:
    """Trains a run in a folder, or goes on where the newest sound checkpoint of the folder or its remote tier is.

    Returns:
        The first and last evaluation: bits_per_byte_before, bits_per_byte, heldout_loss.

    Raises:
        UserError: anything in the configuration, the data or the folder that cannot work, or training that diverged,
            or a machine that computes wrong.
        Preempted: a signal asked to stop; the state is saved.
    """
    check_run(run)
    start_processes()
    devices = jax.devices()
    asked, run = run, decide(run, devices[0].platform, len(devices))
    meshes = []
    for index in range(len(run.stages)):  # an impossible mesh is found before anything is written
        check_stage_mesh(run, index, len(devices))
        meshes.append(build_mesh(at_stage(run, index).mesh, devices, mesh_option(run, index)))
    folder, leads = RunFolder(path), jax.process_index() == 0
    live = live or Live(total_steps(run), silent=not leads)
    with same_fate():
        if run.metrics.tensorboard:
            tensorboard.check_installed()
        check_remote(asked)
        if leads:
            claim(folder, asked)
    hosts = tuple(host_names())
    with same_fate():
        check_shared(folder, hosts)
        prepared = prepare(run.data, live.message)
        _check_corpus(run, prepared)
        if leads:
            _keep_tokenizer(prepared, folder)
    stalled = lambda: record_event(folder, "stalled", process=jax.process_index())
    with (
        stop_requests() as stop,
        Watchdog(run.stall_seconds, stalled) as watchdog,
        live,
    ):
        counter = collections.Counter[str]()
        place = Place(run, asked, folder, tuple(meshes), prepared, live, watchdog, stop, hosts, counter)
        while (result := _go_on(place)) is None:
            pass  # rolled back
        return result


def _go_on(place: Place) -> dict[str, float] | None:
    """From the newest checkpoint to the end; None after bad steps, which the next call goes on before."""
    total = total_steps(place.run)
    place.watchdog.compiling()
    begun = begin(place)
    before, after = evaluations(place.folder, total)
    with contextlib.ExitStack() as closing:  # what was opened last is closed first
        courier = open_courier(place, begun)
        if courier is not None:
            closing.callback(courier.close)
        if begun.step == total and after:
            place.live.message(f"all {total} steps of this run are done already; nothing was changed")
            if courier is not None and total not in begun.remote_steps:
                courier.offer(total, must=True)
            check_delivered(place, courier, total)
            return before | after
        account, writer = announce(place, begun)
        if writer is not None:
            closing.callback(writer.close)
        store = Store(place.folder.checkpoints, place.run.checkpoint, courier=courier)
        closing.callback(store.close)
        watch = LossWatch(place.run.faults, begun.trend, begun.step)
        parts = {"store": store, "courier": courier, "writer": writer, "watch": watch, "account": account}
        session = Session(**vars(place), **parts, rollbacks=begun.rollbacks)
        try:
            result = before | _run_stages(session, begun.state, begun.step)
        except RollBack as fault:
            roll_back(session, fault)
            return None
        store.seal()
        place.event("end", step=total, **result)
        check_delivered(place, courier, total)
        return result


def _run_stages(session: Session, state: TrainState, done: int) -> dict[str, float]:
    """All steps that are left; `done` of them are in `state`."""
    run, total = session.run, total_steps(session.run)
    before: dict[str, float] = {}
    after: dict[str, float] = {}
    for index in range(stage_after(run, done), len(run.stages)):
        stage, first = run.stages[index], sum(stage.steps for stage in run.stages[:index])
        with jax.set_mesh(session.meshes[index]):
            session.watchdog.compiling()
            state = move(state, run, session.meshes[index])
            if done == first and index > 0:
                state = TrainState(state.params, start_stage(state.optimizer))
                session.watch.start_stage()
            frozen = objective_of(run).load_frozen(session.meshes[index])
            heldout = _held_out(session, index, frozen)
            if done == first == 0:
                bits = evaluate(state, heldout)["bits_per_byte"]
                session.live.message(f"{bits:.3f} bits per byte on held-out text before training")
                session.record({"step": 0, "stage": stage.name, "bits_per_byte": bits})
                before = {"bits_per_byte_before": bits}
            if done < first + stage.steps:
                state = _run_stage(session, state, index, first, done, heldout)
                done = first + stage.steps
            if done == total:
                after = evaluate(state, heldout)
                session.record({"step": total, "stage": stage.name, **after})
    return before | after


def _run_stage(session: Session, state: TrainState, index: int, first: int, done: int, heldout: HeldOut) -> TrainState:
    """The steps of one stage after `done`; the stage's own first step is `first`."""
    run, stage, mesh = session.run, session.run.stages[index], session.meshes[index]
    last = first + stage.steps
    batches = _batches(run, session.prepared, index, passed_over(session.rollbacks, first, stage.steps))
    feed = Feed(mesh, stage)
    step_function, check = _compiled(session, index, heldout.frozen)
    meter = Meter(len(mesh.devices.flat), chip_for_device_kind(mesh.devices.flat[0].device_kind))

    def finished(step: int, unlogged: list[About]) -> bool:
        session.watchdog.progress()
        meter.step()
        if step == done + 1:
            session.no_step(meter)  # it was compiled
        session.clock.step()
        due = step % run.metrics.log_every_steps == 0 or step == last
        if due:
            _log(session, stage, step, unlogged, meter)
        return due

    flight = Flight(finished)
    source = feed.stream(batches, done - first, stage.steps)
    session.watchdog.compiling()
    for step in range(done + 1, last + 1):
        session.host_times.begin()
        batch = next(source)
        meter.waited(session.host_times.passed())
        inputs = feed.put(batch)
        session.host_times.ready()
        if check.due(step):
            flight.land()
            session.watchdog.compiling()
            state, about = check.compute(step, step_function, state, inputs, session.clock.restart)
        else:
            state, about = step_function(state, inputs)
        flight.started(step, about)
        session.poll()
        if step % run.evaluation.every_steps == 0 and step < total_steps(run):
            flight.land()
            session.record({"step": step, "stage": stage.name, **evaluate(state, heldout)})
            session.no_step(meter)
        stop, due = _agree(session, step)
        if stop or due or step == last:
            flight.land()
            session.watch.look(step, list(map(_loss, jax.device_get(flight.unlogged))))
            save(session, state, stage, step, stop)
    return state


def _compiled(session: Session, index: int, frozen: Any) -> tuple[Callable[..., Any], CorruptionCheck]:
    """The step of a stage, which overwrites the state it is given, and what computes it twice now and then."""
    run, mesh = session.run, session.meshes[index]
    shardings, devices = state_shardings(run, mesh), list(mesh.devices.flat)
    function = jax.jit(
        train_step(run, index),
        donate_argnums=0,
        out_shardings=(shardings, rules.sharding(mesh, ())),
        compiler_options=compiler_options(
            devices[0].device_kind, num_slices(devices), session.run.faults.compiler_checks
        )
        or None,
    )
    told = session.hosts, session.corruptions, session.report_corruption
    step = function if frozen is None else partial(function, frozen=frozen)
    return step, CorruptionCheck(run.faults, mesh, shardings, *told)


def _agree(session: Session, step: int) -> tuple[bool, bool]:
    """Whether all processes stop after this step, and whether they save. Several ask each other only now and then."""
    stop, due = bool(session.stop), session.store.due(step)
    if jax.process_count() == 1:
        return stop, due
    if step % AGREE_EVERY_STEPS and step % session.run.checkpoint.every_steps:
        return False, False
    everyone = gather([stop, due, *session.host_times.take()])
    session.compare_hosts(step, everyone[:, 2].tolist(), float(np.median(everyone[:, 3])))
    return bool(everyone[:, 0].any()), bool(everyone[:, 1].any())


def _log(session: Session, stage: Stage, step: int, unlogged: list[About], meter: Meter) -> None:
    """Writes the last step's numbers, complains about every step since the last time that was not finite, and judges.

    Raises:
        RollBack: too many bad steps in a row.
    """
    values = [{name: float(value) for name, value in about.items()} for about in jax.device_get(unlogged)]
    losses = list(map(_loss, values))
    bad = [number for number, loss in enumerate(losses, start=step - len(losses) + 1) if not math.isfinite(loss)]
    record = {"step": step, "stage": stage.name, **values[-1]}
    record["loss"] = float(np.mean([v["loss"] for v in values]))
    if "skipped" in record:
        record["skipped"] = int(sum(v["skipped"] for v in values))
    flops = training_flops(session.run.architecture, stage.sequence_length)
    work = Work(stage.batch_tokens, flops.causal * stage.batch_tokens, flops.full * stage.batch_tokens)
    record |= meter.read(work, total_steps(session.run) - step)
    session.record(record | session.measured())
    if bad:
        span = f"steps {bad[0]} to {bad[-1]}" if len(bad) > 1 else f"step {bad[0]}"
        text = f"the loss or its gradient was not finite in {span}; the optimizer skipped what was not"
        session.tell(text, "not_finite", first=bad[0], last=bad[-1], steps=len(bad))
    session.watch.look(step, losses)


def _loss(about: dict[str, float]) -> float:
    """What a step is judged by: its loss, and where the gradient is not finite, nothing finite either."""
    return about["loss"] if math.isfinite(about["gradient_norm"]) else math.nan


def _held_out(session: Session, index: int, frozen: Any) -> HeldOut:
    run, stage = session.run, session.run.stages[index]
    token_bytes = load_tokenizer(session.prepared.tokenizer).token_bytes()
    return HeldOut(
        batches=heldout_batches(session.prepared, stage.sequence_length, stage.batch_size, run.evaluation.max_batches),
        token_bytes=token_bytes,
        feed=Feed(session.meshes[index], stage),
        step=jax.jit(evaluation_step(run, index)),
        frozen=frozen,
    )


def _check_corpus(run: Run, prepared: Prepared) -> None:
    if prepared.vocab_size > run.architecture.vocab_size:
        raise UserError(
            f"the tokenizer has {prepared.vocab_size} pieces, the model {run.architecture.vocab_size}.",
            "every piece needs a row of the embedding.",
            f"--architecture.vocab-size {prepared.vocab_size}",
        )
    for index in range(len(run.stages)):  # too small a corpus is found before the first step
        _batches(run, prepared, index, ())


def _batches(run: Run, prepared: Prepared, index: int, skipped: tuple[tuple[int, int], ...]) -> Batches:
    """The batches of stage `index`; each stage shuffles by a seed of its own."""
    stage, seed = run.stages[index], run.seed + 1_000_003 * index
    batches = open_batches(prepared, stage.sequence_length, stage.batch_size, seed, stage.mixture)
    return dataclasses.replace(batches, skipped=skipped)


def _keep_tokenizer(prepared: Prepared, folder: RunFolder) -> None:
    if not (folder.tokenizer / MODEL_FILE).exists():
        folder.tokenizer.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(prepared.tokenizer / MODEL_FILE, folder.tokenizer / MODEL_FILE)
