"""The walk along a schedule, on programs written by hand after what libtpu prints; times by hand beside them.

All run on TPU v5p, 2x2x2: 1750 cycles are a microsecond. Devices 0 and 1 are neighbours on a line.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.core.fleet import parse_fleet
from pomona.plan.collectives import Places
from pomona.plan.hlo import parse
from pomona.plan.timeline import predict

MICRO = 1e-6
HBM = 2.765e12
LINK = 0.9 * 100e9
PLACES = Places(parse_fleet("v5p:2x2x2"), np.array([(0, x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]))
TWO_SLICES = Places(
    parse_fleet("v5p:2x2x2", 2),
    np.array([(s, x, y, z) for s in (0, 1) for x in (0, 1) for y in (0, 1) for z in (0, 1)]),
)

PAIRS = "replica_groups={{0,1},{2,3},{4,5},{6,7}}"
BIG = "f32[1000000]{0:T(1024)}"  # 4 MB
HALF = "f32[500000]{0:T(1024)}"
GATHER = 2e6 / LINK + MICRO  # of 4 MB among two: half comes from the other, over one link and one hop
REDUCE = 2 * GATHER
PRODUCT = """%product (a: bf16[8,8]) -> bf16[8,8] {
  %a = bf16[8,8]{1,0} parameter(0)
  ROOT %convolution.9 = bf16[8,8]{1,0} convolution(%a, %a), dim_labels=bf_io->bf
}
"""


def work(name, microseconds, calls="product"):
    return (
        f"%{name} = bf16[8,8]{{1,0}} fusion(%x), kind=kOutput, calls=%{calls}, "
        f'backend_config={{"window_config":{{"estimated_cycles":"{round(microseconds * 1750)}"}}}}'
    )


def computation(head, lines):
    return f"{head} (x: f32[1000000], i: s32[]) -> f32[] {{\n" + "".join(f"  {line}\n" for line in lines) + "}\n\n"


def predicted(*lines, places=PLACES, **others):
    """The prediction of an entry with these lines, and computations by name."""
    begin = [f"%x = {BIG} parameter(0)", f"%part = {HALF} parameter(1)", "%i = s32[] parameter(2)"]
    text = "HloModule jit_step, is_scheduled=true\n\n" + PRODUCT
    text += "".join(computation(f"%{name}", [*begin, *content]) for name, content in others.items())
    found = predict(parse(text + computation("ENTRY %main", [*begin, *lines])), places)
    assert sum(cost.seconds for cost in found.costs) == pytest.approx(found.step_seconds, rel=1e-12)
    assert sum(found.by_kind().values()) == pytest.approx(found.step_seconds, rel=1e-12)
    return found


def test_work_takes_the_compilers_cycles_at_the_chips_clock_and_is_named():
    found = predicted(work("fusion.1", 3), work("fusion.2", 2, calls="nothing"), "%copy.1 = f32[8]{0:S(1)} copy(%x)")
    assert found.by_kind() == pytest.approx({"product": 3e-6, "elementwise": 2e-6, "copy": 4e6 / (0.85 * HBM)})
    assert [cost.name for cost in found.costs] == ["fusion.1 (fusion.1)", "fusion.2 (fusion.2)", "copy.1 (copy.1)"]
    assert found.exposed_communication_seconds == 0


@pytest.mark.parametrize(
    ("line", "seconds"),
    [
        (f"%all-gather.1 = {BIG} all-gather(%part), channel_id=1, {PAIRS}, dimensions={{0}}", GATHER),
        (f"%all-reduce.1 = {BIG} all-reduce(%x), channel_id=1, {PAIRS}, to_apply=%add", REDUCE),
        (f"%reduce-scatter.1 = {HALF} reduce-scatter(%x), channel_id=1, {PAIRS}, dimensions={{0}}", GATHER),
        (f"%fusion.7 = {HALF} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.3", GATHER),
    ],
)
def test_a_synchronous_collective_is_exposed_whole(line, seconds):
    inner = f"%all-reduce.9 = {BIG} all-reduce(%x), channel_id=2, {PAIRS}, to_apply=%add"
    found = predicted(work("fusion.1", 5), line, work("fusion.2", 5), **{"all-reduce-scatter.3": [inner]})
    assert found.step_seconds == pytest.approx(10e-6 + seconds)
    assert found.exposed_communication_seconds == pytest.approx(seconds)
    (cost,) = [cost for cost in found.costs if cost.transfer]
    assert (cost.kind, cost.hidden_seconds) == ("collective", 0)
    assert (cost.transfer.members, cost.transfer.size_bytes) == ((0, 1), 4_000_000)


START = f"%all-gather-start.1 = ({HALF}, {BIG}) all-gather-start(%part), channel_id=1, {PAIRS}, dimensions={{0}}"
DONE = f"%all-gather-done.1 = {BIG} all-gather-done(%all-gather-start.1), channel_id=1"


@pytest.mark.parametrize("behind", [0, 10, 20, 100])
def test_a_split_collective_hides_behind_the_work_between_its_start_and_its_done(behind):
    found = predicted(work("fusion.1", 7), START, work("fusion.2", behind), DONE, work("fusion.3", 1))
    exposed = max(0, GATHER - behind * MICRO)
    assert found.step_seconds == pytest.approx((8 + behind) * MICRO + exposed)
    assert found.exposed_communication_seconds == pytest.approx(exposed, abs=1e-18)
    (cost,) = [cost for cost in found.costs if cost.transfer]
    assert cost.hidden_seconds == pytest.approx(GATHER - exposed)


def test_what_is_done_before_the_start_hides_nothing():
    found = predicted(work("fusion.1", 500), START, DONE)
    assert found.step_seconds == pytest.approx(500e-6 + GATHER)


def second(line):
    return line.replace(".1", ".2").replace("channel_id=1", "channel_id=2")


def test_collectives_go_over_the_links_one_after_the_other():
    found = predicted(START, second(START), work("fusion.1", 10), DONE, work("fusion.2", 10), second(DONE))
    assert found.step_seconds == pytest.approx(2 * GATHER)
    first, other = [cost for cost in found.costs if cost.transfer]
    assert first.seconds == pytest.approx(GATHER - 10e-6)
    assert other.seconds == pytest.approx(GATHER - 10e-6)
    late = predicted(START, second(START), work("fusion.1", 10), second(DONE), work("fusion.2", 5), DONE)
    assert late.step_seconds == pytest.approx(2 * GATHER + 5e-6), "the first has come before the second"


def test_a_synchronous_collective_does_not_end_another_of_the_same_channel():
    between = f"%all-reduce.1 = {BIG} all-reduce(%x), channel_id=1, {PAIRS}, to_apply=%add"
    found = predicted(START, between, DONE)
    assert found.step_seconds == pytest.approx(GATHER + REDUCE)
    assert len([cost for cost in found.costs if cost.transfer]) == 2


def fused(name, microseconds=None):
    """A fusion as XLA's async collective fusion makes them: start, a step behind a product, done."""
    cycles = f', backend_config={{"estimated_cycles":"{round(microseconds * 1750)}"}}' if microseconds else ""
    return f"%{name} = ({HALF}, {BIG}, u32[]{{:S(2)}}) fusion(%part), kind=kCustom, calls=%gathers{cycles}"


