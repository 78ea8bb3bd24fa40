"""`metrics.jsonl` survives kills, NaN and resumption; TensorBoard files on request."""

import errno
import json
import math
import os
import sys

import pytest

from pomona.core.errors import UserError
from pomona.metrics import tensorboard
from pomona.metrics.records import append_record, drop_after, read_records


def test_records_come_back_in_order(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_records(path) == []
    records = [{"step": s, "stage": "core", "loss": 3.0 / s, "skipped": 0.0} for s in (1, 2, 3)]
    for record in records:
        append_record(path, record)
    assert read_records(path) == records
    assert path.read_text().count("\n") == 3


@pytest.mark.parametrize(("value", "name"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")])
def test_what_json_cannot_hold_is_null_and_named(tmp_path, value, name):
    path = tmp_path / "metrics.jsonl"
    record = {"step": 7, "loss": value, "learning_rate": 0.1}
    append_record(path, record)
    line = path.read_text()
    assert "NaN" not in line and "Infinity" not in line
    assert json.loads(line) == {
        "step": 7,
        "loss": None,
        "learning_rate": 0.1,
        "non_finite": {"loss": name},
    }
    assert record["loss"] is value  # the caller's record is left alone


def test_a_resumed_run_has_every_step_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in range(10, 60, 10):
        append_record(path, {"step": step, "loss": float(step)})
    with path.open("a") as file:
        file.write('{"step": 60, "los')  # the machine went down here
    drop_after(path, 30)
    for step in range(40, 70, 10):
        append_record(path, {"step": step, "loss": -float(step)})
    records = read_records(path)
    assert [record["step"] for record in records] == [10, 20, 30, 40, 50, 60]
    assert [record["loss"] for record in records] == [10.0, 20.0, 30.0, -40.0, -50.0, -60.0]


def test_dropping_from_nothing_and_dropping_everything(tmp_path):
    path = tmp_path / "metrics.jsonl"
    drop_after(path, 5)
    assert not path.exists()
    append_record(path, {"step": 0, "bits_per_byte": 3.0})
    drop_after(path, -1)
    assert path.read_text() == ""


def test_a_full_disk_leaves_the_old_records(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2):
        append_record(path, {"step": step})
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="disk is full"):
        drop_after(path, 1)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_tensorboard_files_hold_the_numbers(tmp_path):
    pytest.importorskip("tensorboardX")
    writer = tensorboard.open_writer(tmp_path / "tensorboard")
    tensorboard.write(writer, {"step": 3, "stage": "core", "loss": 2.5, "bits_per_byte": None})
    writer.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    content = file.read_bytes()
    assert b"loss" in content and b"stage" not in content and b"bits_per_byte" not in content


def test_tensorboard_without_its_library_is_a_user_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError) as error:
        tensorboard.open_writer(tmp_path / "tensorboard")
    assert "pomona[tensorboard]" in error.value.fix
    assert not (tmp_path / "tensorboard").exists()
