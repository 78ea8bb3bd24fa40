"""What `--verify` says of a compiled program, and how it keeps programs: on the stored ones, without libtpu."""

import dataclasses
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from make_programs import path_of, read, run_of

from pomona.cli.verify_tables import longest, show_verified
from pomona.core.errors import UserError
from pomona.core.fleet import parse_fleet
from pomona.model.count import training_flops
from pomona.plan import compiled
from pomona.plan.collectives import Places
from pomona.plan.compiled import Compiled, compile_stage
from pomona.plan.verify import communications, crossed_axes, to_record, verify
from pomona.train.fault_config import FaultConfig

ROOT = Path(__file__).parents[2]
GIB = 2**30
KEYS = {
    *("name", "stage", "fleet", "chip", "chips", "slices", "mesh", "fits", "hbm_gib", "hbm_limit_gib"),
    *("hbm_arguments_gib", "hbm_temporaries_gib", "hbm_checked_copy_gib", "compile_seconds", "step_seconds"),
    "seconds_by_kind",
    *("exposed_communication_seconds", "mfu_causal", "mfu_full", "tokens_per_second", "days", "usd_per_chip_hour"),
    *("usd", "collectives"),
}


def program(chips="v5p:2x2x2", **changes):
    """A stored program with sizes of its own: 40 GiB of arguments given back, 20 of temporaries, 1 of code."""
    content = read(path_of(chips))
    sizes = {"argument": 40, "output": 41, "alias": 40, "temporary": 20, "code": 1}
    found = Compiled(
        text=content["text"],
        places=Places(parse_fleet(chips), np.array(content["places"])),
        mesh=content["mesh"],
        compile_seconds=3.0,
        **{f"{name}_bytes": gib * GIB for name, gib in sizes.items()},
    )
    return dataclasses.replace(found, **changes)


@pytest.fixture
def compiler(monkeypatch):
    """In place of the compiler: it returns the stored program, and counts."""
    calls = []

    def instead(run, index, fleet):
        calls.append((run.name, index, fleet))
        return program("v4:2x2x2" if fleet.chip.name == "v4" else "v5p:2x2x2")

    monkeypatch.setattr(compiled, "_compile", instead)
    return calls


