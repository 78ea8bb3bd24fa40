"""A life is its commands: chapters that fit, Apple's numbers, the demo's budget, and one verb that types them."""

import json
import re
import sys
from pathlib import Path

import pytest

from pomona.cli import life_verb
from pomona.cli.main import VERBS, main
from pomona.cli.train_verb import resolve
from pomona.core.errors import UserError
from pomona.model.count import count_parameters
from pomona.recipes import afm_device, tiny
from pomona.recipes.life import Distill, Life, Palettize, Prune, Recover, Train, turns
from pomona.recipes.registry import LIVES, RECIPES

PROGRAM = """
import json, pathlib, sys
words = sys.argv[1:]
with open("typed.txt", "a") as file:
    file.write(json.dumps(words) + "\\n")
if "--run" in words:
    pathlib.Path(words[words.index("--run") + 1]).mkdir(parents=True)
sys.exit(2 if words[0] == "distill" and not pathlib.Path("go-on").exists() else 0)
"""


def commands(name, folder="lives/x"):
    return [turn.typed for turn in turns(LIVES[name], Path(folder))]


def steps(words):
    return int(words[words.index("--stages.0.steps") + 1])


def test_the_commands_of_the_demo_s_life():
    parent, pruned, distilled, palettized, recovered, *rest = commands("tiny")
    assert parent.startswith("pomona train tiny --run lives/x/parent --architecture.ffn-dim 1024 ")
    assert pruned.startswith("pomona prune lives/x/parent --ffn 256 --run lives/x/pruned ")
    assert distilled.startswith("pomona distill lives/x/pruned --teacher lives/x/parent --run lives/x/distilled ")
    assert palettized == "pomona palettize lives/x/distilled --bits 3.7 --run lives/x/palettized"
    assert recovered.startswith("pomona recover lives/x/palettized --rank 16 --run lives/x/recovered ")
    said = [
        f"pomona generate lives/x/{name} 'def main():' --max-tokens 80 --keep"
        for name in ("parent", "pruned", "distilled", "palettized", "recovered")
    ]
    assert rest == [*said, "pomona card lives/x/recovered --output lives/x/card.html"]


@pytest.mark.parametrize("name", LIVES)
def test_every_life_trains_recipes_that_exist_and_types_verbs(name):
    for turn in turns(LIVES[name], Path("lives/x")):
        verb, *words = turn.words
        if verb == "train":
            settings = words[1:]
            if "--from" in settings:
                at = settings.index("--from")
                settings = settings[:at] + settings[at + 2 :]
            configured, path = resolve(words[0], settings)
            assert words[0] in RECIPES and path == turn.run
            assert configured.stages and count_parameters(configured.architecture).total
        else:
            assert verb in VERBS
    assert main(["life", name, "--dry-run"]) == 0


def test_apple_s_device_life_has_the_report_s_tokens():
    """AFM report, sections 3.2 and 5.1: 188 B tokens of masks, 6.3 T of distillation, 0.15 % of all for recovery."""
    batch = 2048 * 4096
    by_name = {turn.name: turn.words for turn in turns(afm_device.LIFE, Path("x"))}
    assert steps(by_name["pruned"]) * batch == pytest.approx(188e9, rel=1e-4)
    (core,) = afm_device.afm_device_parent().stages
    assert core.steps * core.batch_tokens == pytest.approx(6.3e12, rel=1e-4) and core.batch_tokens == batch
    assert by_name["distilled"][-1] == "x/distilled", "a student's stages are its own: the whole core stage"
    assert steps(by_name["recovered"]) * batch == pytest.approx(0.0015 * 7.4e12, rel=1e-3)
    assert by_name["pruned"][by_name["pruned"].index("--ffn") + 1] == "8064"
    alone, later = afm_device.afm_device(), afm_device.afm_device_continued()
    assert alone.stages[1:] == later.stages and alone.architecture == later.architecture
    assert [stage.steps * stage.batch_tokens for stage in later.stages] == pytest.approx([1e12, 1e11], rel=1e-4)


