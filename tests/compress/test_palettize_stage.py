"""The palettize stage from run folder to run folder: what is stored, kills, damage, and what is refused."""

import dataclasses
import os
import shutil
from operator import attrgetter

import jax
import numpy as np
import pytest
from small_run import small_run

from pomona.checkpoint.config import CheckpointConfig
from pomona.checkpoint.palettes import read_palettes
from pomona.checkpoint.store import Store
from pomona.cli.main import main
from pomona.compress import importance
from pomona.compress import palettize as stage
from pomona.compress.palettize import Settings, palettize_run
from pomona.core.config import to_json
from pomona.core.errors import UserError
from pomona.core.files import read_json, write_json
from pomona.core.run_folder import RunFolder
from pomona.data.prepare import prepare
from pomona.data.tokenizer import MODEL_FILE
from pomona.model.adapter import densify
from pomona.model.config import Architecture
from pomona.model.decoder import parameter_specs
from pomona.model.spec import initialize
from pomona.ops.palette import Palettized
from pomona.train.load import load_model

PLAIN = Settings(3.5, "free", "none")
silent = lambda text: None


def make_run(folder, cache, change=lambda params: params, **changes):
    """A run folder with one checkpoint of random weights."""
    run = small_run(cache, **changes)
    prepared = prepare(run.data, silent)
    params = change(initialize(parameter_specs(run.architecture), jax.random.key(1)))
    place = RunFolder(folder)
    place.tokenizer.mkdir(parents=True)
    shutil.copyfile(prepared.tokenizer / MODEL_FILE, place.tokenizer / MODEL_FILE)
    write_json(place.config, to_json(run))
    store = Store(place.checkpoints, CheckpointConfig())
    store.save(14, {"params": params}, {"stage": "context", "step": 14})
    store.close()
    return folder


@pytest.fixture(scope="module")
def source(cache, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("source") / "dense", cache)


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """What palettize writes when nothing befalls it; to be read only."""
    target = tmp_path_factory.mktemp("whole") / "palettized"
    return target, palettize_run(source, target, PLAIN, None, silent)


def contents(folder):
    return {path.name: path.read_bytes() for path in (folder / "palettes").iterdir() if path.is_file()}


@pytest.mark.parametrize(
    "words",
    [["prune", "IT", "--ffn", "32"], ["qat", "IT"], ["distill", "IT", "--teacher", "DENSE"]],
    ids=lambda w: w[0],
)
def test_palettes_are_not_trained_or_pruned(source, whole, capsys, words):
    names = {"IT": str(whole[0]), "DENSE": str(source)}
    assert main([names.get(word, word) for word in words]) == 2
    assert f"{whole[0]} is palettized." in (said := capsys.readouterr().err) and f"try:  {source}" in said


def test_an_adapter_is_not_palettized(recovered, tmp_path):
    with pytest.raises(UserError, match="holds an adapter for"):
        palettize_run(recovered[0], tmp_path / "new", PLAIN, None, silent)
    assert not (tmp_path / "new").exists()


def test_what_is_read_back_is_as_near_to_the_weights_as_was_said(source, whole):
    target, about = whole
    before, model = load_model(source), load_model(target)
    assert model.step == before.step == 14 and model.run.origin.run == str(source)
    assert isinstance(model.params.layers.ffn.gate, Palettized)
    after = densify(model.params, model.run.architecture)
    for tensor in about["tensors"]:
        if tensor["name"] == "rest":
            continue
        _, layer, name = tensor["name"].split(".", 2)
        old, new = (np.asarray(attrgetter(name)(p.layers)[int(layer)], np.float64) for p in (before.params, after))
        assert np.sum((old - new) ** 2) == pytest.approx(tensor["squared_error"], rel=1e-4)
        assert 0.001 < np.sum((old - new) ** 2) / np.sum(old**2) < (0.02 if tensor["bits"] == 4 else 0.15)
    np.testing.assert_array_equal(before.params.final_norm, after.final_norm)
    np.testing.assert_array_equal(before.params.layers.attention.key_norm, after.layers.attention.key_norm)
    largest = np.abs(before.params.embedding).max(axis=1, keepdims=True)
    assert np.all(np.abs(before.params.embedding - after.embedding) <= largest / 127 * 0.5001)


