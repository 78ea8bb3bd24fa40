"""Task adapters and how adapters leave: where they begin, what of a task counts, PEFT's algebra in float64."""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "export"))
from reference_models import our_logits

from pomona.adapters.bundle import read_bundle
from pomona.cli.main import main
from pomona.compress.adapt import task_run
from pomona.core.errors import UserError
from pomona.export.adapter import export_adapter
from pomona.export.hf import export_hf
from pomona.export.peft import export_peft, import_peft
from pomona.model.adapter import detach, named
from pomona.model.config import PLACES
from pomona.parallel.config import MeshConfig
from pomona.parallel.mesh import build_mesh
from pomona.train.load import load_base, load_model
from pomona.train.loop import train
from pomona.train.objectives import objective_of


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A file of 200 examples whose response is one word, decided by the prompt's last."""
    path = tmp_path_factory.mktemp("task") / "words.jsonl"
    rng, words = np.random.default_rng(0), ["fox", "dogs", "numbers", "while"]
    rows = []
    for _ in range(200):
        chosen = rng.integers(len(words))
        prompt = " ".join(rng.choice(["the", "quick", "brown", "lazy"], 6)) + f" {words[chosen]}:"
        rows.append({"prompt": prompt, "response": f" {words[(chosen + 1) % len(words)]}" * 2})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def beginning(run):
    return jax.tree.map(np.asarray, objective_of(run).begin(build_mesh(MeshConfig(), jax.devices()[:1])))


def test_it_begins_at_the_recovery_adapter_or_at_the_base(folders, recovered, task):
    path = recovered[0]
    run = task_run(path, task)
    assert jax.tree.all(jax.tree.map(np.array_equal, beginning(run), detach(load_model(path).params)[1]))
    assert load_base(path)[1] == load_base(folders[0])[1], "the recovered run's base is the palettized one"
    for folder in (folders[0], folders[0].with_name("dense")):
        adapter = beginning(task_run(folder, task, rank=3))
        assert all(not getattr(adapter, name).b.any() and getattr(adapter, name).a.std() > 0 for name in PLACES)
        assert adapter.query.a.shape == (2, 64, 3)
    with pytest.raises(UserError, match="is to have rank 3"):
        objective_of(task_run(path, task, rank=3))


@pytest.mark.slow
def test_a_task_is_learned_by_its_responses_alone(recovered, task, tmp_path):
    run = task_run(recovered[0], task)
    stage = dataclasses.replace(
        run.stages[0], steps=20, schedule=dataclasses.replace(run.stages[0].schedule, warmup_steps=2)
    )
    run = dataclasses.replace(run, stages=(stage,), mesh=MeshConfig(data=-1, fsdp=1))
    result = train(run, tmp_path / "task")
    assert result["bits_per_byte"] < 0.8 * result["bits_per_byte_before"]
    export_adapter(tmp_path / "task", tmp_path / "bundle")
    about = json.loads((tmp_path / "bundle" / "adapter.json").read_text())
    assert about["metric"]["bits_per_byte"] == result["bits_per_byte"]
    base, fingerprint = load_base(recovered[0])
    bundle = read_bundle(tmp_path / "bundle", fingerprint, base.run.architecture)
    _, adapter = detach(load_model(tmp_path / "task").params)
    assert jax.tree.all(jax.tree.map(np.array_equal, bundle.weights, named(adapter)))


def test_the_folder_for_peft_is_the_same_correction(folders, recovered, tmp_path):
    """PEFT: y = W x + lora_alpha / r * lora_B (lora_A x), by the names and shapes that its LoRA layers have."""
    export_peft(recovered[0], tmp_path / "peft")
    export_hf(load_model(folders[0]), tmp_path / "base")
    export_hf(load_model(recovered[0]), tmp_path / "merged")
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    lora = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    base, merged = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "merged"))
    targets = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 16, 16.0)
    assert set(config["target_modules"]) == targets and len(lora) == 2 * 7 * 2
    changed = 0
    for name, weight in base.items():
        if name.split(".")[-2] not in targets:
            np.testing.assert_array_equal(merged[name], weight)
            continue
        a, b = (lora[f"base_model.model.{name.removesuffix('weight')}lora_{side}.weight"] for side in "AB")
        assert a.shape == (16, weight.shape[1]) and b.shape == (weight.shape[0], 16)
        added = config["lora_alpha"] / config["r"] * b.astype(np.float64) @ a.astype(np.float64)
        np.testing.assert_allclose(merged[name], weight + added, atol=1e-6)
        changed += np.abs(added).max() > 1e-3
    assert changed == 14


