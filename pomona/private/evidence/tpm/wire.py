"""What goes over the wire to a TPM 2.0: numbers, buffers, register selections, commands and responses.

Source: Trusted Computing Group, TPM 2.0 Library specification, revision 1.59. Part 1 is Architecture,
Part 2 Structures, Part 3 Commands.
All numbers are big-endian. Reading is strict: every size has a most, nothing may be left over, and whatever does not
read raises `AttestationError`.
"""

import dataclasses
from collections.abc import Callable
from typing import TypeVar

from pomona.private.evidence.errors import AttestationError

MOST_BYTES = 4096
"""The longest command and the longest response; what PC Client TPMs and their drivers take."""
HEADER_BYTES = 10
"""A tag of 2 bytes, the size of the whole in 4, a code in 4 (Part 1, "TPM Command/Response Structure")."""
SHA256_BYTES = 32
MOST_DIGEST_BYTES = 64
"""TPM2B_DIGEST holds at most the longest digest a TPM knows, SHA-512's (Part 2, section 10.4.2)."""
MOST_DATA_BYTES = 66
"""TPM2B_DATA and TPM2B_NAME hold at most an algorithm's number and a digest (Part 2, sections 10.4.3 and 10.5.3)."""

# Algorithms: Part 2, section 6.3. The curve: section 6.4.
ALG_RSA, ALG_AES, ALG_SHA256, ALG_NULL, ALG_ECDSA, ALG_ECDH, ALG_ECC, ALG_CFB = (
    0x0001,
    0x0006,
    0x000B,
    0x0010,
    0x0018,
    0x0019,
    0x0023,
    0x0043,
)
CURVE_P256 = 0x0003

# Structure tags: Part 2, section 6.9.
ST_NO_SESSIONS, ST_SESSIONS = 0x8001, 0x8002
ST_ATTEST_CERTIFY, ST_ATTEST_QUOTE, ST_ATTEST_CREATION = 0x8017, 0x8018, 0x801A
ST_CREATION, ST_AUTH_SECRET = 0x8021, 0x8023

# Permanent handles: Part 2, section 7.4.
RH_OWNER, RH_NULL, RS_PASSWORD, RH_ENDORSEMENT = 0x40000001, 0x40000007, 0x40000009, 0x4000000B

# Command codes: Part 2, section 6.5.2.
CC_NAMES = {
    0x0131: "TPM2_CreatePrimary",
    0x0144: "TPM2_Startup",
    0x0147: "TPM2_ActivateCredential",
    0x014A: "TPM2_CertifyCreation",
    0x014E: "TPM2_NV_Read",
    0x0151: "TPM2_PolicySecret",
    0x0153: "TPM2_Create",
    0x0154: "TPM2_ECDH_ZGen",
    0x0157: "TPM2_Load",
    0x0158: "TPM2_Quote",
    0x0165: "TPM2_FlushContext",
    0x0169: "TPM2_NV_ReadPublic",
    0x0173: "TPM2_ReadPublic",
    0x0176: "TPM2_StartAuthSession",
    0x017B: "TPM2_GetRandom",
    0x017E: "TPM2_PCR_Read",
    0x017F: "TPM2_PolicyPCR",
    0x0182: "TPM2_PCR_Extend",
    0x0189: "TPM2_PolicyGetDigest",
}
CC = {name.removeprefix("TPM2_"): code for code, name in CC_NAMES.items()}

T = TypeVar("T")


