"""A small palettized run with both widths, and its device file; to be read only."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "compress"))  # small_palettes.py is a module of the tests there
from small_palettes import write_dense

from pomona.compress.palettize import Settings, palettize_run
from pomona.export.device import export_device


@pytest.fixture(scope="session")
def palettized(cache, tmp_path_factory):
    path = tmp_path_factory.mktemp("device")
    write_dense(path / "dense", cache)
    palettize_run(path / "dense", path / "small", Settings(3.5, "free", "none"), None, lambda text: None)
    return path / "small"


@pytest.fixture(scope="session")
def pom(palettized):
    target = palettized.with_suffix(".pom")
    export_device(palettized, target)
    return target
