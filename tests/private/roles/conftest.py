"""A small device file, and one private cloud over it for all tests that leave it as it was."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # cloud.py is a module of the tests here
from cloud import running

sys.path.insert(0, str(Path(__file__).parents[2] / "compress"))  # small_palettes.py is a module of the tests there
from small_palettes import write_device_file


@pytest.fixture(scope="session")
def device_file(cache, tmp_path_factory):
    return write_device_file(tmp_path_factory.mktemp("model"), cache)[1]


@pytest.fixture(scope="session")
def cloud(device_file, tmp_path_factory):
    """Issuer, relay, gateway, two nodes and the log."""
    with running(tmp_path_factory.mktemp("cloud") / "private", device_file) as up:
        yield up