class Reader:
    """Reads a buffer from its beginning; `what` names it in the messages."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data, self._at, self.what = data, 0, what

    def take(self, size: int) -> bytes:
        """The next `size` bytes.

        Raises:
            AttestationError: fewer are left.
        """
        left = len(self._data) - self._at
        if size > left:
            raise AttestationError(f"{self.what} is cut short: the next field has {size} bytes, {left} are left.")
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, size: int) -> int:
        """An unsigned number of `size` bytes.

        Raises:
            AttestationError: fewer are left.
        """
        return int.from_bytes(self.take(size), "big")

    def one_of(self, size: int, allowed: tuple[int, ...], field: str) -> int:
        """A number of `size` bytes that must be among `allowed`.

        Raises:
            AttestationError: it is another.
        """
        found = self.number(size)
        if found not in allowed:
            rule = ", ".join(f"0x{each:x}" for each in allowed)
            raise AttestationError(f"{self.what} has 0x{found:x} as its {field}; allowed is {rule}.")
        return found

    def sized(self, most: int) -> bytes:
        """A TPM2B: a size of 2 bytes, then so many (Part 2, section 10.4).

        Raises:
            AttestationError: more than `most`, or fewer are left.
        """
        size = self.number(2)
        if size > most:
            raise AttestationError(f"{self.what} has a field of {size} bytes where {most} are the most.")
        return self.take(size)

    def end(self) -> None:
        """Nothing more may come.

        Raises:
            AttestationError: something does.
        """
        left = len(self._data) - self._at
        if left:
            raise AttestationError(f"{self.what} is followed by {left} bytes that belong to nothing.")


def whole(data: bytes, read: Callable[[Reader], T], what: str) -> T:
    """What `read` reads, where it must be all of `data`.

    Raises:
        AttestationError: it does not read, or bytes are left.
    """
    reader = Reader(data, what)
    found = read(reader)
    reader.end()
    return found


def number(value: int, size: int) -> bytes:
    """`value` in `size` bytes."""
    return value.to_bytes(size, "big")


def sized(data: bytes) -> bytes:
    """A TPM2B: `data` after its size in 2 bytes (Part 2, section 10.4).

    Raises:
        AttestationError: more than a command could hold.
    """
    if len(data) > MOST_BYTES:
        raise AttestationError(f"a field has {len(data)} bytes; {MOST_BYTES} are the most in anything for a TPM.")
    return number(len(data), 2) + data


# --- selections of registers ---------------------------------------------------------------------------------------

NUM_REGISTERS = 24
"""Platform configuration registers of a bank on a PC Client TPM: 3 bytes of flags."""
MOST_BANKS = 16
"""TPML_PCR_SELECTION lists a bank once for each hash a TPM knows; reference code has room for 16."""


@dataclasses.dataclass(frozen=True)
class Bank:
    """TPMS_PCR_SELECTION: registers of one bank, ascending (Part 2, section 10.6.2)."""

    hash_algorithm: int
    registers: tuple[int, ...]


def pack_selection(selection: tuple[Bank, ...]) -> bytes:
    """TPML_PCR_SELECTION (Part 2, section 10.9.7); register r is bit r of the flags, the first byte lowest."""
    packed = number(len(selection), 4)
    for bank in selection:
        flags = sum(1 << register for register in bank.registers)
        packed += number(bank.hash_algorithm, 2) + b"\x03" + flags.to_bytes(3, "little")
    return packed


def read_selection(reader: Reader) -> tuple[Bank, ...]:
    """TPML_PCR_SELECTION (Part 2, section 10.9.7).

    Raises:
        AttestationError: more than 16 banks, or flags that are not 3 bytes.
    """
    count = reader.number(4)
    if count > MOST_BANKS:
        raise AttestationError(f"{reader.what} selects registers of {count} banks; {MOST_BANKS} are the most.")
    return tuple(_read_bank(reader) for _ in range(count))


def _read_bank(reader: Reader) -> Bank:
    algorithm = reader.number(2)
    reader.one_of(1, (3,), "number of bytes of register flags")
    flags = int.from_bytes(reader.take(3), "little")
    return Bank(algorithm, tuple(r for r in range(NUM_REGISTERS) if flags >> r & 1))


# --- commands and responses ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Command:
    """One command: its code, its handles, who authorises the first of them, its packed parameters.

    `sessions` are handles of sessions: `RS_PASSWORD` with the empty password, or a policy session, which ends with
    the command. No other kind is used here: no HMAC, no parameter encryption.
    """

    code: int
    handles: tuple[int, ...] = ()
    sessions: tuple[int, ...] = ()
    parameters: bytes = b""
    returns_handle: bool = False

    @property
    def name(self) -> str:
        """As Part 3 has it, or the number."""
        return CC_NAMES.get(self.code, f"command 0x{self.code:x}")


def pack_command(command: Command) -> bytes:
    """The command's bytes; a session is TPMS_AUTH_COMMAND (Part 2, section 10.13.2): its handle, no nonce, no attribute
    (so it is not continued), no HMAC.

    Raises:
        AttestationError: longer than 4096 bytes.
    """
    body = b"".join(number(handle, 4) for handle in command.handles)
    if command.sessions:
        area = b"".join(number(handle, 4) + sized(b"") + b"\x00" + sized(b"") for handle in command.sessions)
        body += number(len(area), 4) + area
    body += command.parameters
    size = HEADER_BYTES + len(body)
    if size > MOST_BYTES:
        raise AttestationError(f"{command.name} has {size} bytes; a command has {MOST_BYTES} at most.")
    tag = ST_SESSIONS if command.sessions else ST_NO_SESSIONS
    return number(tag, 2) + number(size, 4) + number(command.code, 4) + body


def response_size(header: bytes) -> int:
    """Bytes of the whole response that opens with these 10.

    Raises:
        AttestationError: not 10 to 4096.
    """
    size = int.from_bytes(header[2:6], "big")
    if not HEADER_BYTES <= size <= MOST_BYTES:
        raise AttestationError(f"a response says it has {size} bytes; {HEADER_BYTES} to {MOST_BYTES} are allowed.")
    return size


def read_response(data: bytes, command: Command) -> tuple[int, bytes]:
    """A response's code, and its handle, where there is one, and parameters as one run of bytes; both empty where the
    code is not 0. A session is TPMS_AUTH_RESPONSE (Part 2, section 10.13.3).

    Raises:
        AttestationError: it is not the response to such a command.
    """
    reader = Reader(data, f"the response to {command.name}")
    tag, size, code = reader.number(2), reader.number(4), reader.number(4)
    if size != len(data):
        raise AttestationError(f"{reader.what} says it has {size} bytes and has {len(data)}.")
    expected = ST_SESSIONS if command.sessions and not code else ST_NO_SESSIONS
    if tag != expected:
        raise AttestationError(f"{reader.what} has the tag 0x{tag:x}; here it must be 0x{expected:x}.")
    if code:
        reader.end()
        return code, b""
    handle = reader.take(4) if command.returns_handle else b""
    if not command.sessions:
        return 0, handle + reader.take(size - HEADER_BYTES - len(handle))
    parameters = reader.take(reader.number(4))
    for _ in command.sessions:
        reader.sized(MOST_DIGEST_BYTES)
        reader.number(1)
        reader.sized(MOST_DIGEST_BYTES)
    reader.end()
    return 0, handle + parameters