GATHERS = {
    "gathers": [
        f"%all-gather.9 = {BIG} all-gather(%part), channel_id=71, {PAIRS}, dimensions={{0}}",
        '%custom-call.16 = (f32[], u32[]{:S(2)}) custom-call(%all-gather.9), custom_call_target="AsyncCollectiveStart"',
    ]
}


@pytest.mark.parametrize(("idle", "driving"), [(100, 0), (100, 4), (0, 15), (50, 500)])
def test_a_fused_collective_moves_only_while_fused_work_drives_it(idle, driving):
    drives = [fused("fusion.5", driving)] if driving else []
    lines = [fused("async-collective-start"), work("fusion.1", idle), *drives, fused("async-collective-done")]
    found = predicted(*lines, **GATHERS)
    assert found.step_seconds == pytest.approx((idle + driving) * MICRO + max(0, GATHER - driving * MICRO))
    (cost,) = [cost for cost in found.costs if cost.transfer]
    assert cost.hidden_seconds == pytest.approx(min(GATHER, driving * MICRO))


def test_a_collective_that_nothing_drives_leaves_the_links_to_others():
    sync = f"%all-gather.1 = {BIG} all-gather(%part), channel_id=1, {PAIRS}, dimensions={{0}}"
    lines = [fused("async-collective-start"), sync, fused("fusion.5", 500), fused("async-collective-done")]
    assert predicted(*lines, **GATHERS).step_seconds == pytest.approx(GATHER + 500e-6)


