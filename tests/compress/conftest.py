"""What the tests of compression share."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))  # small_run.py is a module of the tests of training
from small_run import small_run, write_text


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A folder of text for `small_run`, which keeps its prepared tokens there."""
    path = tmp_path_factory.mktemp("cache")
    write_text(path)
    return path


@pytest.fixture(scope="session")
def parent(cache, tmp_path_factory):
    """The folder of a small model that was trained for one short stage on 8 devices; to be read only."""
    import dataclasses

    from pomona.train.loop import train

    folder = tmp_path_factory.mktemp("parent") / "run"
    run = small_run(cache)
    stage = dataclasses.replace(run.stages[0], steps=40, batch_size=16)
    train(dataclasses.replace(run, name="parent", stages=(stage,)), folder)
    return folder
