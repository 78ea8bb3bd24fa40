"""Hybrid public key encryption (RFC 9180): contexts of a sender and a recipient, in the modes base and PSK.

KEMs: DHKEM over X25519 and P-256 (kem.py). KDF: HKDF-SHA256. AEADs: AES-128-GCM, AES-256-GCM, ChaCha20Poly1305.

    enc, sender = setup_sender(SUITE, public_key, b"what it is for")
    sealed = sender.seal(b"", b"hello")
    setup_recipient(SUITE, enc, private_key, b"what it is for").open(b"", sealed)
"""

import dataclasses

from pomona.private.sealing import aead, kem
from pomona.private.sealing.aead import Aead, Opener, Sealer
from pomona.private.sealing.errors import SealingError
from pomona.private.sealing.hkdf import HASH_BYTES, labeled_expand, labeled_extract
from pomona.private.sealing.kem import Kem, PrivateKey

HKDF_SHA256 = 0x0001
LEAST_PSK_BYTES = 32
MODE_BASE, MODE_PSK = 0x00, 0x01


@dataclasses.dataclass(frozen=True)
class Suite:
    """A KEM and an AEAD; the KDF is HKDF-SHA256."""

    kem: Kem
    aead: Aead


def suite_of(kem_id: int, kdf_id: int, aead_id: int) -> Suite:
    """The suite of three identifiers (RFC 9180, section 7).

    Raises:
        SealingError: one of them is not among those that this room has.
    """
    if kem_id not in kem.KEMS or kdf_id != HKDF_SHA256 or aead_id not in aead.AEADS:
        raise SealingError(
            f"The HPKE suite {kem_id:#06x}, {kdf_id:#06x}, {aead_id:#06x} is not supported: "
            "KEM 0x0010 or 0x0020, KDF 0x0001, AEAD 0x0001 to 0x0003."
        )
    return Suite(kem.KEMS[kem_id], aead.AEADS[aead_id])


def suite_ids(suite: Suite) -> bytes:
    """The three identifiers, as 6 bytes."""
    return b"".join(each.to_bytes(2, "big") for each in (suite.kem.id, HKDF_SHA256, suite.aead.id))


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What the key schedule gives (RFC 9180, section 5.1). All of it is secret."""

    suite: Suite
    key: bytes = dataclasses.field(repr=False)
    base_nonce: bytes = dataclasses.field(repr=False)
    exporter_secret: bytes = dataclasses.field(repr=False)


class SenderContext:
    """Seals messages to one recipient, in order, and exports secrets that both then have."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._sealer = Sealer(schedule.suite.aead, schedule.key, schedule.base_nonce)

    def seal(self, aad: bytes, plaintext: bytes) -> bytes:
        """The next message: 16 bytes longer than its plaintext (RFC 9180, section 5.2).

        Raises:
            SealingError: 2^96 - 1 messages were sealed, or this one is longer than 2^31 - 17 bytes.
        """
        return self._sealer.seal(aad, plaintext)

    def export(self, exporter_context: bytes, length: int) -> bytes:
        """A secret of `length` bytes (RFC 9180, section 5.3).

        Raises:
            SealingError: more than 8160 bytes are asked for.
        """
        return _export(self._schedule, exporter_context, length)


class RecipientContext:
    """Opens messages of one sender, in order, and exports secrets that both then have."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._opener = Opener(schedule.suite.aead, schedule.key, schedule.base_nonce)

    def open(self, aad: bytes, sealed: bytes) -> bytes:
        """The plaintext of the next message (RFC 9180, section 5.2). One that does not open is not counted.

        Raises:
            SealingError: it is not the next message of the sender, or its associated data differ.
        """
        return self._opener.open(aad, sealed)

    def export(self, exporter_context: bytes, length: int) -> bytes:
        """A secret of `length` bytes (RFC 9180, section 5.3).

        Raises:
            SealingError: more than 8160 bytes are asked for.
        """
        return _export(self._schedule, exporter_context, length)


def setup_sender(
    suite: Suite, public_key: bytes, info: bytes, psk: bytes = b"", psk_id: bytes = b""
) -> tuple[bytes, SenderContext]:
    """The encapsulated key (32 or 65 bytes) and the sender's context: SetupBaseS, and with a pre-shared key SetupPSKS.

    The pre-shared key has 32 bytes or more, and a name (RFC 9180, sections 5.1.1 and 5.1.2).

    Raises:
        SealingError: the public key is not one of the suite; or the pre-shared key is shorter, or has no name.
    """
    shared_secret, enc = kem.encapsulate(suite.kem, public_key)
    return enc, SenderContext(key_schedule(suite, shared_secret, info, psk, psk_id))


def setup_recipient(
    suite: Suite, enc: bytes, private_key: PrivateKey, info: bytes, psk: bytes = b"", psk_id: bytes = b""
) -> RecipientContext:
    """The recipient's context: SetupBaseR, and with a pre-shared key SetupPSKR (RFC 9180, sections 5.1.1 and 5.1.2).

    What the key's own `diffie_hellman` raises comes through.

    Raises:
        SealingError: the encapsulated key is not one of the suite; or the pre-shared key is short, or has no name.
    """
    return RecipientContext(key_schedule(suite, kem.decapsulate(suite.kem, enc, private_key), info, psk, psk_id))


def key_schedule(suite: Suite, shared_secret: bytes, info: bytes, psk: bytes, psk_id: bytes) -> Schedule:
    """KeySchedule of RFC 9180, section 5.1: the mode is PSK where there is a pre-shared key, and base otherwise.

    Raises:
        SealingError: the pre-shared key has fewer than 32 bytes or no name, or there is a name alone.
    """
    if bool(psk) != bool(psk_id):
        raise SealingError("A pre-shared key and its name come together, or neither does (RFC 9180, 5.1).")
    if psk and len(psk) < LEAST_PSK_BYTES:
        raise SealingError(f"A pre-shared key has {len(psk)} bytes: 32 at least (RFC 9180, 5.1.2).")
    suite_id = b"HPKE" + suite_ids(suite)
    context = bytes([MODE_PSK if psk else MODE_BASE])
    context += labeled_extract(suite_id, b"", b"psk_id_hash", psk_id)
    context += labeled_extract(suite_id, b"", b"info_hash", info)
    secret = labeled_extract(suite_id, shared_secret, b"secret", psk)
    return Schedule(
        suite,
        labeled_expand(suite_id, secret, b"key", context, suite.aead.key_bytes),
        labeled_expand(suite_id, secret, b"base_nonce", context, aead.NONCE_BYTES),
        labeled_expand(suite_id, secret, b"exp", context, HASH_BYTES),
    )


def _export(schedule: Schedule, exporter_context: bytes, length: int) -> bytes:
    suite_id = b"HPKE" + suite_ids(schedule.suite)
    return labeled_expand(suite_id, schedule.exporter_secret, b"sec", exporter_context, length)
