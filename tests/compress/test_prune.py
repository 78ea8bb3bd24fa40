"""Pruning as a stage: the smaller model is the masked parent, on every mesh, after every kill; and what is refused."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compress_runs import ALL_AXES, killed_at, masks, start

from pomona.compress.prune import masks_run, prune
from pomona.core.errors import UserError
from pomona.core.run_folder import RunFolder, read_config
from pomona.metrics.records import read_records
from pomona.model.config import resolve
from pomona.model.decoder import parameter_specs
from pomona.model.objective import TokenBatch, hidden_states
from pomona.model.spec import map_specs
from pomona.parallel.config import MeshConfig
from pomona.train.config import Run
from pomona.train.load import load_model
from pomona.train.objective_config import NextToken, SoftTopK
from pomona.train.soft_top_k import budget_at, hard_mask, mask_at, masked, narrowed, temperature_at
from pomona.train.unit_scores import magnitude

FFN = 48


WEIGHTS_TOO = {"objective": SoftTopK(ffn=FFN, train_weights=True), "mesh": MeshConfig(1, 2, 2, 2)}


def short(parent, **changes):
    return masks(parent, FFN, **changes)


@pytest.fixture(scope="module")
def pruned(parent, tmp_path_factory):
    """A pruned folder, its weights trained along, learned on 8 devices of all kinds; and what it tells."""
    folder = tmp_path_factory.mktemp("pruned") / "run"
    changes = f"{FFN}, objective=SoftTopK(ffn={FFN}, train_weights=True), {ALL_AXES}"
    done = start("prune", parent, folder, changes, devices=8)
    assert done.returncode == 0, done.stderr
    return folder, prune(short(parent, **WEIGHTS_TOO), folder, report=lambda _: None)


def logits(model, tokens_BT):
    """[B, T, V] by the training path."""
    ones, places = jnp.ones_like(tokens_BT), jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    batch = TokenBatch(tokens_BT, tokens_BT, ones, places)
    execution = resolve(model.run.execution, "cpu")
    run = jax.jit(lambda p, b: hidden_states(p, b, model.run.architecture, execution, model.stage.rope_base))
    params = jax.device_put(model.params, jax.devices()[0])
    return run(params, batch) @ params.embedding.T


def test_the_pruned_model_is_the_hard_masked_parent(pruned, parent):
    folder, _ = pruned
    small, wide = load_model(folder), load_model(folder / "masks")
    assert small.params.layers.ffn.gate.shape[-1] == FFN and wide.params.layers.ffn.gate.shape[-1] == 128
    off = np.abs(np.asarray(wide.params.layers.ffn.down)).max(-1) == 0
    assert (off.sum(-1) == 128 - FFN).all(), "the other units of every layer are masked"
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 400, (4, 24)), jnp.int32)
    np.testing.assert_allclose(logits(small, tokens), logits(wide, tokens), atol=1e-5)
    run = read_config(RunFolder(folder), Run)
    assert run.objective == NextToken() and run.architecture.ffn_dim == FFN
    assert run.origin.run == str(parent) and small.step == run.origin.step == 12
    weights = np.asarray(load_model(parent).params.embedding), np.asarray(small.params.embedding)
    assert not np.array_equal(*weights), "the weights were trained along"


def test_it_tells_the_loss_before_during_and_after(pruned, parent):
    folder, told = pruned
    last = lambda path: [r for r in read_records(RunFolder(path).metrics) if "bits_per_byte" in r][-1]["bits_per_byte"]
    assert told.units_kept == (FFN, FFN) and told.units_before == 128
    np.testing.assert_allclose(told.before, last(parent), rtol=1e-5)
    np.testing.assert_allclose(told.after, last(folder), rtol=1e-12)
    np.testing.assert_allclose(told.after, last(folder / "masks"), rtol=1e-5)
    assert [(look.step, round(look.units, 3)) for look in told.during] == [(4, 128 - 80 * 0.8), (8, FFN)]
    np.testing.assert_allclose([look.temperature for look in told.during], [1.0, 0.01**0.75], rtol=1e-5)
    assert all(told.before / 2 < look.bits_per_byte < told.before * 2 for look in told.during)


def test_again_it_is_done_already(pruned, parent):
    folder, told = pruned
    files = lambda: {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}
    before, said = files(), []
    assert prune(short(parent, **WEIGHTS_TOO), folder, report=said.append) == told
    assert "already" in said[0] and files() == before


@pytest.mark.parametrize("method", ["magnitude", "activation"])
def test_one_shot_methods_keep_the_units_of_the_largest_importance(parent, tmp_path, method):
    """Against NumPy in float64: norms for one, a forward pass with every unit's values for the other."""
    run = short(parent)
    prune(run, tmp_path / "out", method, report=lambda _: None)
    small, wide = load_model(tmp_path / "out").params.layers.ffn, load_model(parent).params.layers.ffn
    gate, up, down = (np.asarray(w, np.float64) for w in (wide.gate, wide.up, wide.down))
    importance = np.linalg.norm(down, axis=2)
    if method == "magnitude":
        importance *= np.linalg.norm(gate, axis=1) * np.linalg.norm(up, axis=1)
    else:
        importance *= mean_sizes(run, load_model(parent))
    for layer in range(2):
        kept = np.sort(np.argsort(importance[layer])[-FFN:])
        np.testing.assert_array_equal(np.asarray(small.down[layer]), down[layer][kept].astype(np.float32))
        np.testing.assert_array_equal(np.asarray(small.gate[layer]), gate[layer][:, kept].astype(np.float32))


