"""Distillation: labels against a brute force, exact work after every kill, every mesh, and every bad pair."""

import dataclasses
import shutil
import socket
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # plain_decoder.py and small_run.py are modules beside the tests
from plain_decoder import logits
from small_run import at_log, begin, changed, events, finish, losses, small_run, start, whole_events, write_text

from pomona.checkpoint.store import Store
from pomona.cli.main import main
from pomona.compress.distill import distill, student_run
from pomona.compress.labels import Builder, Wanted, build_labels, groups
from pomona.core.config import to_json
from pomona.core.errors import Preempted, UserError
from pomona.core.files import read_json, write_json
from pomona.core.run_folder import RunFolder
from pomona.data import token_files
from pomona.data.labels import label_folder, open_labels
from pomona.data.prepare import open_batches, prepare
from pomona.data.prepare import token_files as files_of
from pomona.data.tokenizer import MODEL_FILE, train_tokenizer
from pomona.metrics.records import read_records
from pomona.model.config import Architecture
from pomona.model.decoder import parameter_specs
from pomona.model.spec import initialize
from pomona.parallel.config import MeshConfig
from pomona.parallel.mesh import build_mesh
from pomona.train.config import at_stage, decide
from pomona.train.load import load_model
from pomona.train.objective_config import Distillation, check_objective
from pomona.train.objectives import objective_of
from pomona.train.origin import origin_of
from pomona.train.signals import StopRequest
from pomona.train.teacher import open_teacher
from pomona.train.watchdog import Watchdog

TEACHER = Architecture(400, 96, 2, 4, 2, 16, 192)
T = 32
# `small_run`, but distilled from the teacher beside the text.
DISTILL = """
from pathlib import Path
from pomona.compress.distill import distill, student_run
def small_run(cache, run=small_run):
    student = student_run(run(cache), Path(cache) / "teacher")
    objective = dataclasses.replace(student.objective, target="top1")
    distill(dataclasses.replace(student, objective=objective), Path(sys.argv[1]))
    sys.exit(0)
"""
ONE_STAGE = changed("stages=old(cache).stages[:1]")
KILLED_WHILE_LABELLING = """
import os, pomona.data.labels as labels
labels.write_json = lambda path, value, write=labels.write_json: (
    os.kill(os.getpid(), 9) if path.name == "00008.json" else write(path, value))
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Text in many small shards, and a teacher of random weights beside it."""
    path = tmp_path_factory.mktemp("pair")
    write_text(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_files, "SHARD_BYTES", 4000)
        prepared = prepare(small_run(path).data, lambda _: None)
    write_model(path / "teacher", small_run(path, architecture=TEACHER), prepared.tokenizer / MODEL_FILE)
    return path


def write_model(folder, run, tokenizer, seed=3):
    """A run folder with random weights, as if trained to the end of its last stage, whose rotary base counts."""
    place, step = RunFolder(folder), sum(stage.steps for stage in run.stages)
    write_json(place.config, to_json(run))
    place.tokenizer.mkdir()
    shutil.copyfile(tokenizer, place.tokenizer / MODEL_FILE)
    store = Store(place.checkpoints, run.checkpoint)
    params = initialize(parameter_specs(run.architecture), jax.random.key(seed))
    store.save(step, {"params": params}, {"stage": "context", "step": step})
    store.close()


def labels_of(cache):
    """Folder, source files and labels of the teacher."""
    prepared = prepare(small_run(cache).data, print)
    folder = label_folder(prepared.folder, origin_of(cache / "teacher").fingerprint, T)
    return folder, files_of(prepared, "a", heldout=False)


def documents(files):
    """(place of the first id, number of ids) of each."""
    return zip(files.starts.tolist(), files.lengths.tolist())


def contents(folder):
    return {path.name: path.read_bytes() for path in (folder / "a").iterdir()}


def build(cache, mesh, devices, stop=None):
    """Builds the labels of the first stage; returns the number of predictions that were missing."""
    run = decide(small_run(cache, mesh=mesh), "cpu", devices)
    folder, files = labels_of(cache)
    teacher = open_teacher(origin_of(cache / "teacher"), objective_of)
    built = build_mesh(mesh, jax.devices()[:devices])
    with Watchdog(600.0, lambda: None) as watchdog:
        builder = Builder(teacher, at_stage(run, 0).execution, built, stop or StopRequest(), watchdog, print)
        return build_labels(builder, [Wanted(folder, "a", files, run.stages[0])])


