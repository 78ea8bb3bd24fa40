"""How commands reach a TPM and responses come back: a socket, a device file, or a recording of either.

A transport takes one whole command and gives one whole response. It waits so many seconds for the whole exchange,
however slowly the other side sends, reads 4096 bytes at most, and raises `TpmError` for whatever is no response.
"""

import contextlib
import json
import os
import select
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from pomona.private.evidence.errors import AttestationError
from pomona.private.evidence.tpm.errors import TpmError
from pomona.private.evidence.tpm.wire import CC_NAMES, HEADER_BYTES, MOST_BYTES, response_size

TIMEOUT_SECONDS = 30.0
"""A hardware TPM may think for seconds about a primary key."""


class Transport(Protocol):
    """Takes a command to a TPM; it is called by one thread at a time."""

    def exchange(self, command: bytes) -> bytes:
        """The response to a command.

        Raises:
            TpmError: none came in time, or something that is none.
        """

    def close(self) -> None:
        """Lets the connection go."""


def command_name(command: bytes) -> str:
    """The name of a packed command, for messages."""
    code = int.from_bytes(command[6:HEADER_BYTES], "big")
    return CC_NAMES.get(code, f"command 0x{code:x}")


class SocketTransport:
    """A stream socket on which bare commands and responses pass, as an emulator's server socket takes them."""

    def __init__(self, connection: socket.socket, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._connection, self._timeout_seconds = connection, timeout_seconds

    def exchange(self, command: bytes) -> bytes:
        """See `Transport`."""
        name, deadline = command_name(command), time.monotonic() + self._timeout_seconds
        try:
            self._refuse_leftovers(name)
            self._connection.settimeout(self._timeout_seconds)
            self._connection.sendall(command)
            return _assembled(name, lambda most: self._receive(most, deadline))
        except OSError as error:
            raise TpmError(name, _reason(error, self._timeout_seconds)) from error

    def close(self) -> None:
        """See `Transport`."""
        self._connection.close()

    def _receive(self, most: int, deadline: float) -> bytes:
        left_seconds = deadline - time.monotonic()
        if left_seconds <= 0:
            raise TimeoutError
        self._connection.settimeout(left_seconds)
        return self._connection.recv(most)

    def _refuse_leftovers(self, name: str) -> None:
        """Bytes that came unasked would be taken for the response to this command, and the next for the one after."""
        self._connection.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            unasked = self._connection.recv(1)
            raise TpmError(name, "bytes came before the command was sent" if unasked else "the connection is closed")


def open_unix(path: Path, timeout_seconds: float = TIMEOUT_SECONDS) -> SocketTransport:
    """The TPM behind a Unix socket.

    Raises:
        TpmError: nobody listens there.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_seconds)
        connection.connect(str(path))
    except OSError as error:
        connection.close()
        raise TpmError("connect", _reason(error, timeout_seconds)) from error
    return SocketTransport(connection, timeout_seconds)


def open_tcp(host: str, port: int, timeout_seconds: float = TIMEOUT_SECONDS) -> SocketTransport:
    """The TPM behind a TCP port. Nothing protects the connection: only for an emulator on the same machine.

    Raises:
        TpmError: nobody listens there.
    """
    try:
        connection = socket.create_connection((host, port), timeout_seconds)
    except OSError as error:
        raise TpmError("connect", _reason(error, timeout_seconds)) from error
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return SocketTransport(connection, timeout_seconds)


class DeviceTransport:
    """A TPM's device file. Linux's /dev/tpmrm0 shares the TPM: it keeps each opener's keys and sessions apart, and
    flushes them when the file is closed. The driver has time limits of its own, which may be longer."""

    def __init__(self, path: Path = Path("/dev/tpmrm0"), timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        try:
            self._file = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise TpmError("open", _reason(error, timeout_seconds)) from error
        self._timeout_seconds = timeout_seconds

    def exchange(self, command: bytes) -> bytes:
        """See `Transport`."""
        name, deadline = command_name(command), time.monotonic() + self._timeout_seconds
        try:
            if os.write(self._file, command) != len(command):
                raise TpmError(name, "the device file did not take the whole command")
            return _assembled(name, lambda most: self._receive(most, deadline))
        except OSError as error:
            raise TpmError(name, _reason(error, self._timeout_seconds)) from error

    def close(self) -> None:
        """See `Transport`."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def _receive(self, most: int, deadline: float) -> bytes:
        readable = select.poll()
        readable.register(self._file, select.POLLIN)
        if not readable.poll(max(deadline - time.monotonic(), 0) * 1000):
            raise TimeoutError
        return os.read(self._file, most)


def _assembled(name: str, receive: Callable[[int], bytes]) -> bytes:
    """A response out of the pieces that `receive(most)` brings."""
    response = b""
    wanted = HEADER_BYTES
    while len(response) < wanted:
        # One byte more than a response may have: so what comes after a response is seen, not taken for the next one.
        piece = receive(MOST_BYTES + 1 - len(response))
        if not piece:
            raise TpmError(name, f"the connection closed after {len(response)} bytes of the response")
        response += piece
        if len(response) >= HEADER_BYTES:
            try:
                wanted = response_size(response[:HEADER_BYTES])
            except AttestationError as error:
                raise TpmError(name, str(error).removesuffix(".")) from error
    if len(response) > wanted:
        raise TpmError(name, f"the response says it has {wanted} bytes, and more came")
    return response


def _reason(error: OSError, timeout_seconds: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no whole response within {timeout_seconds:g} seconds"
    return f"the TPM cannot be reached ({error.strerror or type(error).__name__})"


class RecordingTransport:
    """Passes everything on to another transport and keeps it: `lines` has one JSON object for each exchange. For tests:
    what it keeps includes Diffie-Hellman results."""

    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        self.lines: list[str] = []

    def exchange(self, command: bytes) -> bytes:
        """See `Transport`."""
        response = self._inner.exchange(command)
        self.lines.append(json.dumps({"command": command.hex(), "response": response.hex()}))
        return response

    def close(self) -> None:
        """See `Transport`."""
        self._inner.close()


class ReplayTransport:
    """Answers from a recording, in its order: whoever sends the same commands gets the same responses. `position`
    counts the exchanges that were used. Raises `TpmError` where a line is none of a recording."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._exchanges = [_exchange(line) for line in lines]
        self.position = 0

    def exchange(self, command: bytes) -> bytes:
        """See `Transport`."""
        name = command_name(command)
        if self.position >= len(self._exchanges):
            raise TpmError(name, "the recording ends before this command")
        recorded, response = self._exchanges[self.position]
        if recorded != command:
            raise TpmError(name, f"the recording has other bytes as its command {self.position + 1}")
        self.position += 1
        return response

    def close(self) -> None:
        """See `Transport`."""


def _exchange(line: str) -> tuple[bytes, bytes]:
    try:
        found = json.loads(line)
        return bytes.fromhex(found["command"]), bytes.fromhex(found["response"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TpmError("replay", "a line is no recorded exchange: an object of two hexadecimal texts") from error
