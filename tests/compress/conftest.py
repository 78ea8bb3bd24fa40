"""What the tests of compression share: one small life, dense, palettized, recovered."""

import dataclasses
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # small_palettes.py and others are modules beside the tests
from small_palettes import write_dense, write_palettized
from small_run import changed, start

from pomona.compress.recover import recovery_run
from pomona.parallel.config import MeshConfig
from pomona.train.loop import train


@pytest.fixture(scope="session")
def parent(cache, tmp_path_factory):
    """The folder of a small dense model, trained for 12 steps; to be read only."""
    folder = tmp_path_factory.mktemp("parent") / "run"
    stages = "stages=(dataclasses.replace(old(cache).stages[0], steps=12),)"
    done = start(folder, cache, hook=changed(f"name='parent', {stages}"))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def folders(cache, tmp_path_factory):
    """A palettized run folder beside its dense one, and the weights of both; to be read only."""
    path = tmp_path_factory.mktemp("life")
    dense = write_dense(path / "dense", cache)
    return path / "palettized", dense[1], write_palettized(path / "palettized")


@pytest.fixture(scope="session")
def recovered(folders):
    """The folder of a recovery on a mesh, and what training returned."""
    path = folders[0].with_name("recovered")
    run = recovery_run(folders[0])
    stages = (dataclasses.replace(run.stages[0], steps=20),)
    run = dataclasses.replace(run, stages=stages, mesh=MeshConfig(data=4, fsdp=2))
    return path, train(run, path)
