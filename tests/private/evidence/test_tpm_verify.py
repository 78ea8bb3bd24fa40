"""The verifier: genuine evidence passes, and each check refuses, alone, what it is there to refuse."""

import dataclasses
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from pomona.private.evidence.errors import AttestationError
from pomona.private.evidence.tpm.client import Tpm
from pomona.private.evidence.tpm.evidence import TpmEvidence, read_evidence
from pomona.private.evidence.tpm.structures import (
    DECRYPT,
    FIXED_PARENT,
    FIXED_TPM,
    RESTRICTED,
    SENSITIVE_DATA_ORIGIN,
    SIGN,
    USER_WITH_AUTH,
    CertifyInfo,
    CreationInfo,
    QuoteInfo,
    name_of,
    qualified_name,
)
from pomona.private.evidence.tpm.transport import ReplayTransport
from pomona.private.evidence.tpm.verify import CHECKS, facts_of, verify
from pomona.private.evidence.tpm.wire import ALG_ECDH, ALG_ECDSA, ALG_NULL, RH_ENDORSEMENT, RH_OWNER, Bank

replace = dataclasses.replace


def refusing(evidence, expected):
    """The names of the checks that refuse, each run alone; none may raise anything else."""
    parts, found = read_evidence(evidence), set()
    for check in CHECKS:
        try:
            check(parts, expected)
        except AttestationError as error:
            assert str(error).endswith(".") and str(error).count(". ") == 0, "one sentence"
            found.add(check.__name__.removeprefix("check_"))
    return found


def test_consistent_evidence_passes(software):
    evidence = software.evidence()
    assert refusing(evidence, software.expected) == set()
    facts = verify(evidence, software.expected)
    assert len(facts.key_public_bytes) == 65 and facts.hierarchy == RH_ENDORSEMENT
    assert (facts.quoted.clock.clock_milliseconds, facts.certified.clock.clock_milliseconds) == (5000, 4000)
    assert (facts.quoted.clock.reset_count, facts.quoted.clock.restart_count, facts.quoted.clock.safe) == (3, 1, True)
    assert facts.quoted.firmware_version == 7


def attested(**changes):
    return lambda attest: replace(attest, attested=replace(attest.attested, **changes))


def with_flags(on=0, off=0):
    return lambda public: replace(public, attributes=public.attributes & ~off | on)


def of_type(kind):
    info = {"quote": QuoteInfo((), b""), "creation": CreationInfo(b"", b""), "certify": CertifyInfo(b"", b"")}[kind]
    return lambda attest: replace(attest, attested=info)


ZEROS, OTHER = bytes(32), hashlib.sha256(b"other").digest()
POINT = ec.derive_private_key(77, ec.SECP256R1()).public_key().public_numbers()
NAME = "attestation_key_name"
ATTRIBUTES, ALGORITHM = {NAME, "attestation_key_attributes"}, {NAME, "attestation_key_algorithm"}
SIGNATURES = {"quote_signature", "certification_signature"}
"""Another attestation key has another name; what it signs is consistent with it."""

