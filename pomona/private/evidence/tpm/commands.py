"""A TPM's commands that make keys, use them under a policy and attest with them.

A command is a function with the name it has in Part 3 of the Library specification; the section is Part 3's.
"""

import dataclasses
from collections.abc import Iterable

from pomona.private.evidence.errors import AttestationError
from pomona.private.evidence.tpm.client import Tpm, nothing, read_digest
from pomona.private.evidence.tpm.registers import selection_of
from pomona.private.evidence.tpm.structures import (
    COORDINATE_BYTES,
    EccPublic,
    EcdsaSignature,
    Public,
    Ticket,
    name_of,
    pack_public,
    pack_ticket,
    read_ecc_public,
    read_point,
    read_public,
    read_signature,
    read_ticket,
)
from pomona.private.evidence.tpm.wire import (
    ALG_NULL,
    ALG_SHA256,
    CC,
    MOST_BYTES,
    MOST_DATA_BYTES,
    MOST_DIGEST_BYTES,
    RH_ENDORSEMENT,
    RH_NULL,
    RS_PASSWORD,
    SHA256_BYTES,
    ST_AUTH_SECRET,
    Command,
    Reader,
    number,
    pack_selection,
    sized,
    whole,
)

NONCE_BYTES = 32
SE_POLICY = 0x01
"""The kind of a policy session (Part 2, section 6.11)."""
NO_SENSITIVE = sized(sized(b"") + sized(b""))
"""TPM2B_SENSITIVE_CREATE of a key that has no password and is made by the TPM itself (Part 2, section 11.1.16)."""
KEYS_OWN_SCHEME = number(ALG_NULL, 2)
"""TPMT_SIG_SCHEME that leaves the scheme to the key, which has one (Part 2, section 11.2.1.5)."""


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A key in the TPM: its handle, its public area, its name of 34 bytes."""

    handle: int
    public: Public
    name: bytes


@dataclasses.dataclass(frozen=True)
class Created:
    """A key as TPM2_Create gives it. `private` is encrypted by its parent: only this TPM can load it."""

    private: bytes
    public: EccPublic
    creation_data: bytes
    creation_hash: bytes
    ticket: Ticket


@dataclasses.dataclass(frozen=True)
class Signed:
    """A TPMS_ATTEST as signed, and its signature."""

    attest: bytes
    signature: EcdsaSignature


# --- keys ----------------------------------------------------------------------------------------------------------


def create_primary(tpm: Tpm, hierarchy: int, template: Public) -> Loaded:
    """TPM2_CreatePrimary, section 24.1: the key that this template names in this hierarchy, always the same one until
    the hierarchy's seed is replaced.

    Raises:
        TpmError: the TPM refused, or has no room for another key.
    """

    def read(reader: Reader) -> Loaded:
        handle, public = reader.number(4), _sized_public(reader)
        reader.sized(MOST_BYTES)
        reader.sized(MOST_DIGEST_BYTES)
        read_ticket(reader)
        return _named(handle, public, reader)

    parameters = NO_SENSITIVE + sized(pack_public(template)) + sized(b"") + pack_selection(())
    return tpm.execute(Command(CC["CreatePrimary"], (hierarchy,), (RS_PASSWORD,), parameters, True), read)


def create(tpm: Tpm, parent: int, template: EccPublic, registers: Iterable[int]) -> Created:
    """TPM2_Create, section 12.1: a new random key under a storage key; its creation data note these registers.

    Raises:
        TpmError: the TPM refused.
        AttestationError: the registers are none that can be measured.
    """

    def read(reader: Reader) -> Created:
        private = reader.sized(MOST_BYTES)
        public = whole(reader.sized(MOST_BYTES), read_ecc_public, reader.what)
        return Created(private, public, reader.sized(MOST_BYTES), reader.sized(MOST_DIGEST_BYTES), read_ticket(reader))

    parameters = NO_SENSITIVE + sized(pack_public(template)) + sized(b"") + pack_selection(selection_of(registers))
    return tpm.execute(Command(CC["Create"], (parent,), (RS_PASSWORD,), parameters), read)


def load(tpm: Tpm, parent: int, created: Created) -> Loaded:
    """TPM2_Load, section 12.2.

    Raises:
        TpmError: the key is of another TPM or parent, or there is no room for another key.
    """

    def read(reader: Reader) -> Loaded:
        return _named(reader.number(4), created.public, reader)

    parameters = sized(created.private) + sized(pack_public(created.public))
    return tpm.execute(Command(CC["Load"], (parent,), (RS_PASSWORD,), parameters, True), read)


def read_loaded(tpm: Tpm, handle: int) -> tuple[Loaded, bytes]:
    """TPM2_ReadPublic, section 12.4: a loaded key, and its qualified name, 34 bytes.

    Raises:
        TpmError: there is no such key, or it is of a kind that is not used here.
    """

    def read(reader: Reader) -> tuple[Loaded, bytes]:
        return _named(handle, _sized_public(reader), reader), reader.sized(MOST_DATA_BYTES)

    return tpm.execute(Command(CC["ReadPublic"], (handle,)), read)


def flush_context(tpm: Tpm, handle: int) -> None:
    """TPM2_FlushContext, section 28.4: forgets a loaded key or a session.

    Raises:
        TpmError: there is none with this handle.
    """
    tpm.execute(Command(CC["FlushContext"], parameters=number(handle, 4)), nothing)


def _sized_public(reader: Reader) -> Public:
    return whole(reader.sized(MOST_BYTES), read_public, reader.what)


def _named(handle: int, public: Public, reader: Reader) -> Loaded:
    """What the TPM says the name is must be what it is: attestations speak of names alone."""
    name = reader.sized(MOST_DATA_BYTES)
    if name != name_of(public):
        raise AttestationError(f"{reader.what} gives a name that is not the hash of the public area.")
    return Loaded(handle, public, name)


# --- policy sessions and what they authorise -----------------------------------------------------------------------


def start_policy_session(tpm: Tpm) -> int:
    """TPM2_StartAuthSession, section 11.1: the handle of a policy session with SHA-256, neither salted nor bound.

    Raises:
        TpmError: there is no room for another session.
    """

    def read(reader: Reader) -> int:
        handle = reader.number(4)
        reader.sized(MOST_DIGEST_BYTES)
        return handle

    nonce = tpm.random(NONCE_BYTES)
    parameters = sized(nonce) + sized(b"") + number(SE_POLICY, 1) + number(ALG_NULL, 2) + number(ALG_SHA256, 2)
    return tpm.execute(Command(CC["StartAuthSession"], (RH_NULL, RH_NULL), (), parameters, True), read)


def policy_pcr(tpm: Tpm, session: int, registers: Iterable[int]) -> None:
    """TPM2_PolicyPCR, section 23.7: takes what the registers hold now into the session's policy.

    Raises:
        TpmError: registers changed since the session took them before.
        AttestationError: the registers are none that can be measured.
    """
    parameters = sized(b"") + pack_selection(selection_of(registers))
    tpm.execute(Command(CC["PolicyPCR"], (session,), (), parameters), nothing)


def policy_secret(tpm: Tpm, session: int, handle: int = RH_ENDORSEMENT) -> None:
    """TPM2_PolicySecret, section 23.4: proves to know the password of `handle`, which is the empty one.

    Raises:
        TpmError: it has another password.
    """

    def read(reader: Reader) -> bool:
        reader.sized(MOST_DIGEST_BYTES)
        read_ticket(reader, ST_AUTH_SECRET)
        return True

    parameters = sized(b"") * 3 + number(0, 4)
    tpm.execute(Command(CC["PolicySecret"], (handle, session), (RS_PASSWORD,), parameters), read)


def policy_get_digest(tpm: Tpm, session: int) -> bytes:
    """TPM2_PolicyGetDigest, section 23.19: the session's policy so far, 32 bytes.

    Raises:
        TpmError: there is no such session.
    """
    return tpm.execute(Command(CC["PolicyGetDigest"], (session,)), read_digest)


def ecdh_zgen(tpm: Tpm, key: int, session: int, peer: bytes) -> bytes:
    """TPM2_ECDH_ZGen, section 14.5: the x coordinate, 32 bytes, of the peer's point, 65 bytes, times the key. Ends the
    session.

    Raises:
        TpmError: the session's policy is not the key's, or the point is not on the curve.
    """

    def read(reader: Reader) -> bytes:
        x, _ = whole(reader.sized(MOST_BYTES), read_point, reader.what)
        return x.rjust(COORDINATE_BYTES, b"\0")

    x, y = peer[1 : 1 + COORDINATE_BYTES], peer[1 + COORDINATE_BYTES :]
    parameters = sized(sized(x) + sized(y))
    return tpm.execute(Command(CC["ECDH_ZGen"], (key,), (session,), parameters), read)


def activate_credential(tpm: Tpm, key: int, endorsement: int, session: int, blob: bytes, secret: bytes) -> bytes:
    """TPM2_ActivateCredential, section 12.5: the credential, 32 bytes at most, that was encrypted for this key on this
    TPM. `session` is a policy session that fulfils the endorsement key's policy; it ends.

    Raises:
        TpmError: it was made for another key or TPM, or the policy is not fulfilled.
    """
    parameters = sized(blob) + sized(secret)
    command = Command(CC["ActivateCredential"], (key, endorsement), (RS_PASSWORD, session), parameters)
    return tpm.execute(command, lambda r: r.sized(SHA256_BYTES))


# --- attestations --------------------------------------------------------------------------------------------------


def certify_creation(tpm: Tpm, signer: int, key: Loaded, created: Created, qualifying_data: bytes) -> Signed:
    """TPM2_CertifyCreation, section 18.3: the attestation key's word that this TPM made this key. `qualifying_data`, 64
    bytes at most, is signed along.

    Raises:
        TpmError: the TPM refused; the ticket is not for this key.
    """
    parameters = sized(qualifying_data) + sized(created.creation_hash) + KEYS_OWN_SCHEME + pack_ticket(created.ticket)
    command = Command(CC["CertifyCreation"], (signer, key.handle), (RS_PASSWORD,), parameters)
    return tpm.execute(command, _read_signed)


def quote(tpm: Tpm, signer: int, registers: Iterable[int], qualifying_data: bytes) -> Signed:
    """TPM2_Quote, section 18.4: the attestation key's word for what the registers hold. `qualifying_data`, 64 bytes at
    most, is signed along.

    Raises:
        TpmError: the TPM refused.
        AttestationError: the registers are none that can be measured.
    """
    parameters = sized(qualifying_data) + KEYS_OWN_SCHEME + pack_selection(selection_of(registers))
    return tpm.execute(Command(CC["Quote"], (signer,), (RS_PASSWORD,), parameters), _read_signed)


def _read_signed(reader: Reader) -> Signed:
    return Signed(reader.sized(MOST_BYTES), read_signature(reader))
