"""The ways to a TPM: sockets, a device file, recordings; and peers that are no TPM, which must not hang us."""

import contextlib
import json
import os
import socket
import threading
import time
import tty

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.private.evidence.errors import AttestationError
from pomona.private.evidence.tpm.client import Tpm, get_random
from pomona.private.evidence.tpm.errors import TpmError
from pomona.private.evidence.tpm.transport import (
    DeviceTransport,
    RecordingTransport,
    ReplayTransport,
    SocketTransport,
    open_tcp,
    open_unix,
)

RANDOM = bytes.fromhex("8001000000140000000000080102030405060708")
"""The response to TPM2_GetRandom of 8 bytes."""


@contextlib.contextmanager
def peer(behave, timeout_seconds=0.2):
    """A TPM whose other end is `behave(connection)`, run once a command came."""
    ours, theirs = socket.socketpair()

    def listen():
        with contextlib.suppress(OSError):
            theirs.recv(4096)
            behave(theirs)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    tpm = Tpm(SocketTransport(ours, timeout_seconds))
    try:
        yield tpm
    finally:
        tpm.close()
        theirs.close()
        thread.join(10)
        assert not thread.is_alive()


def answering(*pieces, pause_seconds=0.0):
    def behave(connection):
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(pause_seconds)

    return behave


def endless(connection):
    while True:
        connection.sendall(b"\x80\x01\x00\x00\x10\x00\x00\x00\x00\x00" + bytes(4096))


def silent(connection):
    connection.recv(1)


def closing(connection):
    connection.shutdown(socket.SHUT_RDWR)


def half(connection):
    connection.sendall(RANDOM[:12])
    connection.shutdown(socket.SHUT_WR)


def dribbling(connection):
    """A byte every now and then: each alone comes in time."""
    for each in RANDOM:
        connection.sendall(bytes([each]))
        time.sleep(0.1)


