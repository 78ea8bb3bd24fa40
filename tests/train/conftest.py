"""What the tests of training share."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # small_run.py is a module of the tests beside it
from small_run import start, write_text


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A folder of text for `small_run`, which keeps its prepared tokens there."""
    path = tmp_path_factory.mktemp("cache")
    write_text(path)
    return path


@pytest.fixture(scope="session")
def uninterrupted(cache, tmp_path_factory):
    """The folder of a run that nothing befell; to be read only."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = start(folder, cache)
    assert done.returncode == 0, done.stderr
    return folder
