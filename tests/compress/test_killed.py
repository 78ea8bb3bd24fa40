"""Palettizing and recovery, killed in a process of their own: typed again, they end as if nothing had happened."""

import jax
import numpy as np
import pytest
from compress_runs import killed_at, start

from pomona.core.run_folder import RunFolder
from pomona.metrics.records import read_records
from pomona.train.load import load_model

DIE = "os.kill(os.getpid(), 9)"
WHILE_MEASURING = f"""
import pomona.compress.importance as importance
importance.TOKENS_AT_ONCE = 1
write = importance._write
importance._write = lambda path, sums, samples: (write(path, sums, samples), {DIE} if samples.start == 2 else None)
"""
WHILE_WRITING = f"""
import pomona.compress.palettize as palettes
written = palettes.write_palette
palettes.write_palette = lambda folder, name, palette: (
    {DIE} if name == "layers.01.attention.key" else written(folder, name, palette))
"""
BEFORE_THE_LAST_WORD = f"""
import pomona.compress.palettize as palettes
palettes._judged = lambda *_: {DIE}
"""


def contents(folder):
    return {path.name: path.read_bytes() for path in (folder / "palettes").iterdir()}


@pytest.mark.slow
def test_palettizing(parent, tmp_path):
    out, whole = tmp_path / "killed", tmp_path / "whole"
    for hook in (WHILE_MEASURING, WHILE_WRITING, BEFORE_THE_LAST_WORD):
        done = start("palettize", parent, out, hook=hook)
        assert done.returncode == -9, done.stderr
    for folder in (out, whole):
        done = start("palettize", parent, folder)
        assert done.returncode == 0, done.stderr
    assert contents(out) == contents(whole)
    told = [[e for e in read_records(RunFolder(f).events) if e["event"] == "palettized"] for f in (out, whole)]
    assert len(told[0]) == 1 and told[0][0]["bits_per_byte"] == told[1][0]["bits_per_byte"]


@pytest.mark.slow
def test_recovery(folders, tmp_path):
    out, whole = tmp_path / "killed", tmp_path / "whole"
    done = start("recover", folders[0], out, hook=killed_at(8))
    assert done.returncode == -9, done.stderr
    for folder in (out, whole):
        done = start("recover", folders[0], folder)
        assert done.returncode == 0, done.stderr
    assert "resume" in [event["event"] for event in read_records(RunFolder(out).events)]
    same = jax.tree.map(np.array_equal, load_model(out).params, load_model(whole).params)
    assert jax.tree.all(same)
    evaluated = [[r for r in read_records(RunFolder(f).metrics) if "heldout_loss" in r][-1] for f in (out, whole)]
    assert evaluated[0]["heldout_loss"] == evaluated[1]["heldout_loss"]