@pytest.fixture
def verified(compiler, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run = run_of(3)
    return verify(run, run.stages[0], parse_fleet("v5p:2x2x2"), 4.2)


def test_memory_time_and_money_follow_from_the_program(verified):
    record = to_record(verified)
    assert set(record) == KEYS
    assert (record["hbm_gib"], record["hbm_arguments_gib"], record["hbm_temporaries_gib"]) == (62, 40, 20)
    assert (record["fits"], record["hbm_limit_gib"]) == (True, pytest.approx(0.95 * 95))
    assert (record["name"], record["stage"], record["fleet"]) == ("small", "core", "v5p-16")
    assert (record["chip"], record["chips"], record["slices"], record["compile_seconds"]) == ("v5p", 8, 1, 3.0)
    seconds = record["step_seconds"]
    assert sum(record["seconds_by_kind"].values()) == pytest.approx(seconds)
    assert record["tokens_per_second"] == pytest.approx(16 * 4096 / seconds)
    assert record["days"] == pytest.approx(100 * seconds / 86400)
    assert record["usd"] == pytest.approx(4.2 * 8 * 100 * seconds / 3600)
    flops = training_flops(run_of(3).architecture, 4096)
    for convention in ("causal", "full"):
        peak = 8 * 459e12 * seconds
        assert record[f"mfu_{convention}"] == pytest.approx(getattr(flops, convention) * 16 * 4096 / peak)
    assert 0.3 < record["mfu_causal"] < record["mfu_full"] < 1
    assert json.loads(json.dumps(record)) == record | {"collectives": json.loads(json.dumps(record["collectives"]))}


def test_steps_that_are_checked_need_room_for_a_second_state(verified):
    run = dataclasses.replace(verified.run, faults=FaultConfig(check_every_steps=10))
    checked = dataclasses.replace(verified, run=run)
    assert to_record(checked)["hbm_gib"] - to_record(verified)["hbm_gib"] == 40 and not checked.fits


def test_collectives_are_summed_by_kind_and_mesh_axes(verified):
    rows = {(row.kind, row.axes): row for row in communications(verified)}
    assert rows["all-gather", ("fsdp",)].times == 3 * 14 + 1, "seven weights of a layer, there and back; the embedding"
    assert [row.seconds for row in rows.values()] == sorted((row.seconds for row in rows.values()), reverse=True)
    exposed = sum(row.exposed_seconds for row in rows.values())
    assert exposed == pytest.approx(verified.prediction.exposed_communication_seconds)
    gathers = rows["all-gather", ("fsdp",)]
    assert gathers.exposed_seconds < 0.6 * gathers.seconds, "most run behind products"


def test_axes_are_those_along_which_members_differ():
    mesh = {"data": 2, "fsdp": 4, "seq": 1, "tensor": 2}
    for axes in ((), ("data",), ("fsdp",), ("tensor",), ("data", "tensor"), ("data", "fsdp", "tensor")):
        numbers = np.arange(16).reshape(2, 4, 1, 2)
        where = tuple(slice(None) if name in axes else 0 for name in mesh)
        assert crossed_axes(tuple(np.ravel(numbers[where]).tolist()), mesh) == axes


def test_a_program_larger_than_hbm_does_not_fit(verified, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "150")
    large = dataclasses.replace(verified, compiled=program(temporary_bytes=60 * GIB))
    assert not large.fits and to_record(large)["hbm_gib"] == 102
    show_verified([large])
    printed = capsys.readouterr().out
    assert "DOES NOT FIT: 102.0 of 90.2 GiB a device" in printed and "--execution.remat full" in printed


def test_the_answer_names_where_time_goes_what_moves_and_the_longest_operations(verified, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "150")
    show_verified([verified, verified])
    printed = capsys.readouterr().out
    for fact in (
        *(
            "one slice of 2x2x2",
            "data 2, fsdp 4",
            "fits: 62.0 of 90.2 GiB",
            "predicted step",
            "waiting for collectives",
        ),
        *("all-gather", "reduce-scatter", "longest operations", "rules.py:", "all stages:"),
    ):
        assert fact in printed, fact
    times = [cost.seconds for cost in longest(verified)]
    assert times == sorted(times, reverse=True)
    show_verified([dataclasses.replace(verified, usd_per_chip_hour=None)] * 2)
    assert "no public price" in capsys.readouterr().out


def test_a_program_is_compiled_once(compiler, tmp_path):
    run, fleet = run_of(3), parse_fleet("v5p:2x2x2")
    first = compile_stage(run, 0, fleet, tmp_path)
    again = compile_stage(run, 0, fleet, tmp_path)
    assert len(compiler) == 1 and len(list(tmp_path.iterdir())) == 1
    assert (again.places.table == first.places.table).all() and again.places.fleet == fleet
    same = {field.name: getattr(first, field.name) for field in dataclasses.fields(first)} | {"places": None}
    assert dataclasses.replace(again, places=None) == Compiled(**same)


def test_another_run_fleet_or_source_is_another_program(compiler, tmp_path, monkeypatch):
    run, fleet = run_of(3), parse_fleet("v5p:2x2x2")
    longer = dataclasses.replace(run.stages[0], sequence_length=8192)
    others = [
        (run, fleet),
        (run_of(2), fleet),
        (dataclasses.replace(run, stages=(longer,)), fleet),
        (dataclasses.replace(run, execution=dataclasses.replace(run.execution, remat="full")), fleet),
        (run, parse_fleet("v4:2x2x2")),
        (run, parse_fleet("v5p:2x2x1", 2)),
        (run, parse_fleet("v5p:2x2x2", 2)),
    ]
    for each in others * 2:
        compile_stage(each[0], 0, each[1], tmp_path)
    assert len(compiler) == len(list(tmp_path.iterdir())) == len(others)
    monkeypatch.setattr(compiled, "_source_fingerprint", lambda folders: "another")
    compile_stage(run, 0, fleet, tmp_path)
    assert len(compiler) == len(list(tmp_path.iterdir())) == len(others) + 1


def test_the_source_is_all_that_is_traced():
    assert {"model", "ops", "optim", "parallel", "train"} <= set(compiled.TRACED)
    assert all(list((ROOT / "pomona" / folder).glob("*.py")) for folder in compiled.TRACED)
    assert not [path for folder in compiled.TRACED for path in (ROOT / "pomona" / folder).glob("*/*.py")]


DAMAGES = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "a turned byte": lambda content: content[:5000] + bytes([content[5000] ^ 255]) + content[5001:],
    "no blocks": lambda content: content[:10] + bytes([255]) * 20 + content[30:],
    "no archive": lambda content: b"pears",
    "no JSON": lambda content: gzip.compress(b"{"),
    "no text": lambda content: gzip.compress(b"\xff\xfe"),
    "other fields": lambda content: gzip.compress(b'{"text": "", "places": []}'),
    "a list": lambda content: gzip.compress(b"[]"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_made_again(damage, compiler, tmp_path):
    run, fleet = run_of(3), parse_fleet("v5p:2x2x2")
    first = compile_stage(run, 0, fleet, tmp_path)
    (kept,) = tmp_path.iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(DAMAGES[damage](whole))
    assert compile_stage(run, 0, fleet, tmp_path).text == first.text
    assert len(compiler) == 2 and gzip.decompress(kept.read_bytes()) == gzip.decompress(whole)


def test_a_clock_that_is_not_public_is_said_before_anything_is_compiled(compiler):
    run = run_of(3)
    with pytest.raises(UserError, match="clock of Google TPU v6e is not public"):
        verify(run, run.stages[0], parse_fleet("v6e-8"), None)
    assert not compiler


def test_without_libtpu_one_error_says_what_to_install(tmp_path):
    code = "import sys; sys.modules['libtpu'] = None\n"  # as if it were not installed
    code += "from pomona.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "plan", "tiny", "--chips", "v5p:2x2x1", "--verify"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("TPU_LIBRARY_PATH", None)  # which JAX sets for its children where it has seen libtpu
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    what, rule, fix = done.stderr.strip().splitlines()
    assert what == "pomona: libtpu, the TPU compiler, is not installed." and "jax[tpu]" in rule
    assert fix == "  try:  pip install 'pomona[tpu]'"
    assert not done.stdout and list(tmp_path.iterdir()) == []
