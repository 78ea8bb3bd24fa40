"""The cost model on two real programs, compiled by libtpu and stored by `make_programs.py`: AFM-on-device's step with a
few layers on eight chips, two copies in four shards.
"""

import math
import re
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
from make_programs import LAYERS, path_of, read, run_of, stripped

from pomona.core.fleet import parse_fleet
from pomona.model.count import training_flops
from pomona.plan.collectives import Places
from pomona.plan.hlo import parse
from pomona.plan.timeline import predict
from pomona.plan.verify import crossed_axes

STEP_SECONDS = {"v5p:2x2x2": 0.0937889524, "v4:2x2x2": 0.1430589269}
"""What the model says today: a change of it is to be seen in review."""

CLOCK = {"v5p:2x2x2": 1.75e9, "v4:2x2x2": 1.05e9}


@pytest.fixture(scope="module", params=LAYERS)
def stored(request):
    """A stored program, what is predicted for it, and what it was compiled of."""
    content = read(path_of(request.param))
    program = parse(content["text"])
    places = Places(parse_fleet(content["chips"]), np.array(content["places"]))
    return SimpleNamespace(**content, program=program, fleet=places.fleet, prediction=predict(program, places))


def blocks(text):
    """The lines of each computation, by name."""
    found = re.findall(r"^(?:ENTRY )?%([\w.\-]+) \([^\n]*\{\n(.*?)^\}$", text, flags=re.MULTILINE | re.DOTALL)
    return {name: content.splitlines() for name, content in found}


def loops(text):
    """(body, trips) of each loop, read off the text."""
    computations = blocks(text)
    found = []
    for line in re.findall(r"^.* while\(.*$", text, flags=re.MULTILINE):
        condition = "\n".join(computations[re.search(r"condition=%([\w.\-]+)", line)[1]])
        (trips,) = re.findall(r"constant\((\d+)\)", condition)
        found.append((re.search(r"body=%([\w.\-]+)", line)[1], int(trips)))
    return found


def test_the_loops_are_those_over_the_layers_there_and_back(stored):
    whiles = [i for lines in stored.program.computations.values() for i in lines if i.opcode == "while"]
    assert [stored.program.trips(loop) for loop in whiles] == [stored.layers, stored.layers]
    assert [(loop.calls("body"), stored.program.trips(loop)) for loop in whiles] == loops(stored.text)
    assert ["transpose" in loop.op_name for loop in whiles] == [False, True]


def test_work_is_the_compilers_cycles_times_trips(stored):
    computations = blocks(stored.text)
    entry = re.search(r"^ENTRY %([\w.\-]+)", stored.text, flags=re.MULTILINE)[1]
    cycles = {}
    for name, trips in [(entry, 1), *loops(stored.text)]:
        for line in computations[name]:
            if found := re.search(r'"estimated_cycles":"(\d+)"', line):
                cycles[re.match(r"\s+(?:ROOT )?%([\w.\-]+)", line)[1]] = trips * int(found[1])
    work = [c for c in stored.prediction.costs if c.kind in ("product", "elementwise", "copy")]
    estimated = [cost for cost in work if re.search(r"\(([^()]*)\)$", cost.name)[1] in cycles]
    assert len(cycles) > 200 and len(estimated) == len([n for n in cycles.values() if n])
    assert sum(c.seconds for c in estimated) == pytest.approx(sum(cycles.values()) / CLOCK[stored.chips])
    without = sum(cost.seconds for cost in work) - sum(cost.seconds for cost in estimated)
    assert 0 <= without < 0.02 * stored.prediction.step_seconds


def test_collectives_move_the_weights_that_the_mesh_divides(stored):
    moved = defaultdict(int)
    for cost in stored.prediction.costs:
        if cost.transfer:
            axes = crossed_axes(cost.transfer.members, stored.mesh)
            moved[cost.transfer.kind, axes] += cost.trips * cost.transfer.size_bytes
    a = run_of(stored.layers).architecture
    matrices = 2 * a.model_dim * (a.num_heads + a.num_kv_heads) * a.head_dim + 3 * a.model_dim * a.ffn_dim
    layers, embedding = 2 * stored.layers * matrices, 2 * a.vocab_size * a.model_dim  # bytes in bfloat16
    assert moved["all-gather", ("fsdp",)] == 2 * layers + embedding, "weights there and back, the embedding once"
    assert moved["reduce-scatter", ("fsdp",)] == layers + 2 * embedding, "it is read at both ends"
    assert moved["all-reduce", ("data",)] == layers / 4 + 2 * embedding / 4, "of shards; the embedding's in float32"
    small = {("all-reduce", ("data", "fsdp")), ("all-reduce", ("fsdp",))}  # norms, the loss, counts
    assert set(moved) == {("all-gather", ("fsdp",)), ("reduce-scatter", ("fsdp",)), ("all-reduce", ("data",))} | small
    assert all(0 < moved[each] < 1e6 for each in small)


def test_attention_runs_once_there_and_once_back(stored):
    splash = [cost for cost in stored.prediction.costs if cost.kind == "kernel" and "splash" in cost.name]
    assert [cost.trips for cost in splash] == [stored.layers] * 2
    blocks = 2 * 24 * (4 * 5 // 2)  # sequences, heads, blocks of 1024 under the diagonal of 4096
    for cost, products in zip(splash, (2, 5)):
        flops = blocks * products * 2 * 1024 * 1024 * 128
        peak = stored.fleet.chip.flops_per_second
        assert flops / peak < cost.seconds / cost.trips < 2.2 * flops / peak


def test_the_step_takes_what_its_costs_add_up_to(stored):
    prediction = stored.prediction
    assert math.fsum(cost.seconds for cost in prediction.costs) == pytest.approx(prediction.step_seconds, rel=1e-9)
    assert prediction.step_seconds == pytest.approx(STEP_SECONDS[stored.chips], rel=1e-6)
    run = run_of(stored.layers)
    flops = training_flops(run.architecture, 4096).causal * run.stages[0].batch_tokens
    assert prediction.step_seconds > flops / (8 * stored.fleet.chip.flops_per_second)


def test_where_time_goes_has_names_of_our_source(stored):
    sources = lambda kind: {cost.source.split(":")[0] for cost in stored.prediction.costs if cost.kind == kind}
    assert sources("product") == {"rules.py", "cross_entropy.py"}
    assert sources("kernel") == {"splash_attention_kernel.py", "norm_rope_kernel.py"}


def test_what_is_stored_is_small_and_stripped_for_good(stored):
    assert path_of(stored.chips).stat().st_size < 150_000
    assert stripped(stored.text) == stored.text
    assert "custom_call_config" not in stored.text and "/home" not in stored.text and "/tmp" not in stored.text
