"""The search beside a brute force over everything, and the comparison of chips."""

import dataclasses
import itertools

import pytest

from pomona.core.chips import CHIPS
from pomona.core.errors import UserError
from pomona.core.fleet import parse_fleet
from pomona.model.config import Architecture, Execution
from pomona.model.count import REMAT
from pomona.model.presets import AFM_DEVICE, AFM_SERVER
from pomona.parallel.config import MeshConfig
from pomona.plan.answer import answer
from pomona.plan.compare import COMPARED, compare, halved_batch
from pomona.plan.estimate import estimate
from pomona.plan.search import least_memory, more_chips, search
from pomona.plan.work import lay_out
from pomona.recipes.registry import HARDWARE, recipe
from pomona.train.config import Run, Stage

WIDE = Architecture(
    vocab_size=6144, model_dim=1536, num_layers=40, num_heads=12, num_kv_heads=4, head_dim=128, ffn_dim=6144
)


def make_run(architecture=WIDE, **stage):
    stage = Stage("core", **({"steps": 100, "batch_size": 48, "sequence_length": 4096} | stage))
    return Run("run", architecture, (stage,), execution=Execution(remat="full"))


def everything(run, stage, fleet):
    """Every mesh, policy and number of micro-batches that `lay_out` accepts."""
    sides = range(1, fleet.devices + 1)
    for data, fsdp, seq, tensor in itertools.product(sides, repeat=4):
        if data * fsdp * seq * tensor != fleet.devices:
            continue
        mesh = MeshConfig(data=data, fsdp=fsdp, seq=seq, tensor=tensor)
        for policy in REMAT:
            for micro_batches in range(1, stage.batch_size + 1):
                cut = dataclasses.replace(stage, micro_batches=micro_batches)
                tried = dataclasses.replace(run, stages=(cut,), mesh=mesh, execution=Execution(remat=policy))
                if stage.batch_size % micro_batches:
                    continue
                try:
                    layout = lay_out(tried, cut, fleet)
                except UserError:
                    continue
                yield estimate(layout, 1.0)


@pytest.mark.parametrize(
    ("chips", "slices", "batch_size"), [("v5e-8", 1, 48), ("v5e-8", 2, 48), ("v6e-16", 1, 96), ("tpu7x-8", 1, 36)]
)
def test_the_search_finds_what_a_brute_force_finds(chips, slices, batch_size):
    fleet, run = parse_fleet(chips, slices), make_run(batch_size=batch_size)
    stage = run.stages[0]
    every = list(everything(run, stage, fleet))
    fitting = [e for e in every if e.fits]
    found = search(run, stage, fleet, 1.0)
    assert fitting and len(fitting) < len(every), "the case decides something"
    best = min(e.step_seconds for e in fitting)
    assert found[0].step_seconds <= best * 1.002 and found[0].fits
    assert min(e.step_seconds for e in found) == best
    assert all(e.fits and e.layout.sizes["data"] % slices == 0 for e in found)
    # The fewest micro-batches that fit, for each mesh and policy that fits at all.
    fewest = {}
    for e in fitting:
        key = (tuple(e.layout.sizes.items()), e.layout.run.execution.remat)
        fewest[key] = min(fewest.get(key, 10**9), e.layout.micro_batches)
    assert fewest == {
        (tuple(e.layout.sizes.items()), e.layout.run.execution.remat): e.layout.micro_batches for e in found
    }
    assert least_memory(run, stage, fleet, None).memory.total == min(e.memory.total for e in every)


def test_what_does_not_fit_says_what_does():
    run = dataclasses.replace(make_run(AFM_DEVICE, batch_size=256), mesh=MeshConfig(fsdp=2, tensor=8))
    said = answer(run, run.stages[0], parse_fleet("v5e-16"), 1.2)
    assert said.estimate and not said.estimate.fits and not said.problem
    kinds = [change.what for change in said.changes]
    assert kinds == ["on this mesh", "on the best mesh"]
    assert all(change.estimate.fits for change in said.changes)
    near, best = (change.estimate for change in said.changes)
    assert near.layout.sizes == said.estimate.layout.sizes
    assert best.step_seconds < near.step_seconds
    assert "--stages.0.micro-batches" in said.changes[0].typed