# What is changed in evidence that is consistent otherwise, and which checks, no more and no fewer, refuse it then.
CHANGES = [
    ("ak is not restricted", {"attester": with_flags(off=RESTRICTED)}, ATTRIBUTES),
    ("ak does not sign", {"attester": with_flags(off=SIGN)}, ATTRIBUTES),
    ("ak may leave its TPM", {"attester": with_flags(off=FIXED_TPM)}, ATTRIBUTES),
    (
        "ak may leave its parent",
        {"attester": with_flags(off=FIXED_PARENT)},
        ATTRIBUTES,
    ),
    (
        "ak from outside",
        {"attester": with_flags(off=SENSITIVE_DATA_ORIGIN)},
        ATTRIBUTES,
    ),
    ("ak decrypts", {"attester": with_flags(on=DECRYPT)}, ATTRIBUTES),
    ("ak without password", {"attester": with_flags(off=USER_WITH_AUTH)}, {NAME}),
    (
        "ak of any scheme",
        {"attester": lambda p: replace(p, scheme=ALG_NULL)},
        ALGORITHM,
    ),
    ("ak for ecdh", {"attester": lambda p: replace(p, scheme=ALG_ECDH)}, ALGORITHM),
    ("ak with aes", {"attester": lambda p: replace(p, aes_bits=128)}, ALGORITHM),
    (
        "ak is no point",
        {"attester": lambda p: replace(p, x=ZEROS)},
        ALGORITHM | SIGNATURES,
    ),
    (
        "ak is another point",
        {"attester": lambda p: replace(p, x=POINT.x.to_bytes(32, "big"), y=POINT.y.to_bytes(32, "big"))},
        {NAME} | SIGNATURES,
    ),
    ("quote's magic", {"quote": lambda a: replace(a, magic=0xFF544346)}, {"quote_magic"}),
    ("quote is a creation", {"quote": of_type("creation")}, {"quote_type", "quote_selection", "quote_registers"}),
    ("quote is a certification", {"quote": of_type("certify")}, {"quote_type", "quote_selection", "quote_registers"}),
    ("quote for another", {"quote": lambda a: replace(a, extra_data=OTHER)}, {"quote_data"}),
    ("quote for nothing", {"quote": lambda a: replace(a, extra_data=b"")}, {"quote_data"}),
    ("quote's data cut", {"quote": lambda a: replace(a, extra_data=a.extra_data[:-1])}, {"quote_data"}),
    ("quote's signer", {"quote": lambda a: replace(a, qualified_signer=b"\0\x0b" + OTHER)}, {"quote_signer"}),
    ("quote without signer", {"quote": lambda a: replace(a, qualified_signer=b"")}, {"quote_signer"}),
    ("fewer registers", {"quote": attested(selection=(Bank(0x000B, (0, 4, 7)),))}, {"quote_selection"}),
    ("more registers", {"quote": attested(selection=(Bank(0x000B, (0, 4, 7, 11, 12)),))}, {"quote_selection"}),
    ("another bank", {"quote": attested(selection=(Bank(0x0004, (0, 4, 7, 11)),))}, {"quote_selection"}),
    ("two banks", {"quote": attested(selection=(Bank(0x000B, (0, 4, 7, 11)), Bank(4, ())))}, {"quote_selection"}),
    ("no bank", {"quote": attested(selection=())}, {"quote_selection"}),
    ("other values", {"quote": attested(digest=OTHER)}, {"quote_registers"}),
    ("no values", {"quote": attested(digest=b"")}, {"quote_registers"}),
    ("certification's magic", {"certification": lambda a: replace(a, magic=0)}, {"certification_magic"}),
    (
        "certification is a quote",
        {"certification": of_type("quote")},
        {"certification_type", "key_name", "creation_hash"},
    ),
    (
        "certification is of a loaded key",
        {"certification": of_type("certify")},
        {"certification_type", "key_name", "creation_hash"},
    ),
    ("certification for another", {"certification": lambda a: replace(a, extra_data=OTHER)}, {"certification_data"}),
    (
        "certification's signer",
        {"certification": lambda a: replace(a, qualified_signer=b"\0\x0b" + OTHER)},
        {"certification_signer"},
    ),
    ("another key certified", {"certification": attested(name=b"\0\x0b" + OTHER)}, {"key_name"}),
    ("no key certified", {"certification": attested(name=b"")}, {"key_name"}),
    (
        "name of another hash",
        {"certification": lambda a: attested(name=b"\0\x0c" + a.attested.name[2:])(a)},
        {"key_name"},
    ),
    ("another creation", {"certification": attested(creation_hash=OTHER)}, {"creation_hash"}),
    ("made with other registers", {"creation": lambda c: replace(c, registers_digest=OTHER)}, {"creation_registers"}),
    ("made with fewer", {"creation": lambda c: replace(c, selection=(Bank(0x000B, (0,)),))}, {"creation_registers"}),
    ("made with none", {"creation": lambda c: replace(c, selection=(), registers_digest=b"")}, {"creation_registers"}),
    ("key may leave", {"key": with_flags(off=FIXED_TPM | FIXED_PARENT)}, {"key_attributes"}),
    ("key's parent may change", {"key": with_flags(off=FIXED_PARENT)}, {"key_attributes"}),
    ("key from outside", {"key": with_flags(off=SENSITIVE_DATA_ORIGIN)}, {"key_attributes"}),
    ("key with a password", {"key": with_flags(on=USER_WITH_AUTH)}, {"key_attributes"}),
    ("key with an administrator's password", {"key": with_flags(off=1 << 7)}, {"key_attributes"}),
    ("key signs", {"key": with_flags(on=SIGN)}, {"key_attributes"}),
    ("key does not decrypt", {"key": with_flags(off=DECRYPT)}, {"key_attributes"}),
    ("key is restricted", {"key": with_flags(on=RESTRICTED)}, {"key_attributes"}),
    ("key may be locked out", {"key": with_flags(off=1 << 10)}, {"key_attributes"}),
    ("key of any scheme", {"key": lambda p: replace(p, scheme=ALG_NULL)}, {"key_algorithm"}),
    ("key for signatures", {"key": lambda p: replace(p, scheme=ALG_ECDSA)}, {"key_algorithm"}),
    ("key with aes", {"key": lambda p: replace(p, aes_bits=128)}, {"key_algorithm"}),
    ("key is no point", {"key": lambda p: replace(p, y=ZEROS)}, {"key_algorithm"}),
    ("key is empty", {"key": lambda p: replace(p, x=b"", y=b"")}, {"key_algorithm"}),
    ("key under another policy", {"key": lambda p: replace(p, auth_policy=OTHER)}, {"key_policy"}),
    ("key under no policy", {"key": lambda p: replace(p, auth_policy=b"")}, {"key_policy"}),
]