def test_the_average_is_what_the_files_hold(whole):
    target, about = whole
    bits = size = 0
    for tensor in about["tensors"]:
        if tensor["name"] != "rest":
            path = target / "palettes" / f"{tensor['name']}.{tensor['bits']}.safetensors"
            header = int.from_bytes(path.read_bytes()[:8], "little")
            bits += 8 * (path.stat().st_size - 8 - header)
            size += np.prod(tensor["shape"])
    assert about["bits_per_weight"] == bits / size <= 3.5
    assert {tensor["bits"] for tensor in about["tensors"]} == {2, 4, 8}
    assert len(contents(target)) == len(about["tensors"]) + 2, "what was tried and not chosen is gone"


@pytest.mark.parametrize(
    ("settings", "bits"), [(Settings(2, "balanced", "none"), 2.0), (Settings(4, "free", "none"), 4)]
)
def test_all_tensors_alike(source, tmp_path, settings, bits):
    about = palettize_run(source, tmp_path / "new", settings, None, silent)
    assert {tensor["bits"] for tensor in about["tensors"]} == {bits, 8}
    table = 0 if settings.grid == "balanced" else 2**bits
    sizes = [(np.prod(t["shape"]), t["shape"][0]) for t in about["tensors"] if t["name"] != "rest"]
    expected = sum(n * (bits + (table + 16) / inputs) for n, inputs in sizes) / sum(n for n, _ in sizes)
    assert about["bits_per_weight"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("killed_after", [0, 5, 27, 28])
def test_a_killed_palettize_goes_on_and_ends_with_the_same_bytes(source, whole, tmp_path, monkeypatch, killed_after):
    target, seen = tmp_path / "new", []

    def write(folder, name, palette, real=stage.write_palette):
        if len(seen) == killed_after:
            raise KeyboardInterrupt
        seen.append(name)
        return real(folder, name, palette)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "write_palette", write)
        if killed_after == 28:  # after the last matrix
            patch.setattr(stage, "write_rest", lambda *_: write(None, None, None))
        with pytest.raises(KeyboardInterrupt):
            palettize_run(source, target, PLAIN, None, silent)
    with pytest.raises(UserError, match="not palettized to the end"):
        load_model(target)
    if seen:  # as a crash of the machine may leave it
        path = sorted((target / "palettes").glob("*.safetensors"))[0]
        path.write_bytes(path.read_bytes()[:-7])
    again = []
    monkeypatch.setattr(
        stage,
        "write_palette",
        lambda folder, name, p, real=stage.write_palette: again.append(name) or real(folder, name, p),
    )
    palettize_run(source, target, PLAIN, None, silent)
    assert len(again) == 28 - killed_after + bool(seen), "two layers, seven matrices, two widths; whole ones are kept"
    assert contents(target) == contents(whole[0])


def test_importance_is_measured_once_and_a_kill_changes_nothing(source, tmp_path, monkeypatch):
    settings = Settings(3.7, "free", "fisher", samples=3)
    measured = []
    real = importance._fisher
    monkeypatch.setattr(importance, "_fisher", lambda *arguments: measured.append(1) or real(*arguments))
    palettize_run(source, tmp_path / "whole", settings, None, silent)

    def dies(folder, name, palette, write=stage.write_palette):
        if name == "layers.01.attention.key":
            raise KeyboardInterrupt
        return write(folder, name, palette)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "write_palette", dies)
        with pytest.raises(KeyboardInterrupt):
            palettize_run(source, tmp_path / "killed", settings, None, silent)
    palettize_run(source, tmp_path / "killed", settings, None, silent)
    assert len(measured) == 2, "once for either folder"
    assert contents(tmp_path / "whole") == contents(tmp_path / "killed")
    assert not (tmp_path / "killed" / "palettes" / "importance").exists()


