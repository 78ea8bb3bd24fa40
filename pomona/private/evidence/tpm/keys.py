"""A node's keys in its TPM: the one that attests, the one that opens requests, and the one it is enrolled by.

tpm = Tpm(DeviceTransport())
startup(tpm)
values = pcr_read(tpm, (0, 4, 7, 11))
attester = attestation_key(tpm)
created = create_register_key(tpm, values)
key = load_register_key(tpm, created, values)
certification = certify_creation(tpm, attester.handle, key.loaded, created, certification_data)
quoted = quote(tpm, attester.handle, values, quote_data)
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping

from cryptography.hazmat.primitives.asymmetric import ec

from pomona.private.evidence.errors import AttestationError
from pomona.private.evidence.tpm.client import Tpm, nv_read
from pomona.private.evidence.tpm.commands import (
    Created,
    Loaded,
    activate_credential,
    create,
    create_primary,
    ecdh_zgen,
    flush_context,
    load,
    policy_pcr,
    policy_secret,
    start_policy_session,
)
from pomona.private.evidence.tpm.credential import Credential
from pomona.private.evidence.tpm.errors import TpmError
from pomona.private.evidence.tpm.structures import COORDINATE_BYTES, EccPublic, Public, point_bytes
from pomona.private.evidence.tpm.templates import ATTESTATION_KEY, STORAGE_KEY, register_key
from pomona.private.evidence.tpm.wire import RH_ENDORSEMENT, RH_OWNER

POINT_BYTES = 1 + 2 * COORDINATE_BYTES
NO_SUCH_INDEX = 0x18B
"""TPM_RC_HANDLE for the first handle."""


def attestation_key(tpm: Tpm, hierarchy: int = RH_ENDORSEMENT) -> Loaded:
    """The attestation key: the same one after every restart, until the hierarchy is cleared. In the owner's hierarchy
    the TPM disguises the counters and the firmware version in what it signs.

    Raises:
        TpmError: the hierarchy has a password, or the TPM has no room for another key.
    """
    return create_primary(tpm, hierarchy, ATTESTATION_KEY)


@dataclasses.dataclass(frozen=True)
class RegisterKey:
    """A P-256 key inside the TPM, usable only while the measured registers hold what they held when it was made. It has
    what HPKE's DHKEM(P-256, HKDF-SHA256) needs of a private key (RFC 9180, section 4.1)."""

    tpm: Tpm
    loaded: Loaded
    registers: tuple[int, ...]

    @property
    def public_bytes(self) -> bytes:
        """The public key, uncompressed (SEC 1, section 2.3.3): 65 bytes."""
        assert isinstance(self.loaded.public, EccPublic)
        return point_bytes(self.loaded.public)

    def diffie_hellman(self, peer_public_bytes: bytes) -> bytes:
        """The shared secret with a peer's public key of 65 bytes: the x coordinate, 32 bytes. Three commands.

        Raises:
            TpmError: a measured register has changed (`code` 0x99D, or 0x128 if during the call), or the TPM is gone.
            AttestationError: the peer's bytes are no point of P-256.
        """
        _check_point(peer_public_bytes)
        with self.tpm.lock:
            session = start_policy_session(self.tpm)
            try:
                policy_pcr(self.tpm, session, self.registers)
                return ecdh_zgen(self.tpm, self.loaded.handle, session, peer_public_bytes)
            except BaseException:
                _flush_quietly(self.tpm, session)
                raise

    def close(self) -> None:
        """Takes the key out of the TPM's memory.

        Raises:
            TpmError: it is not there.
        """
        flush_context(self.tpm, self.loaded.handle)


def create_register_key(tpm: Tpm, values: Mapping[int, bytes]) -> Created:
    """A new key for registers with these values, 32 bytes each. Only this TPM can load it, after a restart too.

    Raises:
        TpmError: the TPM refused.
        AttestationError: a value has another size, or the registers are none that can be measured.
    """
    with _storage_key(tpm) as parent:
        return create(tpm, parent, register_key(values), values)


def load_register_key(tpm: Tpm, created: Created, registers: Iterable[int]) -> RegisterKey:
    """Loads a key that `create_register_key` made for these registers. Their values are judged at each use, not here.

    Raises:
        TpmError: the key is of another TPM, or there is no room for another key.
    """
    with _storage_key(tpm) as parent:
        return RegisterKey(tpm, load(tpm, parent, created), tuple(sorted(registers)))


@contextlib.contextmanager
def _storage_key(tpm: Tpm) -> Iterator[int]:
    """The storage key's handle; it does not stay: a TPM has room for three keys at least, and hardly for more."""
    with tpm.lock:
        handle = create_primary(tpm, RH_OWNER, STORAGE_KEY).handle
        try:
            yield handle
        except BaseException:
            _flush_quietly(tpm, handle)
            raise
        flush_context(tpm, handle)


def _flush_quietly(tpm: Tpm, handle: int) -> None:
    """Flushes after an error, which is the one to be told even if this fails too."""
    with contextlib.suppress(TpmError):
        flush_context(tpm, handle)


def _check_point(public_bytes: bytes) -> None:
    """A TPM that forgot to check a point would give its key away bit by bit: so it is checked here first."""
    try:
        if len(public_bytes) != POINT_BYTES:
            raise ValueError("size")
        ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), public_bytes)
    except ValueError as error:
        raise AttestationError(
            f"the peer's {len(public_bytes)} bytes must be {POINT_BYTES}, an uncompressed point of P-256."
        ) from error


# --- enrolment -----------------------------------------------------------------------------------------------------


def endorsement_key(tpm: Tpm, template: Public) -> Loaded:
    """The endorsement key of this template, `ENDORSEMENT_KEY_ECC` or `ENDORSEMENT_KEY_RSA`.

    Raises:
        TpmError: the hierarchy has a password, or the TPM has no room for another key.
    """
    return create_primary(tpm, RH_ENDORSEMENT, template)


def open_credential(tpm: Tpm, endorsement: Loaded, key: Loaded, credential: Credential) -> bytes:
    """What `make_credential` encrypted: whoever has it holds both keys in one TPM.

    Raises:
        TpmError: it was made for another key or another TPM.
    """
    with tpm.lock:
        session = start_policy_session(tpm)
        try:
            policy_secret(tpm, session)
            return activate_credential(
                tpm, key.handle, endorsement.handle, session, credential.blob, credential.encrypted_seed
            )
        except BaseException:
            _flush_quietly(tpm, session)
            raise


def endorsement_certificate(tpm: Tpm, index: int) -> bytes | None:
    """The endorsement key's X.509 certificate (DER) in this index; None where the maker of the TPM put none there.

    Raises:
        TpmError: it cannot be read.
        AttestationError: the index holds no DER sequence.
    """
    try:
        found = nv_read(tpm, index)
    except TpmError as error:
        if error.code == NO_SUCH_INDEX:
            return None
        raise
    # An index may be larger than the certificate in it. No certificate is shorter than 256 bytes: the length has 2.
    size = 4 + int.from_bytes(found[2:4], "big")
    if found[:2] != b"\x30\x82" or size > len(found):
        raise AttestationError(f"the index 0x{index:08x} holds {len(found)} bytes that are no DER certificate.")
    return found[:size]
