"""A connection to a TPM 2.0, and the commands that need no key: start, random bytes, registers, non-volatile indices.

A command is a function with the name it has in Part 3 of the Library specification; the section is Part 3's.

Hierarchies and keys are used with the empty password, as on a machine whose TPM nobody has taken over. Nothing is
encrypted between here and the TPM: who listens on the wires to a discrete TPM sees what passes, a Diffie-Hellman
result included.
"""

import os
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TypeVar

from pomona.private.evidence.errors import AttestationError
from pomona.private.evidence.tpm.errors import TpmError, refused
from pomona.private.evidence.tpm.registers import selection_of
from pomona.private.evidence.tpm.transport import Transport
from pomona.private.evidence.tpm.wire import (
    ALG_SHA256,
    CC,
    MOST_BYTES,
    MOST_DATA_BYTES,
    MOST_DIGEST_BYTES,
    RS_PASSWORD,
    SHA256_BYTES,
    Command,
    Reader,
    number,
    pack_command,
    pack_selection,
    read_response,
    read_selection,
    whole,
)

ALREADY_STARTED = 0x100
MOST_RANDOM_BYTES = 32
"""What any TPM gives at once: a digest (Part 3, section 16.1)."""
NV_PIECE_BYTES = 512
"""A TPM reads at least so much of a non-volatile index at once."""

T = TypeVar("T")


class Tpm:
    """One connection to a TPM, for any number of threads: `lock` is held for a command, and by whoever needs several
    commands in a row. `random` gives so many random bytes; a test gives its own, so that commands can be replayed.

    Every call waits for the TPM: call it from a thread, not from an event loop.
    """

    def __init__(self, transport: Transport, random: Callable[[int], bytes] = os.urandom) -> None:
        self.lock = threading.RLock()
        self.random = random
        self._transport = transport
        self._usable = True

    def execute(self, command: Command, read: Callable[[Reader], T]) -> T:
        """Sends a command; `read` reads the response's handle, where there is one, and parameters, to their end.

        Raises:
            TpmError: the TPM refused, or did not answer as a TPM does. An exchange that brings no whole response is the
                connection's last.
            AttestationError: the command is too long.
        """
        packed = pack_command(command)
        with self.lock:
            if not self._usable:
                raise TpmError(command.name, "the connection is broken or closed, and has to be opened anew")
            # Whatever ends an exchange early, an interrupt too, may leave a response behind that belongs to no command.
            self._usable = False
            response = self._transport.exchange(packed)
            self._usable = True
        try:
            code, body = read_response(response, command)
            if not code:
                return whole(body, read, f"the response to {command.name}")
        except AttestationError as error:
            raise TpmError(command.name, str(error).removesuffix(".")) from error
        raise refused(command.name, code)

    def close(self) -> None:
        """Closes the connection."""
        with self.lock:
            self._usable = False
            self._transport.close()

    def __enter__(self) -> "Tpm":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def nothing(reader: Reader) -> bool:
    """Reads a response without parameters."""
    return True


# --- the TPM itself ------------------------------------------------------------------------------------------------


def startup(tpm: Tpm) -> None:
    """TPM2_Startup(CLEAR), section 9.3. Where firmware has started the TPM already, nothing happens.

    Raises:
        TpmError: the TPM does not start.
    """
    try:
        tpm.execute(Command(CC["Startup"], parameters=number(0, 2)), nothing)
    except TpmError as error:
        if error.code != ALREADY_STARTED:
            raise


def get_random(tpm: Tpm, count: int) -> bytes:
    """TPM2_GetRandom, section 16.1: `count` random bytes, 1 to 32.

    Raises:
        TpmError: the TPM gives none.
        AttestationError: another count.
    """
    if not 1 <= count <= MOST_RANDOM_BYTES:
        raise AttestationError(f"{count} random bytes were asked for; a TPM gives 1 to {MOST_RANDOM_BYTES} at once.")
    found = tpm.execute(Command(CC["GetRandom"], parameters=number(count, 2)), lambda r: r.sized(count))
    if len(found) != count:
        raise TpmError("TPM2_GetRandom", f"{len(found)} bytes came, not {count}")
    return found


