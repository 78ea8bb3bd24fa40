"""What the local launcher does about processes that end, break, hang or are left behind. None of them trains."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pomona.core.errors import Preempted
from pomona.launch import local
from pomona.launch.local import Job, run_job

ROOT = Path(__file__).parents[2]
INDEX = "import os, signal, sys, time, pathlib; index = int(os.environ['JAX_PROCESS_ID'])\n"
WAIT = "time.sleep(1000)\n"
PATIENCE_SECONDS = 120


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(local, "LEAVE_SECONDS", 1.0)
    monkeypatch.setattr(local, "LONGEST_BACKOFF_SECONDS", 0.1)


def job(folder, code, processes=3, **options):
    folder.mkdir(exist_ok=True)
    return Job((sys.executable, "-S", "-c", INDEX + code), processes, folder, **options)


def starts(folder):
    """A line of code that records each start of a process, and how many there have been of one."""
    record = f"pathlib.Path({str(folder)!r}, f'start-{{index}}-{{time.time_ns()}}-{{os.getpid()}}').touch()\n"
    count = f"attempt = len(list(pathlib.Path({str(folder)!r}).glob(f'start-{{index}}-*')))\n"
    return record + count


def pids(folder):
    return [int(path.name.split("-")[-1]) for path in Path(folder).glob("start-*")]


def alive(folder):
    return [pid for pid in pids(folder) if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]


def wait_until(condition):
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def test_each_process_knows_its_place_and_has_one_device(tmp_path):
    names = ["JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "JAX_LOCAL_DEVICE_IDS", "XLA_FLAGS"]
    code = f"import json; pathlib.Path({str(tmp_path)!r}, f'{{index}}.json').write_text(json.dumps(dict(os.environ)))"
    assert run_job(job(tmp_path / "logs", code)) == 0
    told = [json.loads((tmp_path / f"{index}.json").read_text()) for index in range(3)]
    first, *others = [[each[name] for name in names] for each in told]
    assert [each["JAX_PROCESS_ID"] for each in told] == [each["JAX_LOCAL_DEVICE_IDS"] for each in told] == list("012")
    assert all(each[0] == first[0] and each[1] == "3" for each in others), "one coordinator"
    assert first[0].startswith("localhost:")
    assert first[-1].endswith("--xla_force_host_platform_device_count=1"), "the last one counts, not the tests' eight"


def test_process_0_speaks_and_the_others_are_kept(tmp_path, capfd):
    code = "print('said by', index); print('complained', index, file=sys.stderr)"
    assert run_job(job(tmp_path, code)) == 0
    out, err = capfd.readouterr()
    assert (out, err) == ("said by 0\n", "complained 0\n")
    assert (tmp_path / "process-2.txt").read_text() == "said by 2\ncomplained 2\n"
    assert not (tmp_path / "process-0.txt").exists()


def test_a_death_takes_the_others_along_and_all_start_again(tmp_path, capfd):
    """The others neither leave by themselves nor on SIGTERM, as in a collective that one has left."""
    code = starts(tmp_path) + "attempt > 1 and sys.exit(0)\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    code += f"while index == 1 and len(list(pathlib.Path({str(tmp_path)!r}).glob('start-*'))) < 3: time.sleep(0.02)\n"
    code += "index == 1 and os.kill(os.getpid(), 9)\n" + WAIT
    told = []
    assert run_job(job(tmp_path / "logs", code), lambda *about: told.append(about)) == 0
    assert told == [(137, 1)]
    assert len(pids(tmp_path)) == 6 and not alive(tmp_path)
    assert "process 1 of 3 ended with signal SIGKILL; all start again" in capfd.readouterr().err


@pytest.mark.parametrize("code", [1, 75, 124])
def test_restarts_are_counted_and_the_last_code_is_ours(code, tmp_path, capfd):
    text = starts(tmp_path) + f"print('why', attempt, file=sys.stderr); sys.exit({code} if index == 2 else 0)"
    assert run_job(job(tmp_path / "logs", text, max_restarts=2)) == code
    assert len(list(tmp_path.glob("start-2-*"))) == 3
    err = capfd.readouterr().err
    assert "restart 2 of 2" in err and "which is --max-restarts" in err
    assert "[2] why 3" in err and str(tmp_path / "logs" / "process-2.txt") in err


@pytest.mark.parametrize("finder", [0, 2])
def test_a_mistake_of_the_user_is_not_tried_twice(finder, tmp_path, capfd):
    """Process 0 says it for all. It may need a moment for that, and what else breaks then is no reason to go on."""
    text = starts(tmp_path) + f"index == {finder} and sys.exit(2)\n"
    text += "index == 1 and sys.exit(1)\ntime.sleep(0.3)\nprint('pomona: a mistake', file=sys.stderr)\nsys.exit(2)"
    assert run_job(job(tmp_path / "logs", text)) == 2
    assert len(list(tmp_path.glob(f"start-{finder}-*"))) == 1
    assert "start again" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("codes", "index"),
    [([1, 0, 2], 2), ([1, 124, -9], 1), ([1, -9, 1], 1), ([75, 1, 0], 1), ([0, 75, 75], 1), ([0, 0, 0], 0)],
)
def test_of_several_that_have_ended_the_one_that_says_most_is_told(codes, index):
    """A mistake, a stall, a death, a crash (which may be another one's death), a preemption."""
    assert local._telling(codes) == index


LAUNCHER = """\
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from pomona.core.errors import Preempted
from pomona.launch import local
local.LEAVE_SECONDS = 1.0
try:
    sys.exit(local.run_job(local.Job((sys.executable, '-S', '-c', {code!r}), 3, Path({logs!r}), grace_seconds={grace})))
except Preempted:
    sys.exit(75)
except KeyboardInterrupt:
    sys.exit(130)
"""


def begin(folder, code, grace=60.0):
    """A launcher in a process of its own, once its three processes have started."""
    (folder / "logs").mkdir()
    text = LAUNCHER.format(root=str(ROOT), code=INDEX + code, logs=str(folder / "logs"), grace=grace)
    launcher = subprocess.Popen([sys.executable, "-c", text], stderr=subprocess.PIPE, text=True)
    wait_until(lambda: len(pids(folder)) >= 3 or launcher.poll() is not None)
    return launcher


def ready(folder):
    """A line of code that records a start once SIGTERM is handled: ended by 75, as a run that has saved."""
    return "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n" + starts(folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_means_preemption(number, tmp_path):
    launcher = begin(tmp_path, ready(tmp_path) + WAIT)
    launcher.send_signal(number)
    _, err = launcher.communicate(timeout=PATIENCE_SECONDS)
    assert launcher.returncode == 75, err
    assert len(pids(tmp_path)) == 3 and not alive(tmp_path), "not started again"


def test_who_does_not_leave_in_time_is_killed(tmp_path):
    launcher = begin(tmp_path, "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + starts(tmp_path) + WAIT, grace=0.5)
    launcher.terminate()
    launcher.communicate(timeout=PATIENCE_SECONDS)
    assert launcher.returncode == 75
    assert not alive(tmp_path)


def test_a_second_ctrl_c_waits_for_nobody(tmp_path):
    code = f"signal.signal(signal.SIGTERM, lambda *_: pathlib.Path({str(tmp_path)!r}, 'asked').touch())\n"
    launcher = begin(tmp_path, code + starts(tmp_path) + "while True: time.sleep(1)\n", grace=1000.0)
    launcher.send_signal(signal.SIGINT)
    wait_until((tmp_path / "asked").exists)
    launcher.send_signal(signal.SIGINT)
    launcher.communicate(timeout=PATIENCE_SECONDS)
    assert launcher.returncode == 130
    assert not alive(tmp_path)


@pytest.mark.parametrize("stubborn", [False, True], ids=["polite", "hanging"])
def test_a_killed_launcher_leaves_no_process_behind(stubborn, tmp_path):
    """Nor a process of a process, such as a worker that makes batches."""
    child = f"import pathlib, os, time, signal; {'signal.signal(15, signal.SIG_IGN); ' * stubborn}"
    child += f"pathlib.Path({str(tmp_path)!r}, f'start-child-{{os.getpid()}}').touch(); time.sleep(1000)"
    code = f"import subprocess; child = subprocess.Popen([sys.executable, '-S', '-c', {child!r}])\n"
    code += "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" if stubborn else ""
    launcher = begin(tmp_path, code + starts(tmp_path) + WAIT, grace=0.5 if stubborn else 1000.0)
    wait_until(lambda: len(pids(tmp_path)) == 6)
    family = psutil.Process(launcher.pid).children(recursive=True)
    assert len(family) == 7, "three, a child of each, and the keeper"
    launcher.kill()
    launcher.communicate(timeout=PATIENCE_SECONDS)
    wait_until(lambda: not alive(tmp_path))
    wait_until(lambda: not any(each.is_running() and each.status() != "zombie" for each in family))


def test_a_finished_job_leaves_no_worker_behind(tmp_path):
    worker = f"import pathlib, os, time; pathlib.Path({str(tmp_path)!r}, f'start-w-{{os.getpid()}}').touch(); "
    worker += "time.sleep(1000)"
    code = f"import subprocess; subprocess.Popen([sys.executable, '-S', '-c', {worker!r}])\n"
    code += f"while len(list(pathlib.Path({str(tmp_path)!r}).glob('start-w-*'))) < 3: time.sleep(0.02)\n"
    assert run_job(job(tmp_path / "logs", code)) == 0
    assert len(pids(tmp_path)) == 3
    wait_until(lambda: not alive(tmp_path))


def test_a_signal_between_two_attempts_ends_the_job(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "LONGEST_BACKOFF_SECONDS", 1000.0)
    with pytest.raises(Preempted):
        run_job(job(tmp_path, "sys.exit(1)"), lambda code, count: os.kill(os.getpid(), signal.SIGTERM))
