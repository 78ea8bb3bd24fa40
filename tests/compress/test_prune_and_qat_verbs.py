"""`pomona prune` and `pomona qat` as a person types them."""

import pytest

from pomona.cli.main import main
from pomona.compress.qat import grid_run
from pomona.core.run_folder import RunFolder, read_config
from pomona.train.config import Run


def test_prune_says_what_it_cost_and_what_comes_next(parent, tmp_path, capsys):
    out = str(tmp_path / "small")
    assert main(["prune", str(parent), "--ffn", "32", "--method", "magnitude", "--run", out]) == 0
    printed = capsys.readouterr().out
    assert "before: 1." in printed and "after: 1." in printed
    assert "units kept of 128 in each layer: 32, 32" in printed and f"written to {out}" in printed
    run = read_config(RunFolder(tmp_path / "small"), Run)
    assert run.architecture.ffn_dim == 32 and run.name == "parent-32"
    assert main(["prune", str(parent), "--ffn", "32", "--method", "magnitude", "--run", out]) == 0
    assert "already" in capsys.readouterr().out


def test_overrides_are_those_of_the_run_that_learns(parent, tmp_path, capsys):
    """A setting that is refused shows that it arrived."""
    arguments = ["--run", str(tmp_path / "out"), "--stages.0.steps", "7", "--stages.0.schedule.warmup-steps", "7"]
    assert main(["prune", str(parent), "--ffn", "32", *arguments]) == 2
    assert "shorter than its stage of 7 steps" in capsys.readouterr().err
    assert main(["qat", str(parent), *arguments]) == 2
    assert "shorter than its stage of 7 steps" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_default_stages_are_short_ones_on_the_parents_mixture(parent):
    stage, run = grid_run(parent).stages[0], read_config(RunFolder(parent), Run)
    assert (stage.steps, stage.batch_size, stage.sequence_length) == (100, 8, 32)
    assert stage.schedule.weight_decay == 0 and stage.rope_base == run.stages[0].rope_base
    assert grid_run(parent, 12).origin.step == 12


MISTAKES = {
    "no budget": (["prune", "PARENT"], "--ffn is missing", "--ffn 352"),
    "a budget of all": (["prune", "PARENT", "--ffn", "128"], "objective.ffn is 128", "--ffn 64"),
    "no number": (["prune", "PARENT", "--ffn", "many"], "--ffn is 'many'", "--ffn 100"),
    "no method": (["prune", "PARENT", "--ffn", "8", "--method", "magnitud"], "no method 'magnitud'", "magnitude"),
    "no setting": (["prune", "PARENT", "--ffn", "8", "--objective.hott", "2"], "--objective.hott", "--objective.hot"),
    "no parent": (["prune", "nowhere", "--ffn", "8"], "nowhere is not a run folder", "pomona train"),
    "no such step": (["prune", "PARENT", "--ffn", "8", "--step", "5"], "no checkpoint of step 5", "pomona train"),
    "no run": (["qat", "nowhere"], "nowhere is not a run folder", "pomona train"),
    "no step": (["qat", "PARENT", "--step", "x"], "--step is 'x'", "--step 100"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_three_lines(case, parent, capsys, tmp_path, monkeypatch):
    arguments, problem, advice = MISTAKES[case]
    monkeypatch.chdir(tmp_path)
    assert main([str(parent) if word == "PARENT" else word for word in arguments]) == 2
    what, rule, fix = capsys.readouterr().err.strip().splitlines()
    assert problem in what and rule.startswith("  rule: ") and advice in fix
    assert not list(tmp_path.iterdir())
