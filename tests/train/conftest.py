"""What the tests of training share."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # small_run.py is a module of the tests beside it
from small_run import write_text


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A folder of text for `small_run`, which keeps its prepared tokens there."""
    path = tmp_path_factory.mktemp("cache")
    write_text(path)
    return path