COPY = f"%copy-start.1 = (f32[1000000]{{0:T(1024)S(1)}}, {BIG}, u32[]{{:S(2)}}) copy-start(%x)"
COPIED = "%copy-done.1 = f32[1000000]{0:T(1024)S(1)} copy-done(%copy-start.1)"


@pytest.mark.parametrize("behind", [0, 1, 100])
def test_copies_to_on_chip_memory_run_beside_the_work(behind):
    found = predicted(COPY, work("fusion.1", behind), COPIED)
    assert found.step_seconds == pytest.approx(max(behind * MICRO, 4e6 / HBM))
    assert found.by_kind().get("prefetch", 0) == pytest.approx(max(0, 4e6 / HBM - behind * MICRO), abs=1e-18)
    assert found.exposed_communication_seconds == 0


def test_copies_queue_and_a_slice_moves_only_itself():
    quarter = f"(({BIG}), f32[250000]{{0:S(1)}}, u32[]{{:S(2)}})"
    lines = [f"%slice-start.1 = {quarter} slice-start(%x), slice={{[0:250000]}}", COPY, COPIED]
    found = predicted(*lines, "%slice-done.1 = f32[250000]{0:S(1)} slice-done(%slice-start.1)")
    assert found.step_seconds == pytest.approx(5e6 / HBM)


def test_links_and_memory_are_busy_at_the_same_time():
    assert predicted(START, COPY, DONE, COPIED).step_seconds == pytest.approx(max(GATHER, 4e6 / HBM))


def condition(trips):
    return [f"%constant.1 = s32[] constant({trips})", "%lt = pred[] compare(%i, %constant.1), direction=LT"]


def test_a_loop_is_its_body_times_its_trips_also_within_another():
    outer = [work("fusion.2", 5), "%while.2 = f32[] while(%x), condition=%three, body=%inner", START, DONE]
    found = predicted(
        *(work("fusion.1", 1), "%while.1 = f32[] while(%x), condition=%seven, body=%outer", work("fusion.9", 2)),
        inner=[work("fusion.3", 11)],
        outer=outer,
        three=condition(3),
        seven=condition(7),
    )
    assert found.step_seconds == pytest.approx((1 + 2 + 7 * (5 + 3 * 11)) * MICRO + 7 * GATHER)
    assert [(cost.name.split()[0], cost.trips) for cost in found.costs] == [
        *(("fusion.1", 1), ("fusion.2", 7), ("fusion.3", 21), ("all-gather-done.1", 7), ("fusion.9", 1)),
    ]


def test_a_transfer_started_before_a_loop_hides_behind_all_its_trips():
    loop = "%while.1 = f32[] while(%x), condition=%many, body=%body"
    found = predicted(START, loop, DONE, body=[work("fusion.1", 5)], many=condition(4))
    assert found.step_seconds == pytest.approx(GATHER)
    longer = predicted(START, loop, DONE, body=[work("fusion.1", 5)], many=condition(5))
    assert longer.step_seconds == pytest.approx(25e-6) and longer.exposed_communication_seconds == 0


@pytest.mark.parametrize(
    "branches", ["branch_computations={%slow, %quick}", "true_computation=%quick, false_computation=%slow"]
)
def test_a_conditional_takes_its_slower_branch(branches):
    slow, quick = [work("fusion.2", 30), START, DONE], [work("fusion.3", 20)]
    found = predicted(
        f"%conditional.1 = f32[] conditional(%i, %x, %x), {branches}", START, DONE, slow=slow, quick=quick
    )
    assert found.step_seconds == pytest.approx(30e-6 + 2 * GATHER)
    assert "fusion.3" not in " ".join(cost.name for cost in found.costs)


def test_a_call_is_what_it_calls():
    found = predicted("%call.1 = f32[] call(%x), to_apply=%called", called=[work("fusion.2", 30)])
    assert found.step_seconds == pytest.approx(30e-6)


def test_kernels_count_and_the_compilers_own_markers_do_not():
    kernel = f'%mine.1 = {BIG} custom-call(%x), custom_call_target="tpu_custom_call", backend_config={{}}'
    marker = f'%buffer.1 = {BIG} custom-call(%x), custom_call_target="AllocateBuffer"'
    assert predicted(kernel, marker).by_kind() == pytest.approx({"kernel": 8e6 / (0.85 * HBM)})


