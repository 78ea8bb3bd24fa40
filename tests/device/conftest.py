"""A small palettized run with both widths, and its device file; to be read only."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "compress"))  # small_palettes.py is a module of the tests there
from small_palettes import write_device_file


@pytest.fixture(scope="session")
def both(cache, tmp_path_factory):
    return write_device_file(tmp_path_factory.mktemp("device"), cache)


@pytest.fixture(scope="session")
def palettized(both):
    return both[0]


@pytest.fixture(scope="session")
def pom(both):
    return both[1]