def mean_sizes(run, model):
    """sum |h| over the tokens of the first four batches, [L, F]: each layer by itself, in NumPy, from its input.

    A layer's input is what the decoder of the layers before it gives without its final norm.
    """
    from pomona.data.prepare import open_batches, prepare
    from pomona.model.objective import TokenBatch, hidden_states

    a, stage = model.run.architecture, run.stages[0]
    batches = open_batches(prepare(run.data, lambda _: None), stage.sequence_length, stage.batch_size, run.seed)
    execution = resolve(run.execution, "cpu")
    sums = np.zeros((a.num_layers, a.ffn_dim))
    for step in range(4):
        host = batches.batch(step)
        batch = TokenBatch(*(jnp.asarray(x) for x in (host.tokens, host.targets, host.segments, host.positions)))
        for layer in range(a.num_layers):
            # The block's own output is taken away, so the final norm sees the sum after this layer's attention.
            some = jax.tree.map(lambda x, n=layer + 1: x[:n], model.params.layers)
            ffn = dataclasses.replace(some.ffn, down=some.ffn.down.at[layer].set(0.0))
            norm = some.ffn_norm[layer]
            params = dataclasses.replace(
                model.params, layers=dataclasses.replace(some, ffn=ffn), final_norm=jnp.asarray(norm)
            )
            shallow = dataclasses.replace(a, num_layers=layer + 1)
            hidden = jax.jit(lambda p, b, a=shallow: hidden_states(p, b, a, execution, stage.rope_base))
            h = np.asarray(hidden(params, batch), np.float64)
            gate, up = h @ np.asarray(ffn.gate[layer], np.float64), h @ np.asarray(ffn.up[layer], np.float64)
            sizes = np.abs(gate / (1 + np.exp(-gate)) * up)
            sums[layer] += sizes[np.asarray(host.segments) > 0].sum(0)
    return sums


def test_the_mask_anneals_from_all_units_to_a_hard_mask_of_the_budget(parent):
    config = SoftTopK(ffn=10)
    scores = jnp.asarray(np.random.default_rng(1).normal(size=(2, 40)), jnp.float32)
    np.testing.assert_allclose(mask_at(config, scores, jnp.float32(0.0)), 1.0, rtol=1e-6)
    for done in np.linspace(0.0, 0.89, 9, dtype=np.float32):
        mask = np.asarray(mask_at(config, scores, jnp.float32(done)))
        expected = 40 - 30 * min(done / 0.5, 1.0)
        np.testing.assert_allclose(mask.sum(-1), expected, rtol=1e-5)
        np.testing.assert_allclose(budget_at(config, 40, done), expected, rtol=1e-6)
    assert float(temperature_at(config, 0.5)) == 1.0
    np.testing.assert_allclose(temperature_at(config, 0.9), 0.01, rtol=1e-5)
    hard = np.asarray(mask_at(config, scores, jnp.float32(0.9)))
    np.testing.assert_array_equal(hard, np.asarray(scores) >= np.sort(scores, axis=-1)[:, -10, None])
    np.testing.assert_array_equal(hard, hard_mask(scores, 10))


def test_narrowing_keeps_units_in_their_order():
    from small_run import small_run

    draw = np.random.default_rng(3).normal
    params = map_specs(lambda spec: jnp.asarray(draw(size=spec.shape)), parameter_specs(small_run("c").architecture))
    mask = hard_mask(jnp.asarray(np.random.default_rng(2).normal(size=(2, 128)), jnp.float32), 5)
    small, wide = narrowed(params, mask, 5).layers.ffn, masked(params, mask).layers.ffn
    for layer in range(2):
        kept = np.flatnonzero(np.asarray(mask[layer]))
        np.testing.assert_array_equal(small.up[layer], params.layers.ffn.up[layer][:, kept])
        np.testing.assert_array_equal(small.down[layer], wide.down[layer][kept])


