"""Files are whole or absent; run folders belong to one configuration."""

import dataclasses
import errno
import os

import pytest

from pomona.core import files
from pomona.core.errors import UserError
from pomona.core.run_folder import RunFolder, append_line, claim, read_config
from pomona.recipes.tiny import tiny
from pomona.train.config import Run


def test_a_full_disk_keeps_the_old_content_and_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write_json(path, {"x": 1})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="the disk is full"):
        files.write_json(path, {"x": 2})
    assert files.read_json(path) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), files.new_folder(tmp_path / "out") as draft:
        (draft / "half").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with files.new_folder(tmp_path / "out") as draft:
        (draft / "whole").write_text("x")
    assert (tmp_path / "out" / "whole").exists()
    with pytest.raises(UserError, match="exists already"), files.new_folder(tmp_path / "out"):
        pass


def test_a_run_folder_belongs_to_one_configuration(tmp_path):
    folder = RunFolder(tmp_path / "run")
    run = tiny()
    assert claim(folder, run) is False
    assert claim(folder, run) is True
    assert read_config(folder, Run) == run
    with pytest.raises(UserError, match="seed: 0 -> 1"):
        claim(folder, dataclasses.replace(run, seed=1))


def test_a_foreign_folder_is_not_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not a run folder"):
        claim(RunFolder(tmp_path), tiny())
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_damaged_json_is_a_user_error(tmp_path):
    (tmp_path / "config.json").write_text('{"name": ')
    with pytest.raises(UserError, match="not valid JSON"):
        read_config(RunFolder(tmp_path), Run)


def test_lines_are_appended_whole(tmp_path):
    append_line(tmp_path / "m.jsonl", {"a": 1})
    append_line(tmp_path / "m.jsonl", {"a": 2})
    assert (tmp_path / "m.jsonl").read_text() == '{"a": 1}\n{"a": 2}\n'


def test_a_new_file_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), files.new_file(tmp_path / "out") as draft:
        draft.write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with files.new_file(tmp_path / "out") as draft:
        draft.write_text("whole")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out").read_text() == "whole"
    with pytest.raises(UserError, match="exists already"), files.new_file(tmp_path / "out"):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
