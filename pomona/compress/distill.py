"""Distillation: a student learns from a teacher's run folder, by the one loop, into a run folder of its own.

The teacher's most likely tokens are computed once for a corpus and kept beside it (`data.labels`); training then reads
them with the text, and needs the teacher no more.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import jax

from pomona.compress.labels import Builder, Wanted, build_labels
from pomona.compress.parent import dense_parent
from pomona.core.errors import UserError
from pomona.core.run_folder import Origin, RunFolder, claim, record_event
from pomona.data.labels import label_folder
from pomona.data.prepare import Prepared, one_at_a_time, prepare, source_weights, token_files
from pomona.data.tokenizer import load_tokenizer
from pomona.metrics.live import Live
from pomona.parallel.mesh import build_mesh, same_fate, start_processes
from pomona.train.config import Run, at_stage, check_run, check_stage_mesh, decide, mesh_option, total_steps
from pomona.train.loop import train
from pomona.train.objective_config import Distillation, check_teacher
from pomona.train.objectives import objective_of
from pomona.train.origin import check_origin, origin_of
from pomona.train.signals import stop_requests
from pomona.train.teacher import Teacher, open_teacher
from pomona.train.watchdog import Watchdog


def student_run(student: Path | Run, teacher: Path) -> Run:
    """How a student is distilled by default: through the first of its own stages, the later ones without the teacher.

    Args:
        student: a run folder, whose newest checkpoint is where training begins; or a run, to begin at random weights.

    Raises:
        UserError: no run folder, or one without a checkpoint, or a student that is its own teacher.
    """
    origin = None
    if isinstance(student, Path):
        if student.resolve() == teacher.resolve():
            raise UserError(
                f"the student and the teacher are both {student}.",
                "a student learns from another run.",
                "--teacher with the folder of the parent.",
            )
        run, origin = dense_parent(student, None)
    else:
        run = student
    kept = run.objective if isinstance(run.objective, Distillation) else Distillation()
    return dataclasses.replace(
        run,
        objective=dataclasses.replace(kept, teacher=origin_of(teacher)),
        origin=origin,
        checkpoint=dataclasses.replace(run.checkpoint, remote=None),  # that of the student holds the student
    )


def distill(run: Run, path: Path) -> dict[str, float]:
    """Computes the labels that are missing, then trains, or goes on with either.

    Returns:
        As `train` does.

    Raises:
        UserError: a teacher with another tokenizer or vocabulary, text with another tokenizer, stale labels, or what
            `train` refuses.
        Preempted: a signal asked to stop; the same command goes on.
    """
    objective = run.objective
    if not isinstance(objective, Distillation):
        raise UserError(
            f"the objective is {objective.kind!r}.",
            "a student is trained by what its teacher expects.",
            "pomona train, to learn from the text alone.",
        )
    check_run(run)
    check_teacher(objective)
    assert objective.teacher is not None
    start_processes()
    leads, folder = jax.process_index() == 0, RunFolder(path)
    devices = jax.devices()
    decided = decide(run, devices[0].platform, len(devices))
    with same_fate():
        teacher = open_teacher(objective.teacher, objective_of)
        _check_pair(run, teacher)
        for index in range(objective.stages):  # the teacher is laid on the student's meshes
            check_stage_mesh(decided, index, len(devices))
            larger = dataclasses.replace(decided, architecture=teacher.run.architecture)
            check_stage_mesh(larger, index, len(devices))
        if leads:
            claim(folder, run)
    live = Live(total_steps(run), silent=not leads)
    with same_fate():
        prepared = prepare(run.data, live.message)
        _check_text(run, prepared)
    if objective.target == "top1":
        _label(decided, teacher, prepared, folder, live.message)
    return train(run, path)


def _label(run: Run, teacher: Teacher, prepared: Prepared, folder: RunFolder, report: Callable[[str], None]) -> None:
    """Computes the labels of every distilled stage that are missing, one job at a time."""
    devices, leads = jax.devices(), jax.process_index() == 0
    assert isinstance(run.objective, Distillation)
    tell = lambda name, **details: record_event(folder, name, **details) if leads else None
    stalled = lambda: record_event(folder, "stalled", process=jax.process_index())
    for index in range(run.objective.stages):
        here, stage = at_stage(run, index), run.stages[index]
        target = label_folder(prepared.folder, teacher.origin.fingerprint, stage.sequence_length)
        # A process that waits for its turn has not stalled, and Ctrl-C ends it.
        with (
            one_at_a_time(target, report, among=leads),
            stop_requests() as stop,
            Watchdog(run.stall_seconds, stalled) as watchdog,
        ):
            mesh = build_mesh(here.mesh, devices, mesh_option(run, index))
            builder = Builder(teacher, here.execution, mesh, stop, watchdog, report)
            names = source_weights(prepared, stage.mixture)
            wanted = [Wanted(target, name, token_files(prepared, name, heldout=False), stage) for name in names]
            began = time.monotonic()
            if made := build_labels(builder, wanted):
                seconds = round(time.monotonic() - began, 3)
                tell("labels", stage=stage.name, predictions=made, seconds=seconds, labels=str(target))


def _check_pair(run: Run, teacher: Teacher) -> None:
    """Raises `UserError` for a teacher that is gone, or whose tokens are not the student's."""
    check_origin(teacher.origin)
    theirs = _tokenizer(teacher.origin)
    if run.origin is not None:
        check_origin(run.origin)
        ours = _tokenizer(run.origin)
        if ours != theirs:
            raise UserError(
                f"the student {run.origin.run} has the tokenizer {ours}, the teacher {teacher.origin.run} {theirs}.",
                "a teacher's tokens mean something to a student with the same tokenizer only.",
                "a teacher that was trained with the student's tokenizer: --data.tokenizer.path "
                f"{RunFolder(Path(run.origin.run)).tokenizer}",
            )
    sizes = run.architecture.vocab_size, teacher.run.architecture.vocab_size
    if sizes[0] != sizes[1]:
        raise UserError(
            f"the student has a vocabulary of {sizes[0]}, the teacher {teacher.origin.run} one of {sizes[1]}.",
            "what a teacher expects is a row of the student's table too, so both have as many.",
            f"--architecture.vocab-size {sizes[1]}" if run.origin is None else "another teacher, or another student.",
        )


def _check_text(run: Run, prepared: Prepared) -> None:
    """Raises `UserError` for text whose tokens are not the teacher's, and so not the student's."""
    assert isinstance(run.objective, Distillation) and run.objective.teacher is not None
    teacher, ours = run.objective.teacher, load_tokenizer(prepared.tokenizer).fingerprint
    if (theirs := _tokenizer(teacher)) != ours:
        raise UserError(
            f"the text is cut by the tokenizer {ours}, the teacher {teacher.run} has {theirs}.",
            "a student learns from a teacher on text of their common tokenizer.",
            f"--data.tokenizer.path {RunFolder(Path(teacher.run)).tokenizer}",
        )


def _tokenizer(origin: Origin) -> str:
    return load_tokenizer(RunFolder(Path(origin.run)).tokenizer).fingerprint
