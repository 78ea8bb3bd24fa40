"""The parser of compiled programs, on modules written by hand after what libtpu prints."""
# ruff: noqa: E501 - a line of a program is one line

import pytest

from pomona.core.errors import UserError
from pomona.plan.hlo import Array, parse

MODULE = r"""HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8,4]{1,0:T(8,128)})->f32[]{:T(128)}}

FileNames
1 "/home/me/pomona/train/step.py"
2 "/home/me/pomona/model/decoder.py"

FunctionNames
1 "train_step.<locals>.step"
2 "layer"

FileLocations
1 {file_name_id=1 function_name_id=1 line=51 end_line=51 column=8 end_column=8}
2 {file_name_id=2 function_name_id=2 line=175 end_line=176 column=12 end_column=40}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
7 {file_location_id=2 parent_frame_id=1}

%fused_computation.3 (param_0.1: bf16[8,128], param_1.2: bf16[128,4]) -> bf16[8,4] {
  %param_0.1 = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %param_1.2 = bf16[128,4]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %convolution.1 = bf16[8,4]{1,0:T(8,128)(2,1)} convolution(%param_0.1, %param_1.2), dim_labels=bf_io->bf
}

%body.1 (arg.1: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %arg.1 = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}) parameter(0)
  ROOT %tuple.9 = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}) tuple(%arg.1, %arg.1)
}

%condition.1 (arg.2: (s32[], f32[8,4])) -> pred[] {
  %arg.2 = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}) parameter(0)
  %get-tuple-element.5 = s32[]{:T(128)S(6)} get-tuple-element(%arg.2), index=0
  %constant.12 = s32[]{:T(128)} constant(1)
  %constant.13 = s32[]{:T(128)} constant(26)
  ROOT %lt.1 = pred[]{:T(512)} compare(%get-tuple-element.5, %constant.13), direction=LT
}

%endless.1 (arg.3: (s32[], f32[8,4])) -> pred[] {
  %arg.3 = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}) parameter(0)
  ROOT %all.1 = pred[]{:T(512)} custom-call(%arg.3), custom_call_target="Ask"
}

ENTRY %main.4_spmd (param.1: f32[8,4], param.2: bf16[8,128]) -> (f32[8,4], u32[]) {
  %param.1 = f32[8,4]{1,0:T(8,128)} parameter(0), metadata={op_name="state.params[\'embedding\']"}
  %param.2 = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(1)
  %constant.1 = s32[]{:T(128)} constant(0)
  %nothing.1 = () tuple()
  %many.1 = (f32[8,4]{1,0:T(8,128)}, bf16[2,8,128]{2,1,0:T(8,128)(2,1)S(1)}, s8[1,4,4]{2,1,0}, pred[], u32[2]{0:S(4)}, /*index=5*/token[], s4[9]{0}, bf16[<=16,3]{1,0}) fusion(%param.1, %constant.1, %param.2, %param.2, %param.2, /*index=5*/%constant.1), kind=kOutput, calls=%fused_computation.3, metadata={op_name="jit(step)/jvp()/while/body/dot_general" stack_frame_id=7}, backend_config={"flag_configs":[],"window_config":{"estimated_cycles":"4711","iteration_bounds":["8","(3)"]}}
  %splash_mha_fwd.2 = bf16[8,4]{1,0:T(8,128)(2,1)} custom-call(%param.2, %param.2), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\"block_q\": 512, \"block_kv\": 256, \"name\": \"%no_operand (\"}"
}}, metadata={op_name="jit(step)/splash" stack_frame_id=1}, backend_config={"custom_call_config":{"body":"TUzvUg=="}}
  %while.1 = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}) while(%many.1), condition=%condition.1, body=%body.1, backend_config={"known":"no"}
  %while.2 = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}) while(%while.1), condition=%endless.1, body=%body.1
  %copy-start.1 = (f32[8,4]{1,0:T(8,128)S(1)}, f32[8,4]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%param.1)
  ROOT %tuple.1 = (f32[8,4]{1,0:T(8,128)}, u32[]) tuple(%param.1, %constant.1)
}
"""


@pytest.fixture(scope="module")
def program():
    return parse(MODULE)


@pytest.fixture(scope="module")
def lines(program):
    return {instruction.name: instruction for instruction in program.computations[program.entry]}


