"""Commands in turn: what is done is passed over, what was stopped goes on, what failed ends it. None of them trains."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pomona.launch.turns import Turn, left, take_turns

ROOT = Path(__file__).parents[2]
PROGRAM = """
import pathlib, sys, time
verb, folder, *how = sys.argv[1:]
pathlib.Path(folder).mkdir(exist_ok=True)
with open("typed.txt", "a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
if how == ["waits"] and not pathlib.Path("go-on").exists():
    pathlib.Path("waiting").touch()
    time.sleep(1000)
sys.exit(7 if how == ["fails"] and not pathlib.Path("go-on").exists() else 0)
"""
PATIENCE_SECONDS = 60


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("program.py").write_text(PROGRAM)
    return tmp_path


def three(second=()):
    """a; b, which reads a; what a says; and one that is always taken."""
    a, b = Path("a"), Path("b")
    return [
        Turn("first", ("make", "a"), a, budget_seconds=5.0),
        Turn("second", ("make", "b", *second), b, (a,)),
        Turn("samples", ("ask", "a"), a, (a,)),
        Turn("card", ("show", "b"), b, (b,), always=True),
    ]


def take(turns):
    said = []
    failed = take_turns(turns, Path("life.jsonl"), (sys.executable, "-S", "program.py"), said.append)
    return failed, said


def typed():
    """What was started since the last time this was asked."""
    path = Path("typed.txt")
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def records():
    return [json.loads(line) for line in Path("life.jsonl").read_text().splitlines()]


def test_each_is_taken_once_and_passed_over_when_it_is_done(place):
    failed, said = take(three())
    assert failed is None and typed() == ["make a", "make b", "ask a", "show b"]
    assert said[0] == "[1/4] first: pomona make a" and len(said) == 4
    assert [each["event"] for each in records()] == ["begin", "end"] * 4
    assert (records()[0]["budget_seconds"], records()[0]["makes"], records()[4]["makes"]) == (5.0, True, False)
    assert records()[1]["exit_code"] == 0 and records()[1]["seconds"] >= 0
    failed, said = take(three())
    assert failed is None and typed() == ["show b"], "the last one is always taken"
    assert said[0] == "[1/4] first is done: pomona make a"


def test_one_that_fails_ends_it_and_is_where_it_goes_on(place):
    failed, _ = take(three(("fails",)))
    assert failed[0].name == "second" and failed[1] == 7
    assert typed() == ["make a", "make b fails"]
    Path("go-on").touch()
    assert take(three(("fails",)))[0] is None
    assert typed() == ["make b fails", "ask a", "show b"]


def test_what_reads_something_that_was_made_anew_or_is_gone_is_taken_again(place):
    take(three())
    Path("a").rmdir()
    assert [turn.name for turn in left(three(), Path("life.jsonl"))] == ["first", "second", "samples", "card"]
    typed()
    take(three()[:1])
    assert typed() == ["make a"]
    assert [turn.name for turn in left(three(), Path("life.jsonl"))] == ["second", "samples", "card"]
    take(three())
    assert typed() == ["make b", "ask a", "show b"]


def test_another_command_for_the_same_folder_is_not_passed_over(place):
    take(three())
    turns = left(three(("otherwise",)), Path("life.jsonl"))
    assert [turn.name for turn in turns] == ["second", "card"]


def started(code):
    """A process of ours that takes the turns, once the second of them waits."""
    text = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]\n{code}"
    process = subprocess.Popen([sys.executable, "-c", text], env=os.environ | {"PYTHONPATH": str(ROOT)})
    end = time.monotonic() + PATIENCE_SECONDS
    while not Path("waiting").exists():
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.02)
    return process, [each.pid for each in psutil.Process(process.pid).children(recursive=True)]


def gone(pids):
    end = time.monotonic() + PATIENCE_SECONDS
    alive = lambda pid: psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(map(alive, pids))


TAKE = """
import test_turns
from pomona.core.errors import Preempted
try:
    test_turns.take(test_turns.three(("waits",)))
except Preempted:
    sys.exit(75)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_ends_the_command_too_and_the_same_again_goes_on(number, place):
    process, children = started(TAKE)
    assert children
    process.send_signal(number)
    assert process.wait(PATIENCE_SECONDS) == (-number if number == signal.SIGKILL else 75)
    assert gone(children), "nothing goes on writing behind our back"
    assert typed() == ["make a", "make b waits"]
    Path("go-on").touch()
    assert take(three(("waits",)))[0] is None
    assert typed() == ["make b waits", "ask a", "show b"]