def test_a_finished_folder_is_left_as_it_is(source, whole):
    target, about = whole
    before, said = contents(target), []
    assert palettize_run(source, target, PLAIN, None, said.append) == about
    assert contents(target) == before and "finished already" in said[0]


def test_other_settings_or_another_source_are_refused(source, whole, cache, tmp_path):
    with pytest.raises(UserError, match=r"bits: 3\.5 -> 3\.6"):
        palettize_run(source, whole[0], dataclasses.replace(PLAIN, bits=3.6), None, silent)
    other = make_run(tmp_path / "other", cache, lambda params: jax.tree.map(lambda x: x * 2, params))
    with pytest.raises(UserError, match="another configuration"):
        palettize_run(other, whole[0], PLAIN, None, silent)
    with pytest.raises(UserError, match="palettized already"):
        palettize_run(whole[0], tmp_path / "twice", PLAIN, None, silent)
    assert not (tmp_path / "twice").exists()


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "file", ["layers.01.ffn.down.4.safetensors", "layers.00.attention.key.4.safetensors", "rest.safetensors"]
)
@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (flip, "has changed bytes"),
        (os.unlink, "is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "cannot be read"),
        (lambda path: path.write_bytes(b"nothing"), "cannot be read"),
    ],
    ids=["flipped", "gone", "cut", "other"],
)
def test_damage_is_one_clear_error(source, tmp_path_factory, tmp_path, file, break_it, said):
    kept = tmp_path_factory.getbasetemp() / "four-bits"
    if not kept.exists():
        palettize_run(source, kept, Settings(4, "free", "none"), None, silent)
    shutil.copytree(kept, tmp_path / "new")
    break_it(tmp_path / "new" / "palettes" / file)
    with pytest.raises(UserError, match=said) as caught:
        load_model(tmp_path / "new")
    assert file.split(".safetensors")[0].removesuffix(".4") in caught.value.what


def test_palettes_of_another_shape_are_refused(whole):
    target, _ = whole
    with pytest.raises(UserError, match="has the shape"):
        read_palettes(target / "palettes", Architecture(400, 64, 2, 4, 2, 16, 112))


@pytest.mark.parametrize("bits", [4.6, 1.5, 2.2])
def test_an_average_out_of_reach_writes_nothing(source, tmp_path, bits):
    with pytest.raises(UserError, match=r"between 2\.278 .* and 4\.444"):
        palettize_run(source, tmp_path / "new", dataclasses.replace(PLAIN, bits=bits), None, silent)
    assert not (tmp_path / "new").exists()


def test_a_group_that_does_not_divide_writes_nothing(cache, tmp_path):
    odd = make_run(tmp_path / "odd", cache, architecture=Architecture(400, 64, 2, 4, 2, 16, 120))
    with pytest.raises(UserError, match=r"layers\.00\.ffn\.gate has 120 outputs"):
        palettize_run(odd, tmp_path / "new", PLAIN, None, silent)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [("layers.ffn.up", r"layers\.01\.ffn\.up"), ("embedding", "embedding"), ("layers.attention.key_norm", "key_norm")],
)
def test_weights_that_are_no_numbers_are_named(cache, tmp_path, name, said):
    def poison(params):
        bad = attrgetter(name)(params)
        worse = bad.at[(bad.shape[0] - 1,) + (0,) * (bad.ndim - 1)].set(np.nan)
        return jax.tree.map(lambda leaf: worse if leaf is bad else leaf, params)

    run = make_run(tmp_path / "dense", cache, poison)
    with pytest.raises(UserError, match=said + ".* not all finite"):
        palettize_run(run, tmp_path / "new", PLAIN, None, silent)
    assert not (tmp_path / "new" / "palettes" / "palettes.json").exists()


def test_palettes_json_is_the_whole_list(whole):
    target, about = whole
    assert read_json(target / "palettes" / "palettes.json") == about
    assert [tensor["name"] for tensor in about["tensors"]][:2] == [
        "layers.00.attention.query",
        "layers.00.attention.key",
    ]
    assert len(about["tensors"]) == 15 and len(about["fingerprint"]) == 16
