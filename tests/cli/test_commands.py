"""What a person types and gets: help without JAX, one clear error for each mistake, overrides, resolved recipes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pomona.cli.main import VERBS, main
from pomona.cli.parse import options
from pomona.cli.train_verb import resolve
from pomona.core.config import to_json
from pomona.optim.config import AdamW
from pomona.parallel.config import MeshConfig
from pomona.recipes.registry import LIVES, RECIPES

GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).parents[2]


GKE = ["launch", "gke", "tiny", "--image", "i", "--bucket", "gs://mine", "--output", "-"]
SLURM = ["launch", "slurm", "tiny", "--output", "-"]
HELP = [[], ["--help"], *([verb, "--help"] for verb in ("train", "plan", "launch", "prune", "qat"))]
INFORMS = [*HELP, ["--version"], ["recipes"], ["recipes", "tiny"], ["life", "tiny", "--dry-run"]]


@pytest.mark.parametrize("arguments", [*INFORMS, [*GKE, "--chips", "v5p-32"], [*SLURM, "--chips", "h100-8"]])
def test_what_only_informs_imports_neither_jax_nor_numpy(arguments):
    code = f"import sys; from pomona.cli.main import main; assert main({arguments!r}) == 0\n"
    code += "heavy = {'jax', 'numpy', 'optax', 'grain', 'orbax', 'sentencepiece'} & set(sys.modules)\n"
    code += "assert not heavy, heavy"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_help_names_every_verb(capsys):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(verb in printed for verb in VERBS)
    for verb in VERBS:
        try:
            assert main([verb, "--help"]) == 0
        except SystemExit as leaving:  # tyro's own way out
            assert leaving.code == 0
        assert f"pomona {verb}" in capsys.readouterr().out


def test_recipes_are_listed_with_parameters_tokens_and_chips(capsys):
    assert main(["recipes"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in RECIPES)
    assert all(name in printed for name in LIVES)
    for fact in ("69.3 B", "2.74 B", "7.4 T", "8192 v4", "2048 v5p", "2 CPU cores"):
        assert fact in printed, fact


MISTAKES = {
    "unknown verb": (["trian", "tiny"], "there is no verb 'trian'", "train"),
    "unknown recipe": (["train", "tinny"], "tinny", "tiny"),
    "misspelt override": (["train", "tiny", "--stages.0.step", "3"], "--stages.0.step", "--stages.0.steps"),
    "a word for a number": (["train", "tiny", "--stages.0.steps", "many"], "many", "--help"),
    "a misspelt axis of a stage's mesh": (
        ["train", "tiny", "--stages.0.mesh.fdsp", "2"],
        "--stages.0.mesh.fdsp",
        "--stages.0.mesh.fsdp",
    ),
    "an impossible mesh of a stage": (
        ["train", "tiny", "--stages.0.mesh.tensor", "3"],
        "tensor 3",
        "--stages.0.mesh.data 1",
    ),
    "a mesh of a stage for a setting": (["train", "tiny", "--stages.0.mesh", "2"], "--stages.0.mesh", "--help"),
    "a part for a setting": (["train", "tiny", "--optimizer", "adamw"], "--optimizer is a part", "optimizer:adam-w"),
    "a field of the other kind": (["train", "tiny", "--optimizer.epsilon", "1"], "--optimizer.epsilon", "--help"),
    "a stray word": (["train", "tiny", "fast"], "fast", "--help"),
    "another kind": (["train", "tiny", "optimizer:adamw"], "there is no optimizer:adamw", "optimizer:adam-w"),
    "a kind as a setting": (["train", "tiny", "--optimizer.kind", "adamw"], "--optimizer.kind", "optimizer:adam-w"),
    "a value for a switch": (["train", "tiny", "--metrics.tensorboard", "True"], "True", "a switch takes no value"),
    "no such stage": (["train", "tiny", "--stages.1.steps", "3"], "--stages.1.steps", "--stages.0.steps"),
    "a bare field": (["train", "tiny", "--batch-size", "3"], "--batch-size", "--stages.0.batch-size"),
    "a choice that is none": (["train", "tiny", "--execution.remat", "some"], "'full'", "--help"),
    "options first": (["train", "--run", "mine", "tiny"], "there is no recipe '--run'", "tiny"),
    "no value": (["train", "tiny", "--run"], "--run has no value", "--run runs/mine"),
    "empty value": (["train", "tiny", "--run="], "--run has no value", "--run runs/mine"),
    "an address for a folder": (
        ["train", "tiny", "--run", "gs://bucket/mine"],
        "--run is gs://bucket/mine",
        "--checkpoint.remote gs://bucket/mine",
    ),
    "an unknown kind of address": (
        ["train", "tiny", "--checkpoint.remote", "pears://bucket/mine"],
        "pears://bucket/mine",
        "--checkpoint.remote",
    ),
    "a fault nobody can look for": (
        ["train", "tiny", "--faults.check-every-steps", "0"],
        "faults.check_every_steps is 0",
        "--faults.check-every-steps 1",
    ),
    "given twice": (["train", "tiny", "--run", "a", "--run", "b"], "--run is given twice", "--run b"),
    "no model to begin with": (["train", "tiny", "--from", "runs/none"], "runs/none has no checkpoint", "pomona train"),
    "a model to begin with, by its fields": (["train", "tiny", "--origin.run", "runs/a"], "--origin.run", "--help"),
    "two recipes to show": (["recipes", "tiny", "afm_85m"], "one recipe, not 2", "pomona recipes tiny"),
    "impossible schedule": (["train", "tiny", "--stages.0.steps", "3"], "warm", "--stages.0"),
    "impossible mesh": (["train", "tiny", "--mesh.tensor", "3"], "tensor 3", "--mesh.data 1"),
    "indivisible mesh": (
        ["train", "tiny", "--mesh.fsdp", "1", "--mesh.tensor", "8"],
        "4 along 'heads'",
        "--mesh.tensor N",
    ),
    "indivisible batch": (["train", "tiny", "--stages.0.batch-size", "12"], "12", "--mesh.fsdp N"),
    "unknown recipe to show": (["recipes", "big"], "big", "tiny"),
    "no run to speak": (["generate", "runs/none", "hello"], "runs/none", "pomona train"),
    "no run named": (["generate"], "run", "--help"),
    "no run to palettize": (["palettize", "runs/none"], "runs/none", "pomona train"),
    "bits that are no number": (["palettize", "runs/none", "--bits", "few"], "few", "--help"),
    "unknown grid": (["palettize", "runs/none", "--grid", "even"], "even", "--help"),
    "no run to export": (["export", "runs/none"], "runs/none", "pomona train"),
    "unknown format": (["export", "runs/none", "--format", "onnx"], "onnx", "--help"),
    "unknown launcher": (["launch", "gk", "tiny"], "there is no launcher 'gk'", "gke"),
    "launch of an unknown recipe": (["launch", "local", "tinny", "--processes", "2"], "tinny", "tiny"),
    "launch of no recipe": (["launch", "local", "--processes", "2"], "recipe", "pomona launch local --help"),
    "no number of processes": (["launch", "local", "tiny"], "--processes", "pomona launch local --help"),
    "no process": (["launch", "local", "tiny", "--processes", "0"], "0 processes", "--processes 2"),
    "half a process": (["launch", "local", "tiny", "--processes", "1.5"], "1.5", "--help"),
    "restarts below none": (
        ["launch", "local", "tiny", "--processes", "2", "--max-restarts", "-1"],
        "-1",
        "-restarts 3",
    ),
    "more processes than sequences": (
        ["launch", "local", "tiny", "--processes", "24"],
        "24 devices share 16 sequences of stage 'core'",
        "--processes 8",
    ),
    "a mesh for another number": (
        ["launch", "local", "tiny", "--processes", "3", "--mesh.tensor", "2"],
        "tensor 2",
        "3",
    ),
    "misspelt setting of a launch": (
        ["launch", "local", "tiny", "--processes", "2", "--stages.0.step", "3"],
        "--stages.0.step",
        "--stages.0.steps",
    ),
    "unknown chip to launch on": ([*GKE, "--chips", "v5q-32"], "v5q", "v5p"),
    "impossible fleet": ([*GKE, "--chips", "v4:3x5x7"], "3x5x7", "--chips"),
    "slices to launch on that do not divide": ([*GKE, "--chips", "v5p-32", "--slices", "3"], "3 slices", "--chips"),
    "slices of one host": (
        [*GKE, "--chips", "v5p:2x2x1", "--slices", "2", "--mesh.data", "2"],
        "one host each",
        "4 chips",
    ),
    "a mesh across slices": ([*GKE, "--chips", "v5p:2x2x2", "--slices", "2"], "data 1 on 2 slices", "--mesh.data 2"),
    "no chips": (GKE, "--chips", "--help"),
    "no image": ([*GKE[:3], *GKE[5:], "--chips", "v5p-32"], "--image", "pomona launch gke --help"),
    "no bucket": ([*GKE[:5], "--chips", "v5p-32"], "--bucket", "pomona launch gke --help"),
    "a bucket without an address": ([*GKE[:5], "--bucket", "mine", "--chips", "v5p-32"], "mine", "--bucket gs://mine"),
    "a bucket of another cloud": (
        [*GKE[:5], "--bucket", "s3://Mine", "--chips", "v5p-32"],
        "s3://Mine",
        "--bucket gs://mine",
    ),
    "a run folder in a pod": ([*GKE, "--chips", "v5p-32", "--run", "runs/mine"], "--run", "--name NAME"),
    "no host's name": ([*GKE, "--chips", "v5p-32", "--name", "My_Run"], "'My_Run'", "--name my-run"),
    "too long a name": ([*GKE, "--chips", "v5p-32", "--name", "a" * 60], "a" * 60, "--name " + "a" * 46),
    "no variable": ([*GKE, "--chips", "v5p-32", "--env", "TPU"], "--env TPU", "NAME=VALUE"),
    "no time to save": ([*GKE, "--chips", "v5p-32", "--grace-seconds", "0"], "0 s to save", "--grace-seconds 600"),
    "a batch that pods cannot share": ([*GKE, "--chips", "v5p-64"], "16 sequences", "--mesh.seq 2"),
    "a TPU under Slurm": ([*SLURM, "--chips", "v5p-32"], "TPU v5p under Slurm", "pomona launch gke tiny"),
    "no time": ([*SLURM, "--chips", "h100-8", "--time", "1 day"], "1 day", "--time 24:00:00"),
    "too early a warning": ([*SLURM, "--chips", "h100-8", "--grace-seconds", "90000"], "90000", "65535"),
    "an option of another launcher": ([*SLURM, "--chips", "h100-8", "--image", "i"], "--image is no setting", "--help"),
    "a launch option twice": ([*SLURM, "--chips", "h100-8", "--chips", "h100-16"], "--chips is given twice", "--chips"),
    "no recipe to plan": (["plan", "afm"], "afm", "afm_85m"),
    "a misspelt option of the plan": (["plan", "tiny", "--chip", "v5e-1"], "--chip", "--chips"),
    "a misspelt setting of the plan": (["plan", "tiny", "--mesh.fdsp", "2"], "--mesh.fdsp", "--mesh.fsdp"),
    "no chips named": (["plan", "tiny", "--chips"], "--chips has no value", "--chips v5p-4096"),
    "chips given twice": (["plan", "tiny", "--chips", "v5e-1", "--chips=v5e-4"], "given twice", "--chips v5e-4"),
    "chips without figures": (["plan", "tiny"], "2 CPU cores", "--chips v5e-1"),
    "unknown chip": (["plan", "afm_server", "--chips", "v5q-8"], "'v5q'", "v5p"),
    "impossible topology": (["plan", "afm_server", "--chips", "v4:3x5x7"], "3x5x7", "multiples of 4"),
    "more than a slice holds": (["plan", "afm_server", "--chips", "v4-16384"], "8192", "--slices 2"),
    "slices that do not divide": (
        ["plan", "afm_server", "--chips", "v4-16384", "--slices", "7"],
        "7 slices",
        "--chips v4",
    ),
    "no slices": (["plan", "afm_server", "--chips", "v4-16384", "--slices", "0"], "--slices is 0", "--slices 1"),
    "half a slice": (["plan", "afm_server", "--chips", "v4-16384", "--slices", "1.5"], "1.5", "--help"),
    "slices of nothing": (["plan", "afm_server", "--slices", "8"], "without --chips", "--chips v4"),
    "slices of GPUs": (["plan", "afm_server", "--chips", "h100-64", "--slices", "2"], "2 slices", "h100-64"),
    "slices that the mesh does not cross": (
        ["plan", "afm_device", "--chips", "v5e-2048", "--slices", "8", "--stage", "long_context"],
        "data 4 on 8 slices",
        "--stages.2.mesh.data 8",
    ),
    "a batch that does not divide": (
        ["plan", "afm_85m", "--chips", "v5p-256", "--stages.0.batch-size", "100"],
        "100",
        "--mesh.fsdp N",
    ),
    "a mesh that does not divide": (
        ["plan", "afm_server", "--stage", "core", "--mesh.tensor", "16"],
        "8 along 'kv_heads'",
        "--mesh.tensor N",
    ),
    "a mesh of too many": (
        ["plan", "afm_server", "--stage", "core", "--mesh.tensor", "3"],
        "does not fit 8192 devices",
        "--mesh.data 1",
    ),
    "a stage's mesh that does not divide": (
        ["plan", "afm_server", "--stage", "continued", "--stages.1.mesh.tensor", "16"],
        "8 along 'kv_heads'",
        "--stages.1.mesh.tensor N",
    ),
    "a stage's mesh across slices": (
        ["launch", "gke", "afm_server", "--chips", "v4:8x8x16", "--slices", "8", *GKE[3:], "--stages.2.mesh.data", "4"],
        "data 4 on 8 slices",
        "--stages.2.mesh.data 8",
    ),
    "a negative price": (["plan", "afm_server", "--price", "-1"], "--price is -1", "--price 2.50"),
    "no price": (["plan", "afm_server", "--price", "nan"], "--price is nan", "--price 2.50"),
    "a word for a price": (["plan", "afm_server", "--price", "cheap"], "cheap", "--help"),
    "no such stage to plan": (["plan", "afm_server", "--stage", "cor"], "'cor'", "core"),
    "a comparison in slices": (["plan", "afm_server", "--compare", "--slices", "2"], "without --slices", "--compare"),
    "a comparison at one price": (["plan", "afm_server", "--compare", "--price", "2"], "without --price", "--compare"),
    "a comparison that searches": (["plan", "afm_server", "--compare", "--search"], "without --search", "--compare"),
    "a GPU to compile for": (
        ["plan", "afm_85m", "--chips", "h100-8", "--verify"],
        "NVIDIA H100 cannot be compiled for",
        "leave --verify out",
    ),
    "a chip without a clock": (
        ["plan", "afm_85m", "--chips", "v6e-8", "--verify"],
        "the clock of Google TPU v6e is not public",
        "--chips v5p-4096",
    ),
    "an impossible topology to compile for": (
        ["plan", "afm_server", "--chips", "v4:3x5x7", "--verify"],
        "3x5x7",
        "multiples of 4",
    ),
    "a search that compiles": (["plan", "afm_85m", "--verify", "--search"], "without --search", "--search first"),
    "a comparison that compiles": (["plan", "afm_85m", "--verify", "--compare"], "without --verify", "--compare"),
    "a page of nothing": (
        ["plan", "afm_server", "--html", "plan.html"],
        "--html without --compare",
        "--compare --html",
    ),
    "a folder for a page": (["plan", "afm_server", "--compare", "--html", "."], "is a folder", "--html plan.html"),
    "float32 on accelerators": (
        ["plan", "afm_server", "--execution.compute-dtype", "float32"],
        "float32",
        "--execution.compute-dtype bfloat16",
    ),
    "an impossible run to plan": (
        ["plan", "tiny", "--chips", "v5e-1", "--stages.0.steps", "0"],
        "(0,",
        "--stages.0.steps",
    ),
    "nothing to import": (["import", "hf", "nowhere"], "nowhere has no config.json", "pomona import hf"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_three_lines_exit_code_2_and_nothing_written(case, capsys, tmp_path, monkeypatch):
    arguments, problem, advice = MISTAKES[case]
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    printed = capsys.readouterr()
    what, rule, fix = printed.err.strip().splitlines()
    assert what.startswith("pomona: ") and problem in what, what
    assert rule.startswith("  rule: ") and fix.startswith("  try:  ")
    assert advice in fix or advice in rule, printed.err
    assert not printed.out and list(tmp_path.iterdir()) == []


def test_overrides_reach_every_kind_of_field():
    run, path = resolve(
        "tiny",
        [
            *("--run=runs/else", "--seed", "7", "--mesh.tensor", "2", "--stages.0.schedule.peak-learning-rate", "0.5"),
            *("--data.sources.0.address", "mine/*.txt", "--execution.remat", "full", "--metrics.tensorboard"),
            *("--stages.0.micro-batches", "2", "--data.tokenizer.path", "runs/old/tokenizer"),
        ],
    )
    assert path == Path("runs/else")
    assert (run.seed, run.mesh.tensor, run.stages[0].schedule.peak_learning_rate) == (7, 2, 0.5)
    assert (run.data.sources[0].address, run.execution.remat, run.metrics.tensorboard) == ("mine/*.txt", "full", True)
    assert (run.stages[0].micro_batches, run.data.tokenizer.path) == (2, "runs/old/tokenizer")
    assert resolve("tiny", ["--metrics.no-tensorboard"])[0].metrics.tensorboard is False
    words = ["--optimizer.epsilon", "0.5", "--seed", "3"]
    for arguments in (["optimizer:adam-w", *words], [*words, "optimizer:adam-w"]):
        other, _ = resolve("tiny", arguments)
        assert (other.optimizer, other.seed) == (AdamW(epsilon=0.5), 3)
        assert other.stages == resolve("tiny", [])[0].stages
    one, _ = resolve("tiny", ["--stages.0.mesh.seq", "2", "--stages.0.remat=full"])
    assert (one.stages[0].mesh, one.stages[0].remat, one.mesh) == (MeshConfig(seq=2), "full", MeshConfig())
    mixed, _ = resolve("afm_server", ["--stages.1.mixture.0.weight", "0.5", "--stages.2.batch_size=64"])
    assert (mixed.stages[1].mixture[0].weight, mixed.stages[2].batch_size) == (0.5, 64)


@pytest.mark.parametrize("name", RECIPES)
def test_every_option_of_the_help_is_a_setting_and_the_other_way_round(name, capsys):
    recipe = RECIPES[name]()
    with pytest.raises(SystemExit):
        main(["train", name, "--help"])
    shown = set(re.findall(r"(?<![\w.-])--[a-z][\w.-]*", capsys.readouterr().out)) - {"--help", "--run", "--from"}
    assert shown == set(options(recipe))


@pytest.mark.parametrize("name", RECIPES)
def test_the_resolved_recipe_is_the_stored_one(name):
    """`POMONA_WRITE_GOLDEN=1 .venv/bin/python -m pytest tests/cli` writes them anew, for a review to read."""
    text = json.dumps(to_json(RECIPES[name]()), indent=1) + "\n"
    path = GOLDEN / f"{name}.json"
    if os.environ.get("POMONA_WRITE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert path.read_text() == text
