"""The log: files that anybody may read, and one way to write, for those who may.

What it publishes is static; any server, mirror or cache can hand it out, and nobody has to believe it.
"""

import asyncio
import contextlib
import dataclasses
import json
import re
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pomona.core.errors import UserError
from pomona.core.files import write_text
from pomona.core.private_files import read_private, write_private
from pomona.private.client.trust import LogTrust
from pomona.private.roles.http import body, every, plain
from pomona.private.roles.publishing import ENTRIES_PATH, Entries, Writer, writer_of
from pomona.private.transparency.errors import TransparencyError
from pomona.private.transparency.leaves import KIND_OF, decode
from pomona.private.transparency.log import Log, open_log
from pomona.private.transparency.note import Signer, decode_skey, encode_skey, encode_vkey, generate_signer, verifier_of

REFRESH_SECONDS = 600.0
_PUBLIC = re.compile(r"checkpoint|tile/(?:\d+|entries)/(?:x\d{3}/)*\d{3}(?:\.p/\d{1,3})?")


def signer_of(folder: Path, origin: str) -> Signer:
    """The log's key, made where there is none; nobody but its owner may read it.

    Raises:
        UserError: it is no key, or of another log.
    """
    path = folder / "log.skey"
    if not path.exists():
        write_private(path, encode_skey(generate_signer(origin)).encode() + b"\n")
    try:
        signer = decode_skey(read_private(path).decode().strip())
    except (TransparencyError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no log's key: {error}", "the log made it when it began.", "a copy") from error
    if signer.name != origin:
        raise UserError(
            f"{path} is the key of the log {signer.name}.", "a log keeps its name.", f"--origin {signer.name}"
        )
    return signer


def open_role(folder: Path, origin: str, address: str) -> tuple[Log, LogTrust]:
    """The log of a folder, and the settings that clients get; they are written to `log.json` in it.

    Raises:
        UserError: another process has it, or its files do not agree.
    """
    folder.mkdir(parents=True, exist_ok=True)
    signer = signer_of(folder, origin)
    try:
        log = open_log(folder / "public", signer, origin)
    except TransparencyError as error:
        raise UserError(f"the log cannot be opened: {error}", "a log is one history.", "a copy of it") from error
    trust = LogTrust(address, origin, encode_vkey(verifier_of(signer)))
    write_text(folder / "log.json", json.dumps(dataclasses.asdict(trust), indent=2) + "\n")
    return log, trust


def build_log(log: Log, writers: Sequence[Writer], clock: Callable[[], float]) -> Starlette:
    """The application of a log that is open for writing."""

    async def read(request: Request) -> Response:
        path = request.path_params["path"]
        if not _PUBLIC.fullmatch(path):
            return plain(404, "no such file")
        try:
            content = await asyncio.to_thread((log.folder / path).read_bytes)
        except OSError:
            return plain(404, "no such file")
        lasting = "no-cache" if path == "checkpoint" else "public, max-age=31536000, immutable"
        return Response(content, headers={"cache-control": lasting}, media_type="application/octet-stream")

    async def write(request: Request) -> Response:
        writer = writer_of(writers, request.headers.get("authorization", ""))
        if writer is None:
            return plain(401, "no such writer")
        content = await body(request)
        try:
            entries = [each.encode() for each in msgspec.json.decode(content or b"", type=Entries).entries]
            kinds = {KIND_OF[type(decode(entry))] for entry in entries}
        except (msgspec.MsgspecError, UnicodeEncodeError, RecursionError, TransparencyError) as error:
            return plain(400, f"not leaves: {error}")
        if not kinds <= writer.kinds:
            return plain(403, f"{writer.name} may not write {', '.join(sorted(kinds - writer.kinds))}")
        async with writing:
            indices = await asyncio.to_thread(log.append, entries, clock())
        return plain(200, f"{indices.start} {indices.stop}")

    async def refresh() -> bool:
        async with writing:
            await asyncio.to_thread(log.refresh, clock())
        return True

    @contextlib.asynccontextmanager
    async def life(app: Starlette) -> AsyncGenerator[None, None]:
        with log:
            async with every(REFRESH_SECONDS, refresh):
                yield

    writing = asyncio.Lock()
    routes = [Route(ENTRIES_PATH, write, methods=["POST"]), Route("/{path:path}", read, methods=["GET"])]
    return Starlette(routes=routes, lifespan=life)
