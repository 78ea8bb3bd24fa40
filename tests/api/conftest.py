"""A server over the mock engine for all tests that leave it as it was."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # mock_server.py is a module of the tests here
from mock_server import TOKENIZER, serving

sys.path.insert(0, str(Path(__file__).parents[1] / "compress"))  # small_palettes.py is a module of the tests there
from small_palettes import write_device_file

from pomona.data.tokenizer import load_tokenizer


@pytest.fixture(scope="session")
def server():
    """One for all that leave it as it was."""
    with serving(slots=4, context=2048) as running:
        yield running


@pytest.fixture
def client(server):
    return server.client


@pytest.fixture(scope="session")
def tokenizer():
    return load_tokenizer(TOKENIZER)


@pytest.fixture(scope="session")
def both(cache, tmp_path_factory):
    """A small run folder and its device file."""
    return write_device_file(tmp_path_factory.mktemp("engines"), cache)