@pytest.mark.parametrize("changes, refused", [each[1:] for each in CHANGES], ids=[each[0] for each in CHANGES])
def test_a_change_is_refused_by_its_check_alone(software, changes, refused):
    evidence = software.evidence(**changes)
    assert refusing(evidence, software.expected) == refused
    with pytest.raises(AttestationError):
        verify(evidence, software.expected)


def test_every_check_has_a_change_that_it_refuses():
    refused = set().union(*(each[2] for each in CHANGES))
    assert refused == {check.__name__.removeprefix("check_") for check in CHECKS}
    alone = {next(iter(each[2])) for each in CHANGES if len(each[2]) == 1}
    # These come only with others: the type with what the type holds, the attestation key's with its name, signatures
    # with the key (and alone in the tests below).
    assert refused - alone == {
        "quote_type",
        "certification_type",
        "attestation_key_attributes",
        "attestation_key_algorithm",
        "quote_signature",
        "certification_signature",
    }


@pytest.mark.parametrize("signed", ["quote", "certification"])
def test_only_the_attestation_keys_signature_counts(software, signed):
    evidence, signature = software.evidence(), f"{signed}_signature"
    packed = getattr(evidence, signature)
    for at in (6, len(packed) - 1):  # the last bytes of r, or of the head, and of s
        changed = packed[:at] + bytes([packed[at] ^ 1]) + packed[at + 1 :]
        assert refusing(replace(evidence, **{signature: changed}), software.expected) == {signature}
    for numbers in ("00000000", "0020" + 64 * "0" + "0020" + 64 * "0", "0020" + 64 * "f" + "0020" + 64 * "f"):
        changed = bytes.fromhex("0018000b" + numbers)
        assert refusing(replace(evidence, **{signature: changed}), software.expected) == {signature}
    other = {"quote": "certification", "certification": "quote"}[signed]
    swapped = replace(evidence, **{signature: getattr(evidence, f"{other}_signature")})
    assert refusing(swapped, software.expected) == {signature}
    clock = bytearray(getattr(evidence, signed))
    clock[4 + 2 + 36 + 34 + 7] ^= 1  # the clock, which no other check looks at
    assert refusing(replace(evidence, **{signed: bytes(clock)}), software.expected) == {signature}


def test_what_is_expected_decides(software):
    evidence, expected = software.evidence(), software.expected
    values = {**expected.registers, 11: OTHER}
    over_registers = {"quote_registers", "creation_registers", "key_policy"}
    assert refusing(evidence, replace(expected, registers=values)) == over_registers
    fewer = {register: value for register, value in expected.registers.items() if register != 11}
    assert refusing(evidence, replace(expected, registers=fewer)) == over_registers | {"quote_selection"}
    assert refusing(evidence, replace(expected, quote_data=b"")) == {"quote_data"}
    assert refusing(evidence, replace(expected, certification_data=b"")) == {"certification_data"}
    assert refusing(evidence, replace(expected, attestation_key_name=b"")) == {"attestation_key_name"}
    bad = over_registers | {"quote_selection"}
    for registers in ({}, {16: ZEROS}):
        assert refusing(evidence, replace(expected, registers=registers)) == bad
    assert refusing(evidence, replace(expected, registers={0: b"short"})) == bad


def test_the_owners_hierarchy_is_told_apart(software):
    signer = qualified_name(RH_OWNER, name_of(software.attester))
    in_owners = lambda attest: replace(attest, qualified_signer=signer)
    facts = verify(software.evidence(quote=in_owners, certification=in_owners), software.expected)
    assert facts.hierarchy == RH_OWNER


@pytest.mark.parametrize("part", [field.name for field in dataclasses.fields(TpmEvidence)])
def test_a_part_that_does_not_read_is_refused(software, part):
    evidence = software.evidence()
    packed = getattr(evidence, part)
    for changed in (b"", packed[:-1], packed + b"\0", b"\xff" * len(packed)):
        with pytest.raises(AttestationError):
            verify(replace(evidence, **{part: changed}), software.expected)


def recorded(life, recording):
    run, _ = life
    return run(Tpm(ReplayTransport(recording), lambda count: bytes(range(count))))


def test_recorded_evidence_passes(life, recording):
    found = recorded(life, recording)
    assert refusing(found.evidence, found.expected) == set()
    assert facts_of(read_evidence(found.evidence)) == verify(found.evidence, found.expected)


@pytest.mark.parametrize("part", [field.name for field in dataclasses.fields(TpmEvidence)])
def test_no_byte_of_recorded_evidence_can_be_changed(life, recording, part):
    found = recorded(life, recording)
    packed = getattr(found.evidence, part)
    for at in range(len(packed)):
        changed = packed[:at] + bytes([packed[at] ^ 1]) + packed[at + 1 :]
        with pytest.raises(AttestationError):
            verify(replace(found.evidence, **{part: changed}), found.expected)