def test_the_demo_s_budget_is_the_one_its_header_says_and_leaves_time_to_speak():
    budgets = {chapter.name: chapter.budget_seconds for chapter in tiny.LIFE.chapters}
    table = dict(re.findall(r"^\| ([\w, ]+) \| .* \| (\d+) \|$", tiny.__doc__, flags=re.MULTILINE))
    assert {name: float(seconds) for name, seconds in table.items() if name in budgets} == budgets
    assert sum(map(int, table.values())) <= 12 * 60
    widths = [
        count_parameters(resolve("tiny", ["--architecture.ffn-dim", str(w)])[0].architecture).total
        for w in (tiny.PARENT_FFN, tiny.DEVICE_FFN)
    ]
    assert (
        [round(each / 1e6, 1) for each in widths] == [5.0, 2.6]
        and "5 M" in tiny.LIFE.what
        and "2.6 M" in tiny.LIFE.what
    )


BROKEN = {
    "a chapter that is not written yet": ((Prune("b", of="a", ffn=1), Train("a", "tiny")), "b", "reads 'a'"),
    "a teacher of another life": ((Train("a", "tiny"), Distill("b", of="a", teacher="c")), "b", "reads 'c'"),
    "a name twice": ((Train("a", "tiny"), Recover("a", of="a")), "a", "has a name that is taken"),
    "the card's own name": ((Train("card", "tiny"),), "card", "has a name that is taken"),
    "no device model": ((Train("a", "tiny"), Palettize("b", of="a", bits=4.0)), "c", "ends with 'c'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_chapters_that_do_not_fit_are_one_error(case):
    chapters, device, problem = BROKEN[case]
    with pytest.raises(UserError) as raised:
        turns(Life("mine", "", chapters, server=chapters[0].name, device=device), Path("x"))
    assert problem in raised.value.what


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("program.py").write_text(PROGRAM)
    monkeypatch.setattr(life_verb, "PROGRAM", (sys.executable, "-S", "program.py"))
    return tmp_path


def typed():
    lines = [json.loads(line) for line in Path("typed.txt").read_text().splitlines()]
    Path("typed.txt").unlink()
    return [words[0] for words in lines]


def test_the_verb_types_them_in_turn_stops_at_a_failure_and_goes_on_there(place, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(["life", "tiny"])
    printed = capsys.readouterr()
    assert leaving.value.code == 2 and typed() == ["train", "prune", "distill"]
    assert "distilled ended with exit code 2" in printed.err and "try:  the same command again" in printed.err
    Path("go-on").touch()
    Path("lives/tiny/distilled").rmdir()
    assert main(["life", "tiny"]) == 0
    assert typed() == ["distill", "palettize", "recover", *["generate"] * 5, "card"]
    assert "the card of this life: lives/tiny/card.html" in capsys.readouterr().out
    assert main(["life", "tiny", "--dry-run"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 11 and all(line.startswith("# done: pomona ") for line in shown[:-1])
    assert shown[-1].startswith("pomona card ") and not Path("typed.txt").exists()


def test_it_begins_with_the_chapter_that_is_asked_for(place, capsys):
    Path("go-on").touch()
    assert main(["life", "tiny", "--run", "mine", "--from", "palettized"]) == 0
    assert typed() == ["palettize", "recover", *["generate"] * 5, "card"]
    assert "mine/parent" in capsys.readouterr().out


MISTAKES = {
    "no life": (["life", "tinny"], "there is no life 'tinny'", "tiny"),
    "a recipe without a life": (["life", "afm_85m"], "afm_85m is a recipe without a life", "pomona train afm_85m"),
    "no chapter": (["life", "tiny", "--from", "prund"], "no chapter 'prund'", "pruned"),
    "a run folder": (["life", "tiny", "--run", "run"], "run is a run folder", "--run run-life"),
    "a file": (["life", "tiny", "--run", "program.py"], "program.py is no folder", "--run program.py-life"),
    "no recipe": (["life"], "recipe", "--help"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_three_lines_and_nothing_is_written(case, place, capsys):
    arguments, problem, advice = MISTAKES[case]
    Path("run").mkdir()
    Path("run/config.json").write_text("{}")
    before = sorted(place.rglob("*"))
    assert main(arguments) == 2
    what, rule, fix = capsys.readouterr().err.strip().splitlines()
    assert problem in what and rule.startswith("  rule: ") and advice in fix, (what, fix)
    assert sorted(place.rglob("*")) == before
