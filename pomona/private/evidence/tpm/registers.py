"""Arithmetic of a TPM's measured registers (platform configuration registers) in the SHA-256 bank: no TPM is needed.

Source: TPM 2.0 Library specification, revision 1.59, Part 3 sections 22.2 and 23.7.
"""

import hashlib
from collections.abc import Iterable, Mapping

from pomona.private.evidence.errors import AttestationError
from pomona.private.evidence.tpm.wire import ALG_SHA256, CC, SHA256_BYTES, Bank, number, pack_selection

NUM_MEASURED = 16
"""Registers 0 to 15 start at zero and only ever grow until the TPM is reset. Software can reset some of the others."""


def selection_of(registers: Iterable[int]) -> tuple[Bank, ...]:
    """The selection of these registers of the SHA-256 bank.

    Raises:
        AttestationError: none, one twice, or one that is not 0 to 15.
    """
    ordered = tuple(sorted(registers))
    if not ordered or len(set(ordered)) < len(ordered) or not all(0 <= each < NUM_MEASURED for each in ordered):
        raise AttestationError(f"{ordered} cannot be measured registers: at least one, each once, from 0 to 15.")
    return (Bank(ALG_SHA256, ordered),)


def extended(previous: bytes, digest: bytes) -> bytes:
    """A register's value, 32 bytes, after `digest`, 32 bytes, was measured into it; it begins with 32 zero bytes.

    Raises:
        AttestationError: one of them has another size.
    """
    return hashlib.sha256(_value(previous) + _value(digest)).digest()


def registers_digest(values: Mapping[int, bytes]) -> bytes:
    """The hash a quote carries, 32 bytes: of the values, 32 bytes each, in ascending order of their registers.

    Raises:
        AttestationError: a value has another size, or the registers are none that can be measured.
    """
    (bank,) = selection_of(values)
    return hashlib.sha256(b"".join(_value(values[each]) for each in bank.registers)).digest()


def policy_pcr_digest(values: Mapping[int, bytes]) -> bytes:
    """The policy, 32 bytes, that only TPM2_PolicyPCR over registers with these values fulfils (Part 3, section 23.7).

    Raises:
        AttestationError: a value has another size, or the registers are none that can be measured.
    """
    statement = number(CC["PolicyPCR"], 4) + pack_selection(selection_of(values)) + registers_digest(values)
    return hashlib.sha256(bytes(SHA256_BYTES) + statement).digest()


def _value(value: bytes) -> bytes:
    if len(value) != SHA256_BYTES:
        raise AttestationError(f"a register's value or digest has {len(value)} bytes; it must have {SHA256_BYTES}.")
    return value
