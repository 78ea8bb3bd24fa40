"""What the tests of compression share."""

import sys
from pathlib import Path

import pytest

for folder in ("compress", "train"):  # small_palettes.py and small_run.py are modules beside the tests
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))
from small_run import changed, start, write_text  # noqa: E402


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A folder of text for `small_run`, which keeps its prepared tokens there."""
    path = tmp_path_factory.mktemp("cache")
    write_text(path)
    return path


@pytest.fixture(scope="session")
def parent(cache, tmp_path_factory):
    """The folder of a small dense model, trained for 12 steps; to be read only."""
    folder = tmp_path_factory.mktemp("parent") / "run"
    stages = "stages=(dataclasses.replace(old(cache).stages[0], steps=12),)"
    done = start(folder, cache, hook=changed(f"name='parent', {stages}"))
    assert done.returncode == 0, done.stderr
    return folder