@pytest.fixture(scope="module")
def labelled(cache):
    """Labels that were made on one device; (folder, files)."""
    folder, files = labels_of(cache)
    assert len(groups(files, 8 * T)) > 2
    assert build(cache, MeshConfig(fsdp=1), 1) == int((files.lengths - 1).sum())
    return folder, files


def test_labels_are_what_the_teacher_expects_of_each_piece_alone(cache, labelled):
    folder, files = labelled
    assert (folder / "a" / "00000.labels").stat().st_size == 2 * files.shards[0].size
    labels, params = open_labels(folder, "a", files), load_model(cache / "teacher").params
    compared = unsure = 0
    for place, size in list(documents(files))[::4]:
        ids, found = files.read(place, size)[:-1], labels.read(place, size)[:-1]
        for piece in range(0, len(ids), T):
            scores = logits(params, ids[piece : piece + T], TEACHER, 1e6)
            best, second = np.sort(scores, axis=-1)[:, :-3:-1].T
            sure = best - second > 1e-4 * np.abs(best)
            wrong = found[piece : piece + T] != scores.argmax(-1)
            assert not (wrong & sure).any()
            compared, unsure = compared + len(sure), unsure + int((~sure).sum())
    assert compared > 2000 and unsure < compared // 100
    assert len(np.unique(labels.shards[0])) > 50, "a teacher that says many things"


def test_a_batch_carries_the_labels_of_its_tokens(cache, labelled):
    folder, files = labelled
    labels = open_labels(folder, "a", files)
    expected = {}
    for place, size in documents(files):
        for piece in range(0, size - 1, T):
            count = min(T, size - 1 - piece)
            key = files.read(place + piece, count + 1).tobytes()
            expected[key] = labels.read(place + piece, count)
    prepared = prepare(small_run(cache).data, print)
    teacher = origin_of(cache / "teacher").fingerprint
    batch = open_batches(prepared, T, 8, 0, teacher=teacher).batch(3)
    seen = 0
    for row in range(8):
        for segment in range(1, batch.segments[row].max() + 1):
            here = batch.segments[row] == segment
            ids = np.append(batch.tokens[row][here], batch.targets[row][here][-1]).astype(np.uint16)
            assert np.array_equal(batch.labels[row][here], expected[ids.tobytes()])
            seen += 1
    assert seen >= 8
    assert np.array_equal(batch.tokens, open_batches(prepared, T, 8, 0).batch(3).tokens), "labels change no batch"


@pytest.mark.parametrize("mesh", [MeshConfig(data=2, fsdp=2, seq=2), MeshConfig(fsdp=2, seq=2, tensor=2)], ids=str)
def test_every_mesh_computes_the_same_labels(cache, labelled, mesh):
    folder, files = labelled
    before = contents(folder)
    (folder / "a" / "00001.json").unlink()  # as if a build was killed before it was sealed
    spoilt = folder / "a" / "00007.labels"
    spoilt.write_bytes(spoilt.read_bytes()[::-1])
    made = build(cache, mesh, 8)
    assert 0 < made < int((files.lengths - 1).sum()), "only the groups with a damaged shard"
    after = contents(folder)
    differing = [
        np.sum(np.frombuffer(after[n], "<u2") != np.frombuffer(before[n], "<u2"))
        for n in sorted(before)
        if n.endswith("labels")
    ]
    assert sum(differing) <= 2, "the nearest of ties aside"
    for name, content in before.items():
        (folder / "a" / name).write_bytes(content)
    assert build(cache, mesh, 8) == 0


def test_a_request_to_stop_keeps_what_is_finished(cache, labelled):
    folder, _ = labelled
    before, stop = contents(folder), StopRequest()
    shutil.rmtree(folder)
    stop.signal = "SIGTERM"
    with pytest.raises(Preempted, match="the same command goes on"):
        build(cache, MeshConfig(fsdp=1), 1, stop)
    assert not list(folder.glob("a/*.labels"))
    build(cache, MeshConfig(fsdp=1), 1)
    assert contents(folder) == before