def pcr_read(tpm: Tpm, registers: Iterable[int]) -> dict[int, bytes]:
    """TPM2_PCR_Read, section 22.4: the registers' values in the SHA-256 bank, 32 bytes each, all of one moment.

    Raises:
        TpmError: the TPM has no such bank, or a register changed while they were read.
        AttestationError: the registers are none that can be measured.
    """
    (bank,) = selection_of(registers)
    values: dict[int, bytes] = {}
    counters: set[int] = set()
    with tpm.lock:
        while left := [each for each in bank.registers if each not in values]:
            command = Command(CC["PCR_Read"], parameters=pack_selection(selection_of(left)))
            counter, found = tpm.execute(command, _read_registers)
            counters.add(counter)
            if not found or not found.keys() <= set(left):
                raise TpmError("TPM2_PCR_Read", f"the TPM gives no value of register {left[0]} in its SHA-256 bank")
            values.update(found)
    if len(counters) > 1:
        raise TpmError("TPM2_PCR_Read", "a register changed while they were read")
    return values


def _read_registers(reader: Reader) -> tuple[int, dict[int, bytes]]:
    counter, selection = reader.number(4), read_selection(reader)
    selected = [each for bank in selection if bank.hash_algorithm == ALG_SHA256 for each in bank.registers]
    count = reader.number(4)
    if count != sum(len(bank.registers) for bank in selection) or count != len(selected):
        raise AttestationError(f"{reader.what} has {count} values for {len(selected)} SHA-256 registers.")
    return counter, {each: read_digest(reader) for each in selected}


def read_digest(reader: Reader) -> bytes:
    """A TPM2B_DIGEST of SHA-256.

    Raises:
        AttestationError: another size.
    """
    found = reader.sized(SHA256_BYTES)
    if len(found) != SHA256_BYTES:
        raise AttestationError(f"{reader.what} has a hash of {len(found)} bytes; it must have {SHA256_BYTES}.")
    return found


def pcr_extend(tpm: Tpm, register: int, digest: bytes) -> None:
    """TPM2_PCR_Extend, section 22.2: measures a SHA-256 digest into a register.

    Raises:
        TpmError: the TPM refused.
        AttestationError: the digest has not 32 bytes, or the register is none that can be measured.
    """
    selection_of([register])
    if len(digest) != SHA256_BYTES:
        raise AttestationError(f"a measurement has {len(digest)} bytes; it must have {SHA256_BYTES}.")
    parameters = number(1, 4) + number(ALG_SHA256, 2) + digest
    tpm.execute(Command(CC["PCR_Extend"], (register,), (RS_PASSWORD,), parameters), nothing)


def nv_size(tpm: Tpm, index: int) -> int:
    """TPM2_NV_ReadPublic, section 31.6: bytes of a non-volatile index, 0 to 65535.

    Raises:
        TpmError: there is no such index.
    """

    def read(reader: Reader) -> int:
        area = Reader(reader.sized(MOST_BYTES), reader.what)  # TPMS_NV_PUBLIC: Part 2, section 13.5
        reader.sized(MOST_DATA_BYTES)
        area.take(4 + 2 + 4)
        area.sized(MOST_DIGEST_BYTES)
        size = area.number(2)
        area.end()
        return size

    return tpm.execute(Command(CC["NV_ReadPublic"], (index,)), read)


def nv_read(tpm: Tpm, index: int) -> bytes:
    """TPM2_NV_Read, section 31.13: all of a non-volatile index that may be read with its own empty password.

    Raises:
        TpmError: there is no such index, or it may not be read so.
    """
    found = b""
    with tpm.lock:
        size = nv_size(tpm, index)
        while len(found) < size:
            piece = min(NV_PIECE_BYTES, size - len(found))
            parameters = number(piece, 2) + number(len(found), 2)
            command = Command(CC["NV_Read"], (index, index), (RS_PASSWORD,), parameters)
            read = tpm.execute(command, lambda r: r.sized(NV_PIECE_BYTES))
            if len(read) != piece:
                raise TpmError("TPM2_NV_Read", f"{len(read)} bytes came, not {piece}")
            found += read
    return found
