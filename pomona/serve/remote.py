"""The engine's process as the server sees it: starts it, and starts it again when it dies."""

import asyncio
import contextlib
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from pomona.core.errors import UserError
from pomona.serve.link import LOST, Link
from pomona.serve.messages import Order, Ready, Refused, Start, event_of, framed, size_of

LONGEST_PAUSE_SECONDS = 30.0
SOUND_SECONDS = 60.0
"""An engine that ran for so long is started again at once."""


def _environment(hidden: bool) -> dict[str, str]:
    """What one start has compiled, the next one reads, where the user has said nothing else. Not where memory is
    hidden: what lies on a disk is no part of what was measured."""
    if hidden or not (home := os.environ.get("XDG_CACHE_HOME") or os.environ.get("HOME")):
        return dict(os.environ)
    folder = Path(home) / ("" if os.environ.get("XDG_CACHE_HOME") else ".cache") / "pomona" / "compiled"
    kept = {"JAX_COMPILATION_CACHE_DIR": str(folder), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
    return kept | os.environ


class Remote(Link):
    """One engine in a process of its own, for one event loop."""

    def __init__(self, start: Start) -> None:
        super().__init__(start.context, self._write)
        self.start_order = start
        self._writer: asyncio.StreamWriter | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> Ready:
        """Starts the process and waits until it computes.

        Raises:
            UserError: it cannot serve this.
        """
        reader = await self._launch()
        ready = await self._greeting(reader)
        self._keeper = asyncio.create_task(self._keep(reader))
        return ready

    async def stop(self) -> None:
        """Ends the process; requests that have not ended are told so."""
        if self._keeper:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        self.lose("the server is stopping")
        await self._close()

    def _write(self, order: Order) -> None:
        if self._writer is not None:
            self._writer.write(framed(order))

    async def _launch(self) -> asyncio.StreamReader:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "pomona.serve.process",
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=2,  # what a library prints is no message of ours
                env=_environment(self.start_order.hidden),
            )
        reader, self._writer = await asyncio.open_unix_connection(sock=ours)
        self._writer.write(framed(self.start_order))
        return reader

    async def _greeting(self, reader: asyncio.StreamReader) -> Ready:
        try:
            event = await _next(reader)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            await self._close()
            raise UserError(
                f"the engine ended before it could serve {self.start_order.model}.",
                "what it said last stands above.",
                "the same with fewer --slots or a smaller --context, if it was memory.",
            ) from error
        if isinstance(event, Refused):
            await self._close()
            raise UserError(event.what, event.rule, event.fix)
        self.ready = event
        return event

    async def _keep(self, reader: asyncio.StreamReader) -> None:
        """Brings events while the process lives, and starts another when it dies."""
        pause = 0.0
        while True:
            began = time.monotonic()
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    self.bring(await _next(reader))
            self.lose(LOST)
            await self._close()
            pause = 0.0 if time.monotonic() - began > SOUND_SECONDS else min(LONGEST_PAUSE_SECONDS, 2 * pause + 0.1)
            while self.ready is None:
                await asyncio.sleep(pause)
                self.restarts += 1
                with contextlib.suppress(UserError):
                    reader = await self._launch()
                    await self._greeting(reader)
                pause = min(LONGEST_PAUSE_SECONDS, 2 * pause + 0.1)

    async def _close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(process.wait(), 5)
            if process.returncode is None:
                process.kill()
                await process.wait()


async def _next(reader: asyncio.StreamReader) -> Any:
    size = size_of(await reader.readexactly(4))
    return event_of(await reader.readexactly(size))
