"""The log as a client reads it: over HTTP, every file checked, and none fetched twice that cannot change."""

import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import httpx2

from pomona.core.files import write_bytes
from pomona.private.attestation.case import Known
from pomona.private.client.trust import LogTrust
from pomona.private.transparency.errors import Absent, Forked, TransparencyError
from pomona.private.transparency.tiles import CHECKPOINT_PATH, Fetch
from pomona.private.transparency.view import View, advance, entries, load_view, new_view, save_view

LARGEST_FILE = 32 << 20
SECONDS = 20.0


class Unreachable(Exception):
    """Somebody that is needed does not answer; nothing is believed in the meantime."""


def read_log(log: LogTrust, state: Path, now: float) -> Known:
    """The newest history of a log, consistent with all that was seen before; what was seen is kept in `state`.

    Raises:
        Unreachable: the log does not answer.
        Forked: it shows another history than before; both checkpoints are in the exception and in `state/forked`.
        TransparencyError: what it shows is not signed, not fresh, or not what was signed.
    """
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = state / "view.json"
    view = load_view(path) if path.exists() else _new(log)
    if (view.origin, view.log, view.cosigners, view.quorum) != _identity(_new(log)):
        raise TransparencyError(f"{path} is of another log than the settings name; remove it to begin anew.")
    with httpx2.Client(timeout=SECONDS, follow_redirects=False) as client:
        fetch = kept(over_http(client, log.address), state / "tiles")
        try:
            view = advance(view, fetch, now)
            found = [entry for _, entry in entries(view, fetch)]
        except TransparencyError as error:
            shutil.rmtree(state / "tiles", ignore_errors=True)  # one of them may be what was wrong
            if isinstance(error, Forked):
                keep_evidence(error, state / "forked")
            raise
    save_view(view, path)
    return Known(view, found, now)


def keep_evidence(fork: Forked, folder: Path) -> None:
    """Both checkpoints and the path between them: what proves to anybody that the log has lied."""
    write_bytes(folder / "held", fork.held)
    write_bytes(folder / "offered", fork.offered)
    write_bytes(folder / "path", b"".join(fork.path))


def over_http(client: httpx2.Client, address: str) -> Fetch:
    """Fetches a log's files from a server."""

    def fetch(path: str) -> bytes:
        try:
            with client.stream("GET", f"{address.rstrip('/')}/{path}") as answer:
                if answer.status_code == 404:
                    raise Absent(f"the log has no file {path}.")
                if answer.status_code != 200:
                    raise Unreachable(f"the log answers {answer.status_code}")
                return _up_to(answer.iter_bytes(), LARGEST_FILE)
        except httpx2.HTTPError as error:
            raise Unreachable(f"the log at {address} does not answer: {type(error).__name__}") from error

    return fetch


def kept(fetch: Fetch, folder: Path) -> Fetch:
    """The same, with full tiles and bundles kept on disk: they never change, and are checked each time that they are
    read."""

    def read(path: str) -> bytes:
        if path == CHECKPOINT_PATH or ".p/" in path:
            return fetch(path)
        place = folder / path
        if place.exists():
            return place.read_bytes()
        content = fetch(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        descriptor, draft = tempfile.mkstemp(dir=place.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.replace(draft, place)
        return content

    return read


def _up_to(pieces: Iterable[bytes], largest: int) -> bytes:
    found = bytearray()
    for piece in pieces:
        found += piece
        if len(found) > largest:
            raise TransparencyError(f"a file of the log has more than {largest} bytes.")
    return bytes(found)


def _new(log: LogTrust) -> View:
    return new_view(log.origin, log.vkey, log.cosigners, log.quorum)


def _identity(view: View) -> tuple[object, ...]:
    return view.origin, view.log, view.cosigners, view.quorum