def test_instructions_without_an_estimate_move_what_lies_in_hbm():
    near = "%fusion.1 = f32[1000000]{0:S(1)} fusion(%arrived), kind=kLoop, calls=%nothing"
    far = f"%fusion.2 = {BIG} fusion(%fusion.1, %x), kind=kLoop, calls=%nothing"
    arrived = "%arrived = f32[1000000]{0:S(3)} parameter(3)"
    assert predicted(arrived, near).step_seconds == 0
    assert predicted(arrived, near, far).step_seconds == pytest.approx(8e6 / (0.85 * HBM))


def test_an_update_in_place_moves_its_slice_alone():
    update = f"%dynamic-update-slice.1 = {BIG} dynamic-update-slice(%x, %small, %i)"
    for space, traffic in (("", 8000), ("S(1)", 4000)):
        small = f"%small = f32[1000]{{0:T(1024){space}}} parameter(3)"
        assert predicted(small, update).step_seconds == pytest.approx(traffic / (0.85 * HBM))


def slices(opcode, operand, number="1"):
    return (
        f"%{opcode}.{number} = ({BIG}, u32[], token[]) {opcode}({operand}), channel_id=8, is_host_transfer=true, "
        f'frontend_attributes={{_xla_host_transfer_rendezvous="sum_{number}",_xla_megascale_transfer_type="ALL_REDUCE"}}'
    )


@pytest.mark.parametrize("behind", [0, 100, 5000])
def test_a_sum_over_slices_hides_behind_work(behind):
    lines = [slices("send", "%x, %after"), slices("recv", "%after"), work("fusion.1", behind)]
    done = f"%recv-done.1 = ({BIG}, token[]) recv-done(%recv.1), channel_id=8"
    sent = "%send-done.1 = token[] send-done(%send.1), channel_id=8"
    found = predicted("%after = token[] after-all()", *lines, done, sent, places=TWO_SLICES)
    whole = 2 * (2e6 / 6.25e9 + 50e-6)  # half of it goes to the other slice, and half of the sum comes back
    assert found.step_seconds == pytest.approx(max(whole, behind * MICRO))
    (cost,) = [cost for cost in found.costs if cost.transfer]
    assert (cost.transfer.kind, cost.transfer.members) == ("all-reduce", (0, 8))
    assert cost.seconds == pytest.approx(max(0, whole - behind * MICRO), abs=1e-18)


PIECES = st.lists(
    st.tuples(st.sampled_from(["work", "gather", "copy", "fused", "loop"]), st.integers(1, 60), st.integers(0, 3)),
    min_size=1,
    max_size=12,
)


def program_of(pieces):
    """Lines and loop bodies of pieces: each transfer is finished so many pieces after it was started."""
    lines, others, late = [], dict(GATHERS), []
    for number, (kind, microseconds, distance) in enumerate(pieces):
        if kind == "work":
            lines.append(work(f"fusion.{number}", microseconds))
        elif kind == "loop":
            others |= {f"body{number}": [work(f"fusion.{number}", microseconds)], f"trips{number}": condition(distance)}
            lines.append(f"%while.{number} = f32[] while(%x), condition=%trips{number}, body=%body{number}")
        else:
            begin, end = {"gather": (START, DONE), "copy": (COPY, COPIED)}.get(kind, (None, None))
            if begin is None:
                inner = GATHERS["gathers"][0].replace("channel_id=71", f"channel_id=9{number}")
                others[f"gathers{number}"] = [inner]
                begin, end = (
                    fused(f"async-collective-{half}.1").replace("=%gathers", f"=%gathers{number}")
                    for half in ("start", "done")
                )
            lines.append(begin.replace(".1 ", f".1{number} "))
            late.append((number + distance, end.replace(".1", f".1{number}")))
        lines += [end for due, end in late if due == number]
    return lines + [end for due, end in late if due >= len(pieces)], others


@settings(deadline=None, derandomize=True)
@given(PIECES)
def test_costs_add_up_to_the_step_between_its_work_and_all_its_parts_in_a_row(pieces):
    lines, others = program_of(pieces)
    found = predicted(*lines, **others)  # which sums the costs
    works = sum(micro * {"work": 1, "loop": times}.get(kind, 0) for kind, micro, times in pieces) * MICRO
    links = GATHER * sum(kind in ("gather", "fused") for kind, _, _ in pieces)
    copies = 4e6 / HBM * sum(kind == "copy" for kind, _, _ in pieces)
    assert max(works, links, copies) * (1 - 1e-9) <= found.step_seconds <= (works + links + copies) * (1 + 1e-9)
    assert len([cost for cost in found.costs if cost.transfer]) == sum(k in ("gather", "fused") for k, _, _ in pieces)
