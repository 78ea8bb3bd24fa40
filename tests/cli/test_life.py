"""A model's life as a person types it: train, generate, export, import, and go wrong with a run that exists."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pomona.cli.main import main

ROOT = Path(__file__).parents[2]
SHORT = [
    *("--data.sources.0.address", "texts", "--data.workers", "1", "--data.cache", "cache", "--evaluation.max-batches"),
    *("2", "--data.tokenizer.vocab-size", "320", "--architecture.vocab-size", "320", "--stages.0.sequence-length"),
    *("32", "--stages.0.batch-size", "8", "--stages.0.schedule.warmup-steps", "1"),
]
TRAIN = ["train", "tiny", "--run", "mine", "--stages.0.steps", "3", *SHORT]


def pomona(*arguments, cwd):
    """The command in a process of its own, on one device."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    command = [sys.executable, "-m", "pomona.cli.main", *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working folder with texts and a finished run in `mine`."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "texts").mkdir()
    for i in range(60):
        words = " ".join(f"the {i + k} foxes jump over {k} lazy dogs" for k in range(12))
        (folder / "texts" / f"{i}.txt").write_text(words)
    printed = pomona(*TRAIN, cwd=folder)
    assert "bits per byte on held-out text" in printed and 'next: pomona generate mine "def main():"' in printed
    return folder


@pytest.mark.slow
def test_a_model_speaks_the_same_after_export_and_import(place):
    words = ("--temperature", "0", "--max-tokens", "8")
    said = pomona("generate", "mine", "the 3 foxes", "the", *words, cwd=place)
    assert said.startswith("the 3 foxes") and "\n---\nthe" in said
    assert "written to mine-hf" in pomona("export", "mine", cwd=place)
    assert "written to back" in pomona("import", "hf", "mine-hf", "--run", "back", cwd=place)
    assert pomona("generate", "back", "the 3 foxes", "the", *words, cwd=place) == said


@pytest.mark.slow
def test_a_run_that_begins_at_another_s_model_has_it_on_its_card(place):
    """What `generate --keep` said, the exact command and the other run are on the card of a run that trains further."""
    said = pomona("generate", "mine", "the 3 foxes", "--max-tokens", "8", "--keep", cwd=place)
    further = ["train", "tiny", "--run", "further", "--from", "mine", "--stages.0.steps", "2", *SHORT]
    printed = pomona(*further, cwd=place)
    shown = pomona("card", "further", cwd=place)
    assert "mine: trained\nfurther: trained further\nwritten to further/card.html" in shown
    parent, child = json.loads((place / "further" / "card.json").read_text())
    events = [json.loads(line) for line in (place / "mine" / "events.jsonl").read_text().splitlines()]
    assert (
        parent["bits_per_byte"] == events[-1]["bits_per_byte"] == pytest.approx(child["bits_per_byte_before"], rel=1e-5)
    )
    assert f"(before training: {child['bits_per_byte_before']:.3f})" in printed
    assert parent["commands"] == [shlex.join(["pomona", *TRAIN])] and child["origin_state"] is None
    assert child["commands"] == [shlex.join(["pomona", *further])]
    (sample,) = parent["samples"]
    assert said == sample["prompt"] + sample["text"] + "\n" and sample["tokens_per_second"] > 0
    assert parent["versions"]["jax"] and parent["weights_bytes"] > 0 and parent["steps_done"] == 3
    assert "all 2 steps of this run are done already" in pomona(*further, cwd=place)


def test_a_gguf_file_is_written_once(place):
    printed = pomona("export", "mine", "--format", "gguf", "--dtype", "float16", cwd=place)
    assert printed.startswith("written to mine.gguf\nnext: llama-cli -m mine.gguf")
    assert "the feed-forward dimension, 704" in printed and "--pad-ffn" in printed
    assert "K-quants" not in pomona("export", "mine", "--format=gguf", "--pad-ffn", "--output=wide.gguf", cwd=place)
    assert (place / "mine.gguf").read_bytes()[:4] == (place / "wide.gguf").read_bytes()[:4] == b"GGUF"


def test_what_a_finished_run_answers(place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    records = (place / "mine" / "metrics.jsonl").read_bytes()
    assert main(TRAIN) == 0
    printed = capsys.readouterr().out
    assert "all 3 steps of this run are done already" in printed and "(before training: " in printed
    assert (place / "mine" / "metrics.jsonl").read_bytes() == records
    assert main(["generate", "mine", "--max-tokens", "2"]) == 0, "nothing is a prompt too"


MISTAKES = {
    "another configuration": ([*TRAIN, "--seed", "1"], "another configuration (seed: 0 -> 1)", "--run"),
    "no run folder": (["train", "tiny", "--run", "texts", *TRAIN[4:]], "texts exists and is not a run", "--run"),
    "no text": ([*TRAIN, "--run=new", "--data.sources.0.address", "nowhere"], "no text at 'nowhere'", "ls nowhere"),
    "no such step": (["generate", "mine", "the", "--step", "99"], "no checkpoint of step 99", "one of: 3"),
    "an existing target of export": (["export", "mine", "--output", "texts"], "texts exists already", "another folder"),
    "an existing GGUF file": (["export", "mine", "--format=gguf", "--output", "texts"], "texts exists", "another name"),
    "an option of gguf for hf": (["export", "mine", "--dtype", "float16"], "float16 with --format hf", "leave it out"),
    "an existing target of import": (["import", "hf", "x", "--run", "mine"], "mine exists already", "another folder"),
    "an unreasonable temperature": (["generate", "mine", "the", "--temperature", "-1"], "temperature", "--temperature"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_beside_a_run_is_three_lines_and_leaves_it_alone(case, place, capsys, monkeypatch):
    arguments, problem, advice = MISTAKES[case]
    monkeypatch.chdir(place)
    if "--run=new" in arguments:
        arguments = [word for word in arguments if word not in ("--run", "mine")]
    state = lambda: {p: p.stat().st_mtime_ns for p in sorted((place / "mine").rglob("*"))}
    before = state()
    assert main(arguments) == 2
    printed = capsys.readouterr().err
    what, rule, fix = printed.strip().splitlines()
    assert what.startswith("pomona: ") and rule.startswith("  rule: ") and fix.startswith("  try:  ")
    assert problem in what and advice in fix, printed
    assert state() == before


def test_a_preempted_command_ends_with_75_and_goes_on_when_repeated(place):
    """The signal comes while the run is in progress: when it says its first loss."""
    command = [sys.executable, "-m", "pomona.cli.main", "train", "tiny", "--run", "long", *SHORT]
    command += ["--stages.0.steps", "100000", "--metrics.log-every-steps", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    for before in ("before training", "resuming after step"):
        running = subprocess.Popen(command, cwd=place, env=environment, **pipes)
        printed = ""
        for line in running.stdout:
            printed += line
            if "loss" in line:
                break
        running.send_signal(signal.SIGTERM)
        _, errors = running.communicate(timeout=300)
        assert running.returncode == 75, errors
        assert errors.startswith("pomona: stopped after step ") and "Traceback" not in errors
        assert before in printed
