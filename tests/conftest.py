"""Eight virtual CPU devices for every test, one store of compiled programs for their processes, one small text."""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

# What is compiled here runs for a moment: optimizing it takes longer than it saves.
flags = ("--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0")
os.environ["XLA_FLAGS"] = " ".join((os.environ.get("XLA_FLAGS", ""), *flags))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Tests start the same small run many times, in processes of their own: what one has compiled the next one reads.
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers have the one of who started them
    compiled = tempfile.mkdtemp(prefix="pomona-tests-")
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

sys.path.insert(0, str(Path(__file__).parent / "train"))  # small_run.py is a module of the tests beside it
from small_run import write_text  # noqa: E402


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A folder of text for `small_run`, which keeps its prepared tokens there."""
    path = tmp_path_factory.mktemp("cache")
    write_text(path)
    return path
