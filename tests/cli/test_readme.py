"""The README's commands are real: each is run as it stands there, on a small corpus and for a few steps.

`make test` is what CI runs on a fresh checkout; what `make demo` types is tested in test_commands.py. What is added to
a training only makes it short.
"""

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from pomona.cli.main import VERBS, main

ROOT = Path(__file__).parents[2]
SHORT = [
    *("--stages.0.steps", "3", "--stages.0.batch-size", "2", "--stages.0.sequence-length", "32"),
    *("--stages.0.schedule.warmup-steps", "1", "--evaluation.max-batches", "2", "--data.workers", "1"),
    *("--data.tokenizer.vocab-size", "320", "--architecture.vocab-size", "320"),
]


BRIEF = ["--stages.0.steps", "3", "--stages.0.schedule.warmup-steps", "1"]  # its batches are those of another run
GO_ON = ("prune", "distill", "qat", "recover", "adapt")


def shell_lines(text):
    """Lines of ```sh blocks, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    lines = (line.split("  #")[0].strip() for block in blocks for line in block.replace("\\\n", " ").splitlines())
    return [line for line in lines if line]


def trains(words):
    return words[1] == "train" or words[1:3] == ["launch", "local"]


def assert_serves(words, folder, environment):
    """It listens, answers, and ends when it is told to."""
    asked = {"cwd": folder, "env": environment, "text": True}
    with subprocess.Popen([*words, "--port", "0"], stderr=subprocess.PIPE, **asked) as server:
        said = ""
        while "curl" not in said:
            line = server.stderr.readline()
            assert line, said
            said += line
        address = re.search(r"http://[0-9.:]+", said).group()
        with urllib.request.urlopen(f"{address}/v1/models") as found:
            assert [model["id"] for model in json.load(found)["data"]] == ["mine", "mine:task"]
        server.terminate()
        assert server.wait(30) == 0


@contextlib.contextmanager
def private_cloud(words, folder, environment):
    """It comes up, and ends when it is told to; in between, others ask it."""
    asked = {"cwd": folder, "env": environment, "text": True}
    with subprocess.Popen([*words, "--port", "28710"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **asked) as up:
        said = up.stdout.readline()
        assert "nodes serve mine" in said, said + up.stderr.read()
        yield
        up.terminate()
        assert up.wait(60) == 0


@pytest.mark.slow
def test_every_pomona_command_of_the_readme_works(tmp_path):
    (tmp_path / "texts").mkdir()
    for i in range(60):
        words = " ".join(f"the {i + k} foxes jump over {k} lazy dogs" for k in range(12))
        (tmp_path / "texts" / f"{i}.txt").write_text(words)
    task = [{"prompt": f"{i} foxes", "response": f" jump over {i} dogs"} for i in range(60)]
    (tmp_path / "task.jsonl").write_text("\n".join(map(json.dumps, task)))
    commands = [line for line in shell_lines((ROOT / "README.md").read_text()) if "pomona" in line]
    commands = [line for line in commands if not line.startswith("pip ")]
    assert {shlex.split(line)[1] for line in commands} == set(VERBS)
    with contextlib.ExitStack() as running:
        for line in commands:
            run_line(line, tmp_path, running)
    assert (tmp_path / "mine-hf" / "model.safetensors").exists() and (tmp_path / "runs" / "back").exists()


def run_line(line, tmp_path, running):
    words = shlex.split(line)
    assert words[0] == ".venv/bin/pomona"
    words = [sys.executable, "-m", "pomona.cli.main", *words[1:]]
    words += SHORT if trains(words[2:]) else BRIEF if words[3] in GO_ON else []
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    if words[3] == "serve":
        assert_serves(words, tmp_path, environment)
        return
    if words[3:5] == ["private", "up"]:
        running.enter_context(private_cloud(words, tmp_path, environment))
        return
    asked = {"input": "hello\n", "capture_output": True, "text": True, "timeout": 300}  # `chat` reads it
    done = subprocess.run(words, cwd=tmp_path, env=environment, **asked)
    assert done.returncode == 0, line + "\n" + done.stderr
    assert done.stdout, line


@pytest.mark.parametrize("page", ["README.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md"))])
def test_links_lead_somewhere_and_commands_have_known_names(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert target.startswith("https://") or ((ROOT / page).parent / target).exists(), target
    from pomona.cli import plan_verb
    from pomona.cli.launch_verb import LAUNCHERS
    from pomona.cli.train_verb import resolve
    from pomona.recipes.registry import LIVES, RECIPES

    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for line in shell_lines(text):
        words = shlex.split(line)
        if words[0] == "make":
            assert words[1] in targets, line
        elif words[0].endswith("pomona"):
            assert words[1] in VERBS, line
            if words[1] == "train":
                assert words[2] in RECIPES, line
                resolve(words[2], [word for word in words[3:] if word != "--help"])
            if words[1] == "life":
                assert words[2] in LIVES, line
            if words[1] == "launch":
                assert words[2] in LAUNCHERS, line
                assert words[2] == "local" or main([*words[1:], "--output", "-"]) == 0, line
            if words[1] == "plan":
                plan_verb.resolve(words[2], words[3:])


def test_the_readme_lists_every_recipe_with_its_numbers():
    from pomona.core.wording import amount
    from pomona.model.count import count_parameters
    from pomona.recipes.registry import RECIPES
    from pomona.train.config import total_tokens

    readme = (ROOT / "README.md").read_text()
    for name, make in RECIPES.items():
        (row,) = re.findall(rf"^\| `{name}` \|.*$", readme, flags=re.MULTILINE)
        run = make()
        assert f"| {amount(count_parameters(run.architecture).total)} | {amount(total_tokens(run))} |" in row
