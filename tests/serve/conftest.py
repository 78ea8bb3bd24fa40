"""A small run and its device file, two adapters for both, and an engine on each of the three backends."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "compress"))  # small_palettes.py is a module of the tests there
from small_palettes import write_device_file

from pomona.adapters.bundle import Bundle, weight_shapes, write_bundle
from pomona.core.run_folder import RunFolder, read_config
from pomona.data.tokenizer import load_tokenizer
from pomona.serve.device_backend import DeviceBackend
from pomona.serve.engine import Engine
from pomona.serve.grammar import Grammars
from pomona.serve.messages import Finished, Prompted, Said
from pomona.serve.mock_backend import MockBackend
from pomona.train.config import Run
from pomona.train.origin import origin_of


@pytest.fixture(scope="session")
def both(cache, tmp_path_factory):
    """The run folder and the device file."""
    return write_device_file(tmp_path_factory.mktemp("serve"), cache)


@pytest.fixture(scope="session")
def tokenizer(both):
    return load_tokenizer(RunFolder(both[0]).tokenizer)


@pytest.fixture(scope="session")
def bundles(both, tmp_path_factory):
    """Two adapters, strong enough to change what is said."""
    folder, found = tmp_path_factory.mktemp("adapters"), {}
    architecture, base = read_config(RunFolder(both[0]), Run).architecture, origin_of(both[0], None).fingerprint
    for number, name in enumerate(("red", "blue")):
        rng = np.random.default_rng(number)
        weights = {
            key: (rng.normal(size=shape) * 0.06).astype(np.float32)
            for key, shape in weight_shapes(architecture, 4 + 4 * number).items()
        }
        write_bundle(folder / name, Bundle(name, weights, 4 + 4 * number, 16.0, base, {}))
        found[name] = folder / name
    return found


@pytest.fixture(scope="session")
def build(both, bundles, tokenizer):
    """build(kind, **sizes): a backend; what it needs is compiled when it is needed."""

    def of(kind, **sizes):
        if kind == "mock":
            return MockBackend(tokenizer.vocab_size, adapters=tuple(bundles), end_every=97, **sizes)
        if kind == "device":
            sizes.pop("draws", None)
            return DeviceBackend(both[1], bundles, threads=1, **sizes)
        from pomona.serve.jax_backend import JaxBackend

        return JaxBackend(both[0], None, bundles, **sizes)

    return of


class Talk:
    """An engine with its requests: `ask` at any time, `step`, and read what came."""

    def __init__(self, backend, tokenizer, **options):
        self.events = []
        self.engine = Engine(backend, self.events.append, Grammars(tokenizer), **options)

    def ask(self, *orders):
        for order in orders:
            self.engine.receive(order)
        return self

    def run(self, steps=10_000):
        for _ in range(steps):
            if self.engine.idle:
                break
            self.engine.step()
        return self

    def said(self, id):
        return [token for event in self.events if isinstance(event, Said) and event.id == id for token in event.tokens]

    def likely(self, id):
        return [one for event in self.events if isinstance(event, Said) and event.id == id for one in event.likely]

    def prompted(self, id):
        return next(event for event in self.events if isinstance(event, Prompted) and event.id == id)

    def ending(self, id):
        return next(event for event in self.events if isinstance(event, Finished) and event.id == id)


@pytest.fixture(scope="session")
def talk(tokenizer):
    return lambda backend, **options: Talk(backend, tokenizer, **options)
