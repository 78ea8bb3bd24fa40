"""How a machine comes into the log: its TPM proves that the key it attests with is in the TPM that a maker vouches for.

The enroller encrypts a secret to the TPM's endorsement key, bound to the attestation key's name; only the TPM that
holds both gives it back. Once, by whoever may write `machine` leaves; after that the log is believed.
"""

import secrets
from collections.abc import Sequence

import httpx2
import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from pomona.core.errors import UserError
from pomona.private.evidence.errors import AttestationError
from pomona.private.evidence.tpm.commands import flush_context
from pomona.private.evidence.tpm.credential import Credential, make_credential
from pomona.private.evidence.tpm.keys import endorsement_certificate, endorsement_key, open_credential
from pomona.private.evidence.tpm.structures import EccPublic, Public, name_of, pack_public, point_bytes, read_public
from pomona.private.evidence.tpm.templates import ATTESTATION_KEY, ENDORSEMENT_CERTIFICATE_ECC, ENDORSEMENT_KEY_ECC
from pomona.private.evidence.tpm.wire import whole
from pomona.private.roles.node_keys import Attester
from pomona.private.transparency.leaves import Machine

MACHINE_PATH, CREDENTIAL_PATH = "/machine", "/credential"


class Introduction(msgspec.Struct):
    """What a machine says of its TPM."""

    endorsement: bytes
    """TPMT_PUBLIC of the endorsement key, like `attestation` of the other."""
    attestation: bytes
    certificate: bytes
    """Of the endorsement key, in DER; empty where its maker put none into the TPM."""


class Challenge(msgspec.Struct):
    """What only that TPM can open."""

    blob: bytes
    encrypted_seed: bytes


def introduce(attester: Attester) -> Introduction:
    """The machine's half: who it is."""
    endorsement = endorsement_key(attester.tpm, ENDORSEMENT_KEY_ECC)
    flush_context(attester.tpm, endorsement.handle)
    certificate = endorsement_certificate(attester.tpm, ENDORSEMENT_CERTIFICATE_ECC) or b""
    return Introduction(pack_public(endorsement.public), pack_public(attester.key.public), certificate)


def open_challenge(attester: Attester, challenge: Challenge) -> bytes:
    """The machine's half: the secret.

    Raises:
        TpmError: it is for another TPM, or another key.
    """
    endorsement = endorsement_key(attester.tpm, ENDORSEMENT_KEY_ECC)
    try:
        return open_credential(
            attester.tpm, endorsement, attester.key, Credential(challenge.blob, challenge.encrypted_seed)
        )
    finally:
        flush_context(attester.tpm, endorsement.handle)


def enrol(address: str, makers: Sequence[bytes] | None, enroller: str, now: float, seconds: int) -> Machine:
    """The enroller's half: asks a node's machine, and returns the leaf that enrols it.

    Args:
        makers: certificates in PEM of those who certify endorsement keys; None believes any TPM, as is right for an
            emulator alone.
        seconds: how long the leaf counts.

    Raises:
        UserError: the machine does not answer, has no TPM, or does not prove what it says.
    """
    try:
        told = msgspec.json.decode(_asked(httpx2.get(address + MACHINE_PATH, timeout=60)), type=Introduction)
        endorsement = whole(told.endorsement, read_public, "the endorsement key")
        attestation = whole(told.attestation, read_public, "the attestation key")
        if attestation.attributes != ATTESTATION_KEY.attributes:
            raise AttestationError("its attestation key may sign more than what its TPM wrote, or leave it.")
        if makers is not None:
            _check_certificate(told.certificate, endorsement, makers, now)
        secret, name = secrets.token_bytes(32), name_of(attestation)
        made = make_credential(endorsement, name, secret, secrets.token_bytes(32))
        content = msgspec.json.encode(Challenge(made.blob, made.encrypted_seed))
        answer = _asked(httpx2.post(address + CREDENTIAL_PATH, content=content, timeout=60))
        if not secrets.compare_digest(answer, secret):
            raise AttestationError("the TPM did not give the secret back.")
    except (httpx2.HTTPError, msgspec.MsgspecError, RecursionError, AttestationError, ValueError) as error:
        raise UserError(
            f"the machine at {address} cannot be enrolled: {error}",
            "its TPM proves that one maker's TPM holds the key that it attests with.",
            "a node that runs with --tpm, and --maker with its TPM's maker's certificate",
        ) from error
    return Machine(not_before=int(now), expires=int(now) + seconds, key_name=name.hex(), enrolled_by=enroller)


def _asked(answer: httpx2.Response) -> bytes:
    if answer.status_code != 200:
        raise AttestationError(f"it answers {answer.status_code}: {answer.text.strip()[:200]}")
    return answer.content


def _check_certificate(certificate: bytes, endorsement: Public, makers: Sequence[bytes], now: float) -> None:
    if not certificate:
        raise AttestationError("its TPM holds no certificate of a maker.")
    read = x509.load_der_x509_certificate(certificate)
    if not read.not_valid_before_utc.timestamp() <= now <= read.not_valid_after_utc.timestamp():
        raise AttestationError("its TPM's certificate has expired.")
    if not any(_issued(read, x509.load_pem_x509_certificate(maker)) for maker in makers):
        raise AttestationError("none of these makers certified its TPM.")
    point = read.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    if not isinstance(endorsement, EccPublic) or point != point_bytes(endorsement):
        raise AttestationError("its TPM's certificate is of another endorsement key.")


def _issued(certificate: x509.Certificate, maker: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(maker)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
