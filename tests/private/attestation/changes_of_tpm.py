"""Rows of the tamper matrix: a TPM's evidence.

Each row: what is changed; the recipe; which clause refuses it, and with what words; which others have to refuse it too,
where some have to.
"""

from bundles import NOW, tpm_made
from changes import (
    CLOCK,
    DATES,
    ON_TPM,
    OTHER,
    OTHER_POINT,
    REGISTERS,
    attested,
    flags,
    flipped,
    measuring,
    replace,
    revoked,
    swapped,
    to,
    without_registers,
)

from pomona.private.evidence.tpm.structures import (
    DECRYPT,
    FIXED_TPM,
    RESTRICTED,
    USER_WITH_AUTH,
    CreationInfo,
    QuoteInfo,
)
from pomona.private.evidence.tpm.wire import ALG_ECDSA, ALG_NULL, Bank
from pomona.private.transparency.leaves import Machine

OF_TPM = [
    ("no machine", replace(ON_TPM, machines=lambda leaves: []), "machine_enrolled", "machine is not enrolled"),
    (
        "a machine whose enrolment has expired",
        replace(ON_TPM, machines=lambda leaves: [to(expires=NOW)(leaves[0])]),
        "machine_enrolled",
        "or no longer",
    ),
    (
        "another machine",
        replace(ON_TPM, machines=lambda leaves: [to(key_name=f"000b{OTHER.hex()}")(leaves[0])]),
        "machine_enrolled",
        "machine is not enrolled",
    ),
    (
        "a revoked machine",
        replace(
            ON_TPM,
            later=revoked(
                Machine(
                    **DATES, key_name=tpm_made.name_of(tpm_made.SoftwareTpm().attester).hex(), enrolled_by="somebody"
                )
            ),
        ),
        "machine_enrolled",
        "or no longer",
    ),
    (
        "a release without registers",
        replace(ON_TPM, release=without_registers),
        "registers_published",
        "names no registers",
        REGISTERS | {"tpm_quote_selection"},
    ),
    (
        "an attestation key that signs anything",
        replace(ON_TPM, parts={"attester": flags(off=RESTRICTED)}),
        "tpm_attestation_key_attributes",
        "it must be restricted",
    ),
    (
        "an attestation key that leaves its TPM",
        replace(ON_TPM, parts={"attester": flags(off=FIXED_TPM)}),
        "tpm_attestation_key_attributes",
        "fixed to its TPM",
    ),
    (
        "an attestation key that decrypts",
        replace(ON_TPM, parts={"attester": flags(on=DECRYPT)}),
        "tpm_attestation_key_attributes",
        "for signing alone",
    ),
    (
        "an attestation key of any scheme",
        replace(ON_TPM, parts={"attester": to(scheme=ALG_NULL)}),
        "tpm_attestation_key_algorithm",
        "ECDSA with SHA-256 alone",
    ),
    (
        "a swapped attestation key",
        replace(ON_TPM, parts={"attester": to(x=OTHER_POINT[1:33], y=OTHER_POINT[33:])}),
        "tpm_quote_signature",
        "the quote must be signed by the attestation key",
        {"tpm_certification_signature"},
    ),
    (
        "a quote changed after it was signed",
        replace(ON_TPM, evidence=flipped("quote", CLOCK)),
        "tpm_quote_signature",
        "the quote must be signed",
    ),
    (
        "swapped signatures",
        replace(ON_TPM, evidence=swapped("quote_signature", "certification_signature")),
        "tpm_quote_signature",
        "the quote must be signed",
        {"tpm_certification_signature"},
    ),
    (
        "a quote that no TPM wrote",
        replace(ON_TPM, parts={"quote": to(magic=0xFF544346)}),
        "tpm_quote_magic",
        "begins with 0xff544346",
    ),
    (
        "a certification for a quote",
        replace(ON_TPM, parts={"quote": to(attested=CreationInfo(b"", b""))}),
        "tpm_quote_type",
        "must be of registers",
        {"tpm_quote_selection", "tpm_quote_registers"},  # there is none to look at
    ),
    (
        "a quote for other claims",
        replace(ON_TPM, parts={"quote": to(extra_data=OTHER)}),
        "tpm_quote_data",
        "the quote was not made for this",
    ),
    (
        "a quote that names another signer",
        replace(ON_TPM, parts={"quote": to(qualified_signer=b"\0\x0b" + OTHER)}),
        "tpm_quote_signer",
        "names another signer",
    ),
    (
        "a quote over fewer registers",
        replace(ON_TPM, parts={"quote": attested(selection=(Bank(0x000B, (0, 4, 7)),))}),
        "tpm_quote_selection",
        "exactly",
    ),
    (
        "a register that was changed before it was quoted",
        replace(ON_TPM, parts={"quote": attested(digest=OTHER)}),
        "tpm_quote_registers",
        "something else was measured",
    ),
    (
        "a release that was measured otherwise",
        replace(ON_TPM, release=measuring(sha256_11="00" * 32)),
        "tpm_quote_registers",
        "something else was measured",
        REGISTERS - {"tpm_quote_registers"},
    ),
    (
        "a release that measures one register more",
        replace(ON_TPM, release=measuring(sha256_9="00" * 32)),
        "tpm_quote_selection",
        "[0, 4, 7, 9, 11]",
        REGISTERS,
    ),
    (
        "a certification changed after it was signed",
        replace(ON_TPM, evidence=flipped("certification", CLOCK)),
        "tpm_certification_signature",
        "the certification must be signed",
    ),
    (
        "a certification that no TPM wrote",
        replace(ON_TPM, parts={"certification": to(magic=0)}),
        "tpm_certification_magic",
        "begins with 0x00000000",
    ),
    (
        "a quote for a certification",
        replace(ON_TPM, parts={"certification": to(attested=QuoteInfo((), b""))}),
        "tpm_certification_type",
        "must be of a key's creation",
        {"tpm_key_name", "tpm_creation_hash"},  # there are none to look at
    ),
    (
        "a certification for other claims",
        replace(ON_TPM, parts={"certification": to(extra_data=OTHER)}),
        "tpm_certification_data",
        "the certification was not made for this",
    ),
    (
        "a certification that names another signer",
        replace(ON_TPM, parts={"certification": to(qualified_signer=b"")}),
        "tpm_certification_signer",
        "names another signer",
    ),
    (
        "another key certified",
        replace(ON_TPM, parts={"certification": attested(name=b"\0\x0b" + OTHER)}),
        "tpm_key_name",
        "another key was certified",
    ),
    (
        "another creation certified",
        replace(ON_TPM, parts={"certification": attested(creation_hash=OTHER)}),
        "tpm_creation_hash",
        "other creation data were certified",
    ),
    (
        "a key made before the registers were what they are",
        replace(ON_TPM, parts={"creation": to(registers_digest=OTHER)}),
        "tpm_creation_registers",
        "must have been made while the registers",
    ),
    (
        "a key with a password",
        replace(ON_TPM, parts={"key": flags(on=USER_WITH_AUTH)}),
        "tpm_key_attributes",
        "the node's key has the attributes",
    ),
    (
        "a key that leaves its TPM",
        replace(ON_TPM, parts={"key": flags(off=FIXED_TPM)}),
        "tpm_key_attributes",
        "the node's key has the attributes",
    ),
    (
        "a key that signs too",
        replace(ON_TPM, parts={"key": to(scheme=ALG_ECDSA)}),
        "tpm_key_algorithm",
        "must be for ECDH alone",
    ),
    (
        "a key that works whatever is measured",
        replace(ON_TPM, parts={"key": to(auth_policy=b"")}),
        "tpm_key_policy",
        "must be bound to the expected values",
    ),
    (
        "a key that works with other registers",
        replace(ON_TPM, parts={"key": to(auth_policy=OTHER)}),
        "tpm_key_policy",
        "must be bound to the expected values",
    ),
    (
        "a swapped key: the claims name one outside of the TPM",
        replace(ON_TPM, claims=to(point=OTHER_POINT)),
        "key_is_the_claimed",
        "another than the claimed",
    ),
    (
        "claims changed after they were signed: another ML-KEM key",
        replace(ON_TPM, bundle=lambda bundle: replace(bundle, claims=to(mlkem=b"\1" * 1184)(bundle.claims))),
        "tpm_quote_data",
        "the quote was not made for this",
        {"tpm_certification_data"},
    ),
]
