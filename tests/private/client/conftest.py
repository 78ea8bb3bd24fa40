"""A private cloud in this process for each test, and clients that ask it."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # made_cloud.py is a module of the tests here
from made_cloud import MadeCloud

from pomona.private.client import buying
from pomona.private.client.proxy import request_of


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Nobody waits before a second try or for the disk, and batches are small: a signature takes 15 ms."""
    pause = asyncio.sleep
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(asyncio, "sleep", lambda seconds: pause(0))
    monkeypatch.setattr(buying, "BATCH", 2)


@pytest.fixture
def new_cloud(tmp_path, monkeypatch):
    """A cloud of the test's own, whose log has nothing in it yet."""
    made = MadeCloud(tmp_path)
    made.network(monkeypatch)
    with made.log:
        yield made


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """A cloud with all that it needs."""
    made = MadeCloud(tmp_path_factory.mktemp("cloud"))
    with pytest.MonkeyPatch.context() as monkeypatch, made.log:
        made.network(monkeypatch)
        made.publish()
    return made


@pytest.fixture
def cloud(made_once, tmp_path, monkeypatch):
    """The same for a test that leaves the log as it is."""
    copied = made_once.copied(tmp_path / "client")
    copied.network(monkeypatch)
    return copied


@pytest.fixture
def ask():
    """Asks once: the pieces of the answer that came, and the error that ended it, if one did."""

    def once(cloud):
        async def asked():
            pieces = []
            request = request_of("/v1/completions", b"secret question")
            try:
                async with cloud.asker() as asker, asker.ask(request, "model") as answer:
                    async for piece in answer.pieces:
                        pieces.append(piece)
            except Exception as error:
                return pieces, error
            return pieces, None

        return asyncio.run(asked())

    return once