def test_the_search_finds_what_compiled_best():
    """AFM-server's core stage by whole programs (docs/benchmarks/fleet.md): 4.99 s; 6.35 and more with tensor."""
    run = recipe("afm_server")()
    found = search(run, run.stages[0], HARDWARE["afm_server"].fleet, None)
    assert found[0].layout.sizes == {"data": 8, "fsdp": 512, "seq": 2, "tensor": 1}
    assert found[0].layout.run.execution.remat == run.execution.remat == "ffn"
    sharded = [e for e in found if e.layout.sizes["tensor"] > 1]
    assert all(e.terms.sums > 0 and e.step_seconds > found[0].step_seconds for e in sharded)


def test_more_chips_are_the_smallest_number_that_fits():
    run = make_run(AFM_SERVER, batch_size=4096)
    fleet = parse_fleet("v4-64")
    assert search(run, run.stages[0], fleet, None) == []
    more = more_chips(run, run.stages[0], fleet, None)
    chips = more.layout.fleet.chips
    assert more.fits and chips > fleet.chips
    assert search(run, run.stages[0], parse_fleet(f"v4-{chips}"), None) == []  # half of them
    said = answer(run, run.stages[0], fleet, None)
    assert said.problem or not said.estimate.fits
    assert [change.what for change in said.changes] == ["on more chips"]
    assert f"--chips v4-{2 * chips}" in said.changes[0].typed


def test_a_stage_that_does_not_divide_says_what_does():
    run = dataclasses.replace(make_run(batch_size=4), mesh=MeshConfig(fsdp=8))
    said = answer(run, run.stages[0], parse_fleet("v5e-8"), 1.2)
    assert said.estimate is None and "does not divide" in said.problem.what
    assert said.changes[0].estimate.fits


def test_every_chip_is_compared_at_the_same_number_with_its_own_best_mesh():
    run = make_run(AFM_DEVICE, batch_size=512, steps=1000)
    found = compare(run, run.stages, 256)
    assert [each.chip for each in found] == [CHIPS[name] for name in COMPARED]
    for each in found:
        assert each.plans.fleet.chips == 256 and each.half_chips.fleet.chips == 128
        assert each.quarter_chips.fleet.chips == 64
        assert each.plans.fits, each.chip.name
        best = search(run, run.stages[0], each.plans.fleet, 1.0)[0]
        assert each.plans.first.layout.sizes == best.layout.sizes
        assert each.half_chips.days > each.plans.days
        assert (each.plans.usd is None) == (each.chip.price is None)
        assert (each.plans.kwh is None) == (each.chip.power_watts is None)
        # The same tokens in smaller steps are never faster.
        assert each.half_batch.days >= each.plans.days * 0.999
    by_name = {each.chip.name: each.plans for each in found}
    assert by_name["v5e"].fleet.slices == 1 and by_name["7x"].days < by_name["v4"].days


def test_half_the_batch_is_the_same_tokens():
    stage = Stage("core", 100, 64, 4096)
    half = halved_batch(stage)
    assert half.steps * half.batch_tokens == stage.steps * stage.batch_tokens and half.batch_size == 32
    assert halved_batch(Stage("core", 100, 1, 4096)) is None


def test_a_number_that_a_chip_does_not_come_in_is_left_out():
    run = make_run(batch_size=64)
    found = {each.chip.name: each for each in compare(run, run.stages, 4)}
    assert all(each.plans for each in found.values())
    assert found["v4"].half_chips is None and found["h100"].half_chips is not None
    assert {name for name, each in ((e.chip.name, e) for e in compare(run, run.stages, 12)) if each.plans is None} == {
        *("a100-80gb", "h100", "h200", "b200")
    }