def test_computations_hold_their_instructions_in_the_order_of_the_text(program):
    assert program.entry == "main.4_spmd"
    assert list(program.computations) == ["fused_computation.3", "body.1", "condition.1", "endless.1", "main.4_spmd"]
    assert [i.name for i in program.computations["main.4_spmd"]] == [
        *("param.1", "param.2", "constant.1", "nothing.1", "many.1", "splash_mha_fwd.2", "while.1", "while.2"),
        *("copy-start.1", "tuple.1"),
    ]
    assert [i.opcode for i in program.computations["condition.1"]] == [
        *("parameter", "get-tuple-element", "constant", "constant", "compare"),
    ]


def test_a_tuple_has_its_arrays_with_shapes_sizes_and_memory_spaces(lines):
    many = lines["many.1"]
    assert many.opcode == "fusion"
    assert [(a.dtype, a.shape, a.size_bytes, a.on_chip) for a in many.arrays] == [
        ("f32", (8, 4), 128, False),
        ("bf16", (2, 8, 128), 4096, True),
        ("s8", (1, 4, 4), 16, False),
        ("pred", (), 1, False),
        ("u32", (2,), 8, True),
        ("token", (), 0, False),
        ("s4", (9,), 4, False),
        ("bf16", (16, 3), 96, False),
    ]
    assert many.arrays[1].layout == "2,1,0:T(8,128)(2,1)S(1)"
    assert many.result_bytes == 128 + 4096 + 16 + 1 + 8 + 4 + 96
    assert lines["nothing.1"].arrays == ()


@pytest.mark.parametrize(
    ("layout", "on_chip"),
    [
        *(("0:T(128)S(1)", True), ("0:T(128)S(3)", True), ("0:T(128)S(16)", True)),
        *(("0:T(128)S(0)", False), ("0:T(128)S(5)", False), ("0:T(8,128)(2,1)", False), ("", False)),
    ],
)
def test_hbm_and_the_hosts_memory_are_not_on_chip(layout, on_chip):
    assert Array("f32", (8,), layout).on_chip is on_chip


def test_operands_are_those_between_the_calls_own_parentheses(program, lines):
    assert lines["many.1"].operands == ("param.1", "constant.1", "param.2", "param.2", "param.2", "constant.1")
    assert lines["splash_mha_fwd.2"].operands == ("param.2", "param.2")
    assert lines["nothing.1"].operands == ()
    arrays = program.operand_arrays("main.4_spmd", lines["many.1"])
    assert [a.shape for a in arrays] == [(8, 4), (), (8, 128), (8, 128), (8, 128), ()]
    assert program.operand("main.4_spmd", lines["many.1"], 2) is lines["param.2"]
    assert program.operand("main.4_spmd", lines["nothing.1"]) is None


def test_attributes_are_read_also_behind_line_breaks(lines):
    many, splash = lines["many.1"], lines["splash_mha_fwd.2"]
    assert (many.cycles, many.op_name, many.frame) == (4711, "jit(step)/jvp()/while/body/dot_general", 7)
    assert (many.calls("calls"), many.calls("body"), many.target) == ("fused_computation.3", None, "")
    assert (splash.cycles, splash.op_name, splash.frame) == (None, "jit(step)/splash", 1)
    assert splash.target == "tpu_custom_call"
    assert r"\"block_kv\": 256" in splash.text
    assert lines["constant.1"].op_name == "" and lines["constant.1"].frame is None


def test_frames_are_the_file_and_line_of_our_source(program):
    assert program.frames == {1: "step.py:51", 7: "decoder.py:175"}


def test_a_loops_trips_are_the_number_its_condition_compares_with(program, lines):
    assert lines["while.1"].calls("body") == "body.1"
    assert program.trips(lines["while.1"]) == 26
    with pytest.raises(UserError, match=r"while\.2 of the compiled program has no constant trip count"):
        program.trips(lines["while.2"])


def test_a_module_without_source_tables_is_read():
    short = parse("HloModule m\n\nENTRY %e (a: f32[]) -> f32[] {\n  ROOT %a = f32[] parameter(0)\n}\n")
    assert (short.entry, short.frames, len(short.computations["e"])) == ("e", {}, 1)


@pytest.mark.parametrize(
    "text",
    ["", "pears", "HloModule jit_step\n", MODULE.replace("ENTRY ", ""), '{"text": 3}', MODULE[: MODULE.index("ENTRY")]],
    ids=["empty", "a word", "a head", "no entry", "JSON", "cut off"],
)
def test_garbage_is_one_clear_error(text):
    with pytest.raises(UserError, match="no compiled program") as caught:
        parse(text)
    assert "--verify" in caught.value.fix


def test_a_text_cut_off_within_its_entry_is_no_program():
    with pytest.raises(UserError, match="no compiled program"):
        parse(MODULE.rstrip().removesuffix("}"))