PEERS = {
    "garbage": answering(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "zeros": answering(bytes(64)),
    "too short a size": answering(RANDOM[:2] + b"\0\0\0\x09" + RANDOM[6:]),
    "too long a size": answering(RANDOM[:2] + b"\xff\xff\xff\xff" + RANDOM[6:]),
    "longer than its size": answering(RANDOM + b"\0"),
    "shorter than its size": answering(RANDOM[:-1]),
    "another tag": answering(b"\x80\x02" + RANDOM[2:]),
    "endless": endless,
    "silent": silent,
    "closing": closing,
    "half": half,
    "dribbling": dribbling,
    "fewer bytes than asked for": answering(bytes.fromhex("80010000000d00000000000101")),
    "more bytes than asked for": answering(bytes.fromhex("800100000015000000000009010203040506070809")),
}


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_that_is_no_tpm_gives_an_error_in_time(name, within):
    with peer(PEERS[name]) as tpm, pytest.raises(TpmError) as caught:
        within(lambda: get_random(tpm, 8))
    assert caught.value.code is None
    assert caught.value.command == "TPM2_GetRandom"


def test_pieces_make_a_response():
    with peer(answering(RANDOM[:3], RANDOM[3:11], RANDOM[11:], pause_seconds=0.02), timeout_seconds=20) as tpm:
        assert get_random(tpm, 8) == RANDOM[-8:]


@settings(max_examples=40, deadline=None)
@given(noise=st.binary(max_size=64))
def test_any_bytes_give_an_error_or_random_bytes(noise):
    def behave(connection):
        connection.sendall(noise)
        connection.shutdown(socket.SHUT_WR)

    with peer(behave, timeout_seconds=5) as tpm:
        try:
            assert len(get_random(tpm, 8)) == 8
        except TpmError:
            pass


def test_after_an_exchange_that_did_not_end_the_connection_is_not_used(within):
    """Else the late response to one command would be taken for the response to the next."""

    def late(connection):
        time.sleep(0.4)
        connection.sendall(RANDOM)

    with peer(late, timeout_seconds=0.1) as tpm:
        with pytest.raises(TpmError, match=r"within 0\.1 seconds"):
            within(lambda: get_random(tpm, 8))
        time.sleep(0.5)
        with pytest.raises(TpmError, match="opened anew"):
            get_random(tpm, 8)


def test_what_follows_a_response_breaks_the_connection():
    with peer(PEERS["longer than its size"]) as tpm:
        with pytest.raises(TpmError, match="20 bytes, and more came"):
            get_random(tpm, 8)
        with pytest.raises(TpmError, match="opened anew"):
            get_random(tpm, 8)


def test_an_interrupt_breaks_the_connection_too():
    class Interrupted:
        def exchange(self, command):
            raise KeyboardInterrupt

        def close(self):
            pass

    tpm = Tpm(Interrupted())
    with pytest.raises(KeyboardInterrupt):
        get_random(tpm, 8)
    with pytest.raises(TpmError, match="opened anew"):
        get_random(tpm, 8)


def test_bytes_that_came_unasked_are_not_taken_for_a_response():
    with peer(answering(RANDOM, RANDOM, pause_seconds=0.1), timeout_seconds=5) as tpm:
        get_random(tpm, 8)
        time.sleep(0.3)
        with pytest.raises(TpmError, match="before the command"):
            get_random(tpm, 8)


def test_a_closed_connection_is_not_used():
    with peer(silent) as tpm:
        tpm.close()
        with pytest.raises(TpmError, match="opened anew"):
            get_random(tpm, 8)


def test_a_refusal_leaves_the_connection_in_use():
    def behave(connection):
        connection.sendall(bytes.fromhex("80010000000a00000922"))
        connection.recv(4096)
        connection.sendall(RANDOM)

    with peer(behave, timeout_seconds=5) as tpm:
        with pytest.raises(TpmError, match="try again later") as caught:
            get_random(tpm, 8)
        assert caught.value.code == 0x922
        assert get_random(tpm, 8) == RANDOM[-8:]


def test_nobody_there(tmp_path):
    with pytest.raises(TpmError, match="cannot be reached"):
        open_unix(tmp_path / "nobody")
    with pytest.raises(TpmError, match="cannot be reached"):
        DeviceTransport(tmp_path / "nobody")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(TpmError, match="cannot be reached"):
            open_tcp("127.0.0.1", unused.getsockname()[1])


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_a_tcp_port(emulators):
    port = free_port()
    emulator = emulators(server=f"type=tcp,port={port}")
    tpm = emulator.keep(Tpm(emulator.waited(lambda: open_tcp("127.0.0.1", port))))
    assert len(get_random(tpm, 16)) == 16


@contextlib.contextmanager
def device(answer):
    """A character device behind which `answer(command)` is a TPM: a pseudo-terminal that changes no byte."""
    master, slave = os.openpty()
    tty.setraw(slave)

    def serve():
        with contextlib.suppress(OSError):
            while command := os.read(master, 4096):
                os.write(master, answer(command))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    transport = DeviceTransport(os.ttyname(slave), timeout_seconds=0.5)
    os.close(slave)
    try:
        yield transport
    finally:
        transport.close()
        transport.close()
        thread.join(10)
        os.close(master)


def test_a_device_file(recording, life):
    run, _ = life
    replay = ReplayTransport(recording)
    with device(replay.exchange) as transport:
        assert run(Tpm(transport, lambda count: bytes(range(count)))).credential == b"enrolled"
    assert replay.position == len(recording)


@pytest.mark.parametrize("answer", [b"", b"garbage that is long", RANDOM[:-1], RANDOM + b"\0"])
def test_a_device_file_that_is_no_tpm(answer, within):
    with device(lambda command: answer) as transport, pytest.raises(TpmError):
        within(lambda: get_random(Tpm(transport), 8))


def test_a_recording_answers_only_what_was_recorded():
    lines = [json.dumps({"command": "80010000000c0000017b0008", "response": RANDOM.hex()})]
    recorder = RecordingTransport(ReplayTransport(lines))
    tpm = Tpm(recorder)
    assert get_random(tpm, 8) == RANDOM[-8:]
    assert recorder.lines == lines
    with pytest.raises(TpmError, match="ends before"):
        get_random(tpm, 8)
    with pytest.raises(TpmError, match="other bytes as its command 1"):
        get_random(Tpm(ReplayTransport(lines)), 9)


@pytest.mark.parametrize(
    "line",
    ["", "[", "[]", "1", "{}", '{"command": 1, "response": ""}', '{"command": "", "response": "zz"}', "[" * 9999],
)
def test_a_line_that_is_no_recording(line):
    with pytest.raises(TpmError, match="two hexadecimal texts"):
        ReplayTransport([line])


class Spoilt:
    """A recording in which one response is another."""

    def __init__(self, inner, position, response):
        self.inner, self.position, self.response = inner, position, response

    def exchange(self, command):
        position = self.inner.position
        found = self.inner.exchange(command)
        return self.response if position == self.position else found

    def close(self):
        pass


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_spoilt_response_gives_an_error_or_goes_unnoticed(life, recording, data):
    """Whatever a TPM answers to whichever command, nothing else is raised."""
    run, _ = life
    position = data.draw(st.integers(0, len(recording) - 1))
    response = bytearray.fromhex(json.loads(recording[position])["response"])
    kind = data.draw(st.sampled_from(["change", "cut", "size", "noise"]))
    if kind == "noise":
        response = bytearray(data.draw(st.binary(max_size=100)))
    elif kind == "change":
        for _ in range(data.draw(st.integers(1, 3))):
            response[data.draw(st.integers(0, len(response) - 1))] = data.draw(st.integers(0, 255))
    else:
        del response[data.draw(st.integers(0, len(response) - 1)) :]
        if kind == "size" and len(response) >= 10:  # cut, and says so: it reaches the parser of this response
            response[2:6] = len(response).to_bytes(4, "big")
    transport = Spoilt(ReplayTransport(recording), position, bytes(response))
    with contextlib.suppress(AttestationError):
        run(Tpm(transport, lambda count: bytes(range(count))))
