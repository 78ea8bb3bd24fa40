"""What the tests of training share."""

import pytest
from small_run import start


@pytest.fixture(scope="session")
def uninterrupted(cache, tmp_path_factory):
    """The folder of a run that nothing befell; to be read only."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = start(folder, cache)
    assert done.returncode == 0, done.stderr
    return folder
