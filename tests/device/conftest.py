"""A small palettized run with both widths, and its device file; to be read only."""

import sys
from pathlib import Path

import pytest

for folder in ("compress", "train"):
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))
from small_palettes import write_dense  # noqa: E402
from small_run import write_text  # noqa: E402

from pomona.compress.palettize import Settings, palettize_run  # noqa: E402
from pomona.export.device import export_device  # noqa: E402


@pytest.fixture(scope="session")
def palettized(tmp_path_factory):
    path, cache = tmp_path_factory.mktemp("device"), tmp_path_factory.mktemp("cache")
    write_text(cache)
    write_dense(path / "dense", cache)
    palettize_run(path / "dense", path / "small", Settings(3.5, "free", "none"), None, lambda text: None)
    return path / "small"


@pytest.fixture(scope="session")
def pom(palettized):
    target = palettized.with_suffix(".pom")
    export_device(palettized, target)
    return target
