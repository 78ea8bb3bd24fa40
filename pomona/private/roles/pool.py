"""A node's workers as the node sees them: a few wait, each is given one request, and another is forked in its place."""

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncGenerator, Callable
from typing import Any

import msgspec

from pomona.core.errors import UserError
from pomona.private.roles import between
from pomona.serve.link import Unavailable
from pomona.serve.messages import Cancel, Finished, Submit, framed, size_of
from pomona.serve.remote import Remote

LONGEST_SECONDS = 600.0
START_SECONDS = 120.0
SPARE = 4


class Outcome(Exception):
    """An answer that did not come to its end, or none at all: one of `between.OUTCOMES`."""

    def __init__(self, outcome: str) -> None:
        super().__init__(outcome)
        self.outcome = outcome


class Pool:
    """Workers for one key of a node, over one engine."""

    def __init__(
        self, order: between.Prepare, diffie_hellman: Callable[[bytes], bytes], engine: Remote, spare: int = SPARE
    ):
        """
        Args:
            diffie_hellman: the step of the key that is in the TPM; it may take its time, and runs in a thread.
            spare: workers that wait for a request.
        """
        self.order, self.engine = order, engine
        self._diffie_hellman, self._spare_count = diffie_hellman, spare
        self._spare: list[socket.socket] = []
        self._control: socket.socket | None = None
        self._process: asyncio.subprocess.Process | None = None
        self.running = 0

    async def start(self) -> None:
        """Returns when workers wait.

        Raises:
            UserError: they cannot be prepared.
        """
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "pomona.private.roles.worker", str(theirs.fileno())),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=2,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # a process that forks has no other threads
            )
        self._control.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self._control, framed(self.order))
        try:
            sign = await asyncio.wait_for(loop.sock_recv(self._control, 1), START_SECONDS)
        except (TimeoutError, OSError):
            sign = b""
        if not sign:
            await self.stop()
            raise UserError(
                f"no worker can serve {self.order.model}.", "what was said last stands above.", "the model's folder"
            )
        self._spare = [self._fork() for _ in range(self._spare_count)]

    @property
    def alive(self) -> bool:
        """Whether the process that forks is there."""
        return self._process is not None and self._process.returncode is None

    async def stop(self) -> None:
        """Ends the workers that wait, and the process that forks; those at work end with what they are saying."""
        for each in self._spare:
            each.close()
        self._spare.clear()
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), 5)
            if self._process.returncode is None:
                self._process.kill()
                await self._process.wait()
            self._process = None

    async def answer(self, envelope: bytes) -> AsyncGenerator[bytes, None]:
        """The sealed answer to a sealed request, as it comes; whoever stops listening ends the worker.

        Raises:
            Outcome: it did not come to its end.
        """
        try:
            connection = self._spare.pop(0) if self._spare else self._fork()
        except OSError as error:
            raise Outcome("lost") from error
        reader, writer = await asyncio.open_unix_connection(sock=connection)
        self.running += 1
        tasks: dict[int, asyncio.Task[None]] = {}
        try:
            async with asyncio.timeout(LONGEST_SECONDS):
                writer.write(framed(between.Request(envelope, self.engine.ready, self.engine.in_flight)))
                while True:
                    told = between.to_node(await reader.readexactly(size_of(await reader.readexactly(4))))
                    if isinstance(told, between.Piece):
                        yield told.content
                    elif isinstance(told, between.Ended):
                        if told.outcome not in ("answered", "failed"):
                            raise Outcome(told.outcome if told.outcome in between.OUTCOMES else "lost")
                        return
                    else:
                        await self._serve(told, writer, tasks)
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError, ValueError, msgspec.MsgspecError) as error:
            raise Outcome("lost") from error
        finally:
            self.running -= 1
            for task in tasks.values():
                task.cancel()
            writer.close()
            if len(self._spare) < self._spare_count:
                with contextlib.suppress(OSError):
                    self._spare.append(self._fork())

    async def _serve(self, told: Any, writer: asyncio.StreamWriter, tasks: dict[int, asyncio.Task[None]]) -> None:
        """What a worker cannot do by itself."""
        if isinstance(told, between.DiffieHellman):
            try:
                shared = await asyncio.to_thread(self._diffie_hellman, told.peer)
            except ValueError:  # the TPM refuses, or the point is none
                shared = b""
            writer.write(framed(between.Secret(shared)))
        elif isinstance(told, Submit):
            tasks[told.id] = asyncio.create_task(self._follow(told, writer))
        elif isinstance(told, Cancel) and told.id in tasks:
            tasks.pop(told.id).cancel()

    async def _follow(self, order: Submit, writer: asyncio.StreamWriter) -> None:
        try:
            async with contextlib.aclosing(self.engine.events(order)) as events:
                async for event in events:
                    if isinstance(event, Finished) and event.reason == "lost":
                        raise Unavailable  # an answer that the engine lost is none: it is cut, and costs nothing
                    writer.write(framed(msgspec.structs.replace(event, id=order.id)))
        except (Unavailable, ConnectionError):
            writer.close()

    def _fork(self) -> socket.socket:
        if self._control is None:
            raise ConnectionError("the process that forks is gone")
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._control, [b"f"], [theirs.fileno()])
            except OSError:
                ours.close()
                raise
        return ours