@pytest.fixture(scope="module")
def whole(cache, labelled, tmp_path_factory):
    """A student that nothing befell; the labels of the very program that the others compute them with."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    shutil.rmtree(labelled[0])
    finished(start(folder, cache, hook=DISTILL))
    return folder


def finished(done):
    assert done.returncode == 0, done.stderr
    return done


def test_killed_while_labelling_and_while_training_it_ends_as_if_nothing_happened(cache, labelled, whole, tmp_path):
    folder, _ = labelled
    labels, run, first = contents(folder), tmp_path / "run", folder / "a" / "00000.labels"
    shutil.rmtree(folder)
    assert start(run, cache, hook=KILLED_WHILE_LABELLING + DISTILL).returncode == -9
    assert sorted(path.name for path in first.parent.iterdir())[-3:] == ["00007.json", "00007.labels", "00008.labels"]
    written = first.stat().st_mtime_ns
    assert start(run, cache, hook=at_log(7, "os.kill(os.getpid(), 9)") + DISTILL).returncode == -9
    assert contents(folder) == labels and first.stat().st_mtime_ns == written
    done = finished(start(run, cache, hook=DISTILL))
    assert "resuming after step" in done.stdout
    assert [event["predictions"] > 0 for event in whole_events(run, "labels")] == [True], "of the second start alone"
    assert losses(run) == losses(whole)


def likeness(student, cache, files):
    """(how often a student expects what the teacher does, KL(teacher || student)), over the first pieces of some."""
    model, teacher = load_model(student), load_model(cache / "teacher")
    agreed, divergences = [], []
    for place, size in list(documents(files))[:30]:
        ids = files.read(place, size)[: min(size - 1, T)]
        ours, theirs = (
            log_softmax(logits(each.params, ids, each.run.architecture, each.stage.rope_base))
            for each in (model, teacher)
        )
        agreed.append(ours.argmax(-1) == theirs.argmax(-1))
        divergences.append((np.exp(theirs) * (theirs - ours)).sum(-1))
    return np.concatenate(agreed).mean(), np.concatenate(divergences).mean()


def log_softmax(scores):
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


@pytest.fixture(scope="module")
def fresh(cache, tmp_path_factory):
    """The student before its first step."""
    folder = tmp_path_factory.mktemp("fresh") / "run"
    write_model(folder, small_run(cache), cache / "teacher/tokenizer/tokenizer.model", seed=0)
    return folder


def test_a_student_comes_nearer_to_its_teacher(cache, labelled, whole, fresh):
    before, after = (likeness(student, cache, labelled[1])[0] for student in (fresh, whole))
    assert before < 0.02 and after > 0.05


@pytest.mark.slow
def test_a_student_learns_from_the_whole_distribution_too(cache, labelled, whole, fresh, tmp_path):
    hook = ONE_STAGE + DISTILL.replace("top1", "logits")
    finished(start(tmp_path / "run", cache, devices=2, hook=hook))
    assert "labels" not in events(tmp_path / "run")
    students = fresh, tmp_path / "run", whole
    before, after, by_top1 = (likeness(student, cache, labelled[1])[1] for student in students)
    assert after < 0.85 * before and after < by_top1, "nearer than longer training on the most likely token brings it"


@pytest.mark.slow
def test_two_processes_share_the_work(cache, labelled, whole, tmp_path):
    folder, _ = labelled
    shutil.rmtree(folder)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    job = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    hook = ONE_STAGE + DISTILL
    two = [begin(tmp_path / "run", cache, hook=hook, JAX_PROCESS_ID=str(index), **job) for index in (0, 1)]
    for process in two:
        finished(finish(process))
    assert events(tmp_path / "run").count("labels") == 1
    records = read_records(RunFolder(tmp_path / "run").metrics)
    np.testing.assert_allclose([r["loss"] for r in records if "gradient_norm" in r], losses(whole)[:8], atol=1e-5)


def test_the_command_line_makes_the_pair(cache, tmp_path, monkeypatch, capsys):
    from pomona.cli import distill_verb

    write_model(tmp_path / "student", small_run(cache), cache / "teacher/tokenizer/tokenizer.model")
    words = [str(tmp_path / "student"), "--teacher", str(cache / "teacher"), "--objective.share", "0.8"]
    run, path = distill_verb.resolve(words[0], words[1:])
    assert path == tmp_path / "student-distilled"
    assert (run.origin, run.objective.teacher) == (origin_of(tmp_path / "student"), origin_of(cache / "teacher"))
    assert (run.objective.share, run.stages, run.data) == (0.8, small_run(cache).stages, small_run(cache).data)
    run, path = distill_verb.resolve("tiny", words[1:3])
    assert (path, run.origin) == (Path("runs/tiny-distilled"), None)


BAD_PAIRS = {
    "no teacher": (["STUDENT"], "--teacher is missing"),
    "no student": (["nobody", "--teacher", "TEACHER"], "neither a run folder nor a recipe"),
    "no run": (["STUDENT", "--teacher", "nowhere"], "nowhere has no checkpoint"),
    "itself": (["STUDENT", "--teacher", "STUDENT"], "are both"),
    "vocabulary": (["STUDENT", "--teacher", "WIDE"], "a vocabulary of 400, the teacher"),
    "tokenizer": (["STUDENT", "--teacher", "FOREIGN"], "has the tokenizer"),
    "text": (["STUDENT", "--teacher", "TEACHER", "--data.tokenizer.path", "FOREIGN/tokenizer"], "the text is cut by"),
    "temperature": (
        ["STUDENT", "--teacher", "TEACHER", "--objective.temperature", "2"],
        "the most likely token has none",
    ),
    "share": (["STUDENT", "--teacher", "TEACHER", "--objective.share", "0"], "above 0 and at most 1"),
    "stages": (["STUDENT", "--teacher", "TEACHER", "--objective.stages", "3"], "objective.stages is 3"),
    "objective": (["STUDENT", "--teacher", "TEACHER", "objective:next-token"], "the objective is 'next-token'"),
    "taken": (["STUDENT", "--teacher", "TEACHER", "--run", "STUDENT"], "another configuration"),
}


@pytest.fixture(scope="module")
def models(cache, tmp_path_factory):
    """Folders by name: a student, the teacher, one with more rows, one with another tokenizer."""
    folder, tokenizer = tmp_path_factory.mktemp("models"), cache / "teacher" / "tokenizer" / MODEL_FILE
    write_model(folder / "STUDENT", small_run(cache), tokenizer)
    write_model(folder / "WIDE", small_run(cache, architecture=dataclasses.replace(TEACHER, vocab_size=512)), tokenizer)
    texts = [(cache / "text.txt.d" / f"{i}.txt").read_text()[::-1] for i in range(40)]
    train_tokenizer(texts, 400, 10**6, folder / "other")
    write_model(folder / "FOREIGN", small_run(cache, architecture=TEACHER), folder / "other" / MODEL_FILE)
    return {name: str(folder / name) for name in ("STUDENT", "WIDE", "FOREIGN")} | {"TEACHER": str(cache / "teacher")}


@pytest.mark.parametrize("name", BAD_PAIRS)
def test_a_bad_pair_is_one_clear_error(models, tmp_path, capsys, name):
    words, said = BAD_PAIRS[name]
    for short, long in models.items():
        words = [word.replace(short, long) for word in words]
    if "--run" not in words:
        words = [*words, "--run", str(tmp_path / "out")]
    assert main(["distill", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and "rule:" in error and "try:" in error
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_stale_labels_and_a_changed_teacher_are_refused(cache, labelled, tmp_path):
    run = student_run(small_run(cache, mesh=MeshConfig(fsdp=1, data=8)), cache / "teacher")
    folder, _ = labelled
    about = read_json(folder / "about.json")
    write_json(folder / "about.json", about | {"rope_base": 5e5})
    with pytest.raises(UserError, match=r"stale: rope_base was 500000\.0 and is 1000000\.0"):
        distill(run, tmp_path / "run")
    write_json(folder / "about.json", about)
    other = dataclasses.replace(run.objective.teacher, fingerprint="0" * 16)
    with pytest.raises(UserError, match="has changed"):
        distill(dataclasses.replace(run, objective=Distillation(other)), tmp_path / "other")


def test_the_loop_alone_wants_a_teacher_and_its_labels(cache, tmp_path):
    from pomona.train.loop import train

    with pytest.raises(UserError, match="no teacher is named"):
        train(small_run(cache, objective=Distillation()), tmp_path / "a")
    unknown = dataclasses.replace(origin_of(cache / "teacher"), fingerprint="1" * 16)
    with pytest.raises(UserError, match="lack shard 0"):
        train(small_run(cache, objective=Distillation(unknown)), tmp_path / "b")


def test_a_whole_config_is_checked():
    with pytest.raises(UserError, match="temperature 0"):
        check_objective(Distillation(target="logits", temperature=0.0), None, TEACHER, 1)
    check_objective(Distillation(target="logits", temperature=2.0), None, TEACHER, 1)
