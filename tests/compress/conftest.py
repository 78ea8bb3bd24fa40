"""What the tests of compression share."""

import dataclasses
import sys
from pathlib import Path

import pytest

for folder in ("compress", "train"):  # small_palettes.py and small_run.py are modules beside the tests
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))
from small_run import small_run, write_text  # noqa: E402


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A folder of text for `small_run`, which keeps its prepared tokens there."""
    path = tmp_path_factory.mktemp("cache")
    write_text(path)
    return path


@pytest.fixture(scope="session")
def parent(cache, tmp_path_factory):
    """The folder of a small dense model, trained for 12 steps; to be read only."""
    from pomona.train.loop import train

    folder = tmp_path_factory.mktemp("parent") / "run"
    run = small_run(cache)
    train(dataclasses.replace(run, name="parent", stages=(dataclasses.replace(run.stages[0], steps=12),)), folder)
    return folder