DEATHS = {
    "while masks are learned": killed_at(8),
    "between learning and writing": "stage._narrowed = lambda *_: os.kill(os.getpid(), 9)",
    "while the model is written": "stage.record_event = lambda *_, **__: os.kill(os.getpid(), 9)",
}


@pytest.fixture(scope="module")
def undisturbed(parent, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    done = start("prune", parent, folder, str(FFN))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_after_every_death_the_same_command_makes_the_same_model(parent, undisturbed, tmp_path):
    out = tmp_path / "run"
    for hook in DEATHS.values():
        assert start("prune", parent, out, str(FFN), hook).returncode == -9
        assert not (out / "config.json").exists(), "it is not finished"
    again = start("prune", parent, out, str(FFN))
    assert again.returncode == 0, again.stderr
    assert "resume" in [event["event"] for event in read_records(RunFolder(out / "masks").events)]
    same = jax.tree.map(np.array_equal, load_model(out).params, load_model(undisturbed).params)
    assert all(jax.tree.leaves(same))
    told = [[e for e in read_records(RunFolder(f).events) if e["event"] == "pruned"] for f in (out, undisturbed)]
    assert len(told[0]) == 1 and told[0][0]["after"] == told[1][0]["after"]


def test_weights_that_are_not_finite_are_refused_before_anything_is_written(parent, tmp_path):
    from pomona.checkpoint.config import CheckpointConfig
    from pomona.checkpoint.store import Store

    broken = tmp_path / "broken"
    shutil.copytree(parent, broken)
    shutil.rmtree(broken / "checkpoints")
    params = load_model(parent).params
    params = dataclasses.replace(params, embedding=params.embedding.at[3, 5].set(jnp.nan))
    store = Store(broken / "checkpoints", CheckpointConfig())
    store.save(12, {"params": params}, {"stage": "core", "step": 12})
    store.close()
    with pytest.raises(UserError, match="not finite, in"):
        prune(short(broken), tmp_path / "out", report=lambda _: None)
    assert not (tmp_path / "out").exists()


REFUSED = {
    "all units": (lambda run: dataclasses.replace(run, objective=SoftTopK(ffn=128)), "fewer than the 128 units"),
    "no unit": (lambda run: dataclasses.replace(run, objective=SoftTopK(ffn=0)), "at least 1"),
    "a mesh that does not divide": (
        lambda run: dataclasses.replace(run, objective=SoftTopK(ffn=49), mesh=MeshConfig(tensor=2)),
        "49 along 'ffn', which does not divide over 2",
    ),
    "no origin": (lambda run: dataclasses.replace(run, origin=None), "no origin"),
    "another model in its place": (
        lambda run: dataclasses.replace(run, origin=dataclasses.replace(run.origin, fingerprint="0" * 16)),
        "has changed",
    ),
    "temperatures upside down": (
        lambda run: dataclasses.replace(run, objective=SoftTopK(ffn=FFN, cold=2.0)),
        "0 < cold <= hot",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_pruning_is_one_clear_error_and_writes_nothing(parent, tmp_path, case):
    change, problem = REFUSED[case]
    with pytest.raises(UserError) as caught:
        prune(change(short(parent)), tmp_path / "out", report=lambda _: None)
    assert problem in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_folders_of_something_else_are_left_alone(parent, pruned, tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "mine.txt").write_text("mine")
    for method, out, problem in (
        ("soft-top-k", tmp_path / "texts", "no pruning by soft-top-k"),
        ("magnitude", pruned[0], "method: soft-top-k -> magnitude"),
        ("soft-top-k", parent, "holds another run"),
    ):
        before = sorted(out.rglob("*"))
        run = short(parent, mesh=MeshConfig(1, 2, 2, 2))
        with pytest.raises(UserError, match=problem):
            prune(run, out, method, report=lambda _: None)
        assert sorted(out.rglob("*")) == before


def test_masks_and_other_text_are_no_parent(parent, pruned, tmp_path):
    with pytest.raises(UserError, match="trains 'soft-top-k'"):
        masks_run(pruned[0] / "masks", 8)
    other = tmp_path / "other"
    shutil.copytree(parent, other)
    config = json.loads((other / "config.json").read_text())
    config["data"]["tokenizer"]["vocab_size"] = 380
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="another tokenizer"):
        prune(short(other), tmp_path / "out", report=lambda _: None)


def test_magnitude_is_the_same_on_every_mesh(parent):
    from pomona.parallel.mesh import build_mesh
    from pomona.train.origin import begin_at

    run = short(parent)
    read = begin_at(run.origin, parameter_specs(run.architecture))
    one = build_mesh(MeshConfig(), jax.devices()[:1])
    many = build_mesh(MeshConfig(1, 2, 2, 2))
    np.testing.assert_allclose(magnitude(read(one), one), magnitude(read(many), many), rtol=1e-6)
