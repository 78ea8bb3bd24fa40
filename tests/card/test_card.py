"""`pomona card`: every number of the page and of card.json is that of the folders; the page loads nothing."""

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from small_family import MACHINE, write_family, write_run

from pomona.card.family import read_member
from pomona.cli.card_verb import planned_step_seconds
from pomona.cli.main import main
from pomona.core.config import to_json
from pomona.core.fleet import parse_fleet
from pomona.plan.estimate import estimate
from pomona.plan.work import lay_out
from pomona.recipes.afm_85m import afm_85m

ROOT = Path(__file__).parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
MARK = "\N{SECTION SIGN}"
NAMES = ("parent", "pruned", "distilled", "palettized", "recovered")
VOID = {"meta", "rect", "line", "circle", "polyline", "path"}


class Page(HTMLParser):
    """Counts tags, keeps attributes and the words of each section."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.words, self.open = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *each) for each in attributes]
        if tag == "section":
            self.words.append(MARK)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def sections(self):
        """The words before the first section, and those of each."""
        return [" ".join(part.split()) for part in " ".join(self.words).split(MARK)]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def card(run, *arguments):
    """The page, parsed, and the numbers."""
    assert main(["card", str(run), *arguments]) == 0
    output = Path(arguments[1]) if arguments else Path(run) / "card.html"
    page = Page()
    page.feed(output.read_text())
    page.close()
    assert page.open == []
    return page, json.loads(output.with_suffix(".json").read_text())


def test_the_numbers_are_those_of_the_folders(place):
    write_family(place)
    _, numbers = card("life/recovered")
    assert [each["run"] for each in numbers] == [f"life/{name}" for name in NAMES]
    assert [each["done"] for each in numbers] == [
        "trained",
        *("pruned", "distilled", "palettized"),
        "recovered",
    ]
    assert [each["bits_per_byte"] for each in numbers] == [2.1, 2.5, 2.2, None, 2.24]
    assert [each["bits_per_byte_before"] for each in numbers] == [4.0, 2.1, 4.0, None, 4.0]
    # By hand: embedding, three attention matrices' worth of queries, keys and values, output, feed-forward, norms.
    norms = 4 * (2 * 256 + 2 * 64) + 256
    rest = 4096 * 256 + 4 * (2 * 256 * 256 + 2 * 256 * 128) + norms
    assert [each["parameters"] for each in numbers] == [rest + 4 * 3 * 256 * ffn for ffn in (1024, 512, 512, 512, 512)]
    palettes = sum(path.stat().st_size for path in Path("life/palettized/palettes").rglob("*.*"))
    assert [each["weights_bytes"] for each in numbers] == [1_024_024, 512_024, 512_024, palettes, 512_024]
    assert [each["bits_per_weight"] for each in numbers] == [32.0, 32.0, 32.0, 3.71, 3.71]
    assert [each["origin"] for each in numbers] == [None, *(f"life/{name}" for name in NAMES[:-1])]
    assert {each["origin_state"] for each in numbers} == {None}
    distilled = numbers[2]
    assert distilled["teacher"] == "life/parent"
    assert distilled["commands"] == ["pomona distill life/pruned --teacher life/parent --run life/distilled"]
    assert (distilled["steps_planned"], distilled["tokens_planned"]) == (40, 40 * 16 * 256)
    assert (distilled["steps_done"], distilled["tokens_done"]) == (40, 40 * 16 * 256)
    assert (distilled["seconds_planned"], distilled["seconds"], numbers[0]["seconds"]) == (200.0, 150.0, 90.0)
    assert (distilled["goodput"], distilled["step_seconds"], distilled["step_seconds_planned"]) == (0.9, 1.5, None)
    assert distilled["training_tokens_per_second"] == 1025.0 and distilled["generating_tokens_per_second"] == 321.0
    assert distilled["losses"] == [[10, 7.5], [20, 7.0], [30, 6.5], [40, 6.0]], "what was not finite is no point"
    assert distilled["heldout"] == [[0, 4.0], [40, 2.2]] and distilled["trouble"] == {"fallback": 1}
    assert [each["text"] for each in distilled["samples"]] == [' return "&"'], "the newest step's alone"
    pruned, palettized = numbers[1], numbers[3]
    assert pruned["said"] == {"units_kept": [512] * 4} and palettized["said"]["bits_per_parameter"] == 4.5
    assert (pruned["steps_planned"], pruned["steps_done"], pruned["seconds"]) == (20, 20, 50.0), "those of its masks"
    assert pruned["losses"] == [[10, 7.5], [20, 7.0]]
    assert (palettized["steps_planned"], palettized["steps_done"], palettized["seconds"]) == (None, None, 7.0)
    assert palettized["teacher"] is None and palettized["losses"] == []
    assert palettized["commands"] == ["pomona palettize life/distilled --bits 3.7 --run life/palettized"]
    assert [each["adapter_on"] for each in numbers] == [None] * 4 + ["life/palettized"]
    assert distilled["hardware"] == ["1 x cpu; Linux, 2 cores of Pear P1"]


def test_the_page_shows_every_member_whole_and_loads_nothing(place):
    write_family(place)
    page, _ = card("life/recovered")
    text = Path("life/recovered/card.html").read_text()
    assert not {"script", "link", "img", "iframe", "object", "style src"} & set(page.tags)
    assert not [each for each in page.attributes if each[1] in ("src", "href", "xlink:href", "onload")]
    assert "://" not in text and "@import" not in text and "url(" not in text
    assert "prefers-color-scheme: dark" in text and page.tags.count("body") == 1
    assert page.tags.count("svg") == 1 + 2 + 4 * 2, "the tree, two comparisons, two curves for each that was trained"
    summary, *sections = page.sections()
    assert len(sections) == 5
    assert all(f"life/{name}" in summary for name in NAMES) and "teaches" in summary
    for section, name, quality in zip(sections, NAMES, ("2.100", "2.500", "2.200", None, "2.240")):
        assert section.startswith(f"life/{name}: ") and (not quality or f"{quality} bits per byte" in section)
        for fact in (
            "Made by pomona",
            "planned actual",
            'return "&"',
            "def <b>main</b>():",
            "seed 3; 321 tokens/s on cpu",
        ):
            assert fact in section, fact
        if name != "palettized":
            for fact in ("Training loss", "held-out text", "jax 0.10.2", "fallback 1", MACHINE["processor"]):
                assert fact in section, fact
    assert "Its folder holds an adapter alone" in sections[4] and "units kept 512, 512, 512, 512" in sections[1]
    assert "distilled" in sections[2] and "Its teacher was life/parent." in sections[2]
    for row in (
        "steps 40 40 100.0 %",
        "tokens 163,840 163,840 100.0 %",
        "a step - 1.5 s -",
        "the whole 3.33 min 2.5 min 75.0 %",
    ):
        assert row in sections[2], row


def test_a_run_that_was_stopped_in_the_middle_has_a_card_too(place):
    write_run(place / "alone", "pomona train tiny --run alone")
    for name, kept in (("events", 1), ("metrics", 3)):
        path = place / "alone" / f"{name}.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:kept]) + '{"cut sho')
    shutil.rmtree(place / "alone" / "checkpoints")
    (place / "alone" / "samples.jsonl").unlink()
    page, (numbers,) = card("alone")
    assert (numbers["steps_planned"], numbers["steps_done"]) == (40, 20) and numbers["tokens_done"] == 20 * 4096
    assert [numbers[name] for name in ("weights_bytes", "bits_per_weight", "seconds", "samples")] == [
        None,
        None,
        None,
        [],
    ]
    assert "steps 40 20 50.0 %" in page.sections()[1]


def test_a_missing_ancestor_is_shown_and_a_changed_one_is_named(place):
    write_family(place)
    shutil.rmtree(place / "life" / "pruned")
    page, numbers = card("life/recovered")
    assert [(each["run"], each["missing"]) for each in numbers[:2]] == [
        ("life/pruned", True),
        ("life/distilled", False),
    ]
    assert "missing: this run folder is not there" in page.sections()[0]
    assert "which is not there." in page.sections()[2]
    manifest = place / "life" / "distilled" / "checkpoints" / "40" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"about"', '"About"'))
    _, numbers = card("life/recovered")
    assert numbers[2]["origin_state"] == "has another checkpoint of step 40 than then"


def test_a_life_that_was_moved_is_found_from_anywhere(place, monkeypatch):
    write_family(place / "old")
    (place / "old" / "life").rename(place / "life-of-a-pear")
    (place / "elsewhere").mkdir()
    monkeypatch.chdir(place / "elsewhere")
    _, numbers = card(place / "life-of-a-pear" / "recovered", "--output", "page.html")
    assert [each["missing"] for each in numbers] == [False] * 5
    assert {path.name for path in Path().iterdir()} == {"page.html", "page.json"}


def test_a_plan_stands_beside_a_run_on_chips_that_are_known(place):
    fleet = parse_fleet("h100-1")
    configured = afm_85m()
    expected = estimate(lay_out(configured, configured.stages[0], fleet), None).step_seconds
    changes = to_json(configured)
    write_run(place / "alone", "pomona train afm_85m --run alone", **changes)
    assert planned_step_seconds(read_member("alone", place / "alone")) is None, "a CPU has no published figures"
    events = place / "alone" / "events.jsonl"
    events.write_text(events.read_text().replace('"device": "cpu"', '"device": "NVIDIA H100 80GB HBM3"'))
    assert planned_step_seconds(read_member("alone", place / "alone")) == pytest.approx(expected)
    _, (numbers,) = card("alone")
    assert numbers["step_seconds_planned"] == pytest.approx(expected)


MISTAKES = {
    "no run": (["card", "nowhere"], "nowhere is not a run folder", "pomona card"),
    "a folder for a page": (["card", "alone", "--output", "."], ". is a folder", "--output card.html"),
    "the numbers' own name": (["card", "alone", "--output", "a.json"], "a.json would be", "--output a.html"),
    "an origin nobody knows": (["card", "strange"], "origin.whence is not", "fingerprint, run, step"),
    "a circle": (["card", "snake"], "which comes from it", "origin"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_three_lines_and_nothing_is_written(case, place, capsys):
    arguments, problem, advice = MISTAKES[case]
    write_run(place / "alone", "pomona train tiny --run alone")
    write_run(place / "strange", "pomona train tiny --run strange", origin={"whence": "alone"})
    origin = {"run": "snake", "step": 1, "fingerprint": "f"}
    write_run(place / "snake", "pomona train tiny --run snake", origin=origin)
    before = sorted(place.rglob("*"))
    assert main(arguments) == 2
    what, rule, fix = capsys.readouterr().err.strip().splitlines()
    assert problem in what and rule.startswith("  rule: ") and advice in fix, (what, fix)
    assert sorted(place.rglob("*")) == before


def test_a_card_imports_neither_jax_nor_numpy(place):
    write_family(place)
    code = "import sys; from pomona.cli.main import main; assert main(['card', 'life/recovered']) == 0\n"
    code += "heavy = {'jax', 'jaxlib', 'numpy', 'optax', 'grain', 'orbax'} & set(sys.modules)\nassert not heavy, heavy"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_browser_shows_the_page(place):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no browser here; the page is parsed in the tests above")
    write_family(place)
    card("life/recovered")
    address, shot = (place / "life/recovered/card.html").as_uri(), place / "page.png"
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1100,1400",
        f"--user-data-dir={place}/browser",
    ]
    subprocess.run([browser, *flags, f"--screenshot={shot}", address], capture_output=True, timeout=120)
    assert shot.read_bytes().startswith(b"\x89PNG") and shot.stat().st_size > 40_000
    dumped = subprocess.run(
        [browser, *flags, "--dump-dom", address], capture_output=True, text=True, timeout=120
    ).stdout
    assert dumped.count("<svg") == 11 and dumped.count("<section>") == 5
    assert re.search(r"def &lt;b&gt;main&lt;/b&gt;\(\):", dumped), "what a model says is text, not markup"