def test_a_folder_of_peft_comes_back_as_the_bundle(folders, recovered, tmp_path, capsys):
    export_peft(recovered[0], tmp_path / "peft")
    export_adapter(recovered[0], tmp_path / "bundle")
    words = ["import", "peft", str(tmp_path / "peft"), "--base", str(folders[0]), "--adapter", str(tmp_path / "back")]
    assert main(words) == 0
    assert "--adapter" in capsys.readouterr().out
    base, fingerprint = load_base(folders[0])
    one, other = (read_bundle(tmp_path / name, fingerprint, base.run.architecture) for name in ("bundle", "back"))
    assert one.scale == other.scale
    assert jax.tree.all(jax.tree.map(np.array_equal, one.weights, other.weights))
    assert main(words) == 2
    assert "exists already" in capsys.readouterr().err

    config = tmp_path / "peft" / "adapter_config.json"
    plain = json.loads(config.read_text())
    for changes, problem in (
        ({"use_dora": True}, "use_dora = True"),
        ({"peft_type": "IA3"}, "peft_type = 'IA3'"),
        ({"r": 8}, "has base_model.model.model.layers.0"),
        ({"r": None}, "r = None"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ):
        config.write_text(json.dumps(plain | changes))
        assert main([*words[:-1], str(tmp_path / "new")]) == 2
        assert problem in capsys.readouterr().err
    for words, problem in (
        (["import", "peft", str(tmp_path / "peft")], "without --base"),
        (["import", "peft", str(tmp_path), "--base", str(folders[0])], "has no adapter_config.json"),
        (["import", "hf", "any", "--base", "x"], "this is for import peft"),
    ):
        assert main(words) == 2
        assert problem in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_lora_of_peft_is_read_live(folders, tmp_path):
    """Two projections, alpha / sqrt(r): the logits of PEFT's own model."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from pomona.model.adapter import attach, from_named

    export_hf(load_model(folders[0]), tmp_path / "base")
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "down_proj"], use_rslora=True)
    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config)
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.05)
    theirs.save_pretrained(tmp_path / "peft")
    import_peft(tmp_path / "peft", folders[0], tmp_path / "bundle")
    base, fingerprint = load_base(folders[0])
    bundle = read_bundle(tmp_path / "bundle", fingerprint, base.run.architecture)
    ours = dataclasses.replace(base, params=attach(base.params, from_named(bundle.weights), bundle.scale))
    tokens = base.tokenizer.encode("the quick brown fox waits")
    expected = theirs(torch.tensor([tokens])).logits[0].detach().numpy()
    np.testing.assert_allclose(our_logits(ours, tokens), expected, atol=1e-4)
    assert np.abs(our_logits(base, tokens) - expected).max() > 0.1


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers for what it will rename
def test_peft_reads_the_folder_live(folders, recovered, tmp_path):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    export_peft(recovered[0], tmp_path / "peft")
    export_hf(load_model(folders[0]), tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    tokens = load_model(folders[0]).tokenizer.encode("the quick brown fox waits")
    theirs = lambda model: model(torch.tensor([tokens])).logits[0].detach().numpy()
    before = theirs(base)
    after = theirs(PeftModel.from_pretrained(base, tmp_path / "peft"))
    np.testing.assert_allclose(after, our_logits(load_model(recovered[0]), tokens), atol=1e-4)
    assert np.abs(after - before).max() > 0.1


@pytest.mark.slow
def test_prompts_are_continued_with_the_adapters_they_ask_for(folders, recovered, tmp_path, capsys):
    base, bundle = str(folders[0]), str(tmp_path / "bundle")
    assert main(["export", str(recovered[0]), "--format", "adapter", "--output", bundle]) == 0
    capsys.readouterr()

    def say(*arguments):
        assert main(["generate", *arguments, "--temperature", "0", "--max-tokens", "8"]) == 0
        return capsys.readouterr().out

    own = say(str(recovered[0]), "the quick")
    assert say(base, "the quick", "--adapter", bundle) == own != say(base, "the quick")
    assert say(base, "the quick", "--adapter", bundle, "--cache", "int8").startswith("the quick")
    assert main(["generate", base, "a", "b", "c", "--adapter", bundle, "--adapter", bundle]) == 2
    assert "2 adapters for 3 prompts" in capsys.readouterr().err
    assert main(["generate", str(folders[0].with_name("dense")), "the", "--adapter", bundle]) == 2
    assert "belongs to the base" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "which is not there"), ("", "first line"), ("{\n", "first line"), ('{"question": "a"}\n', "first line")],
)
def test_a_task_that_is_none_is_refused(folders, tmp_path, content, message):
    path = tmp_path / "task.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        task_run(folders[0], path)
