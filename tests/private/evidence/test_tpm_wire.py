"""The wire format: known bytes, round trips, and that nothing else than `AttestationError` comes of any bytes."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.private.evidence.errors import AttestationError
from pomona.private.evidence.tpm.errors import name_of_code, refused
from pomona.private.evidence.tpm.structures import (
    KNOWN_ATTRIBUTES,
    Attest,
    CertifyInfo,
    ClockInfo,
    CreationData,
    CreationInfo,
    EccPublic,
    EcdsaSignature,
    QuoteInfo,
    RsaPublic,
    Ticket,
    pack_attest,
    pack_creation_data,
    pack_public,
    pack_signature,
    pack_ticket,
    point_bytes,
    read_attest,
    read_creation_data,
    read_ecc_public,
    read_public,
    read_signature,
    read_ticket,
)
from pomona.private.evidence.tpm.templates import (
    ATTESTATION_KEY,
    ENDORSEMENT_KEY_ECC,
    ENDORSEMENT_KEY_RSA,
    ENDORSEMENT_POLICY,
    REGISTER_KEY_ATTRIBUTES,
    STORAGE_KEY,
)
from pomona.private.evidence.tpm.wire import (
    ALG_ECDH,
    ALG_ECDSA,
    ALG_NULL,
    RS_PASSWORD,
    ST_CREATION,
    Bank,
    Command,
    pack_command,
    pack_selection,
    read_response,
    read_selection,
    response_size,
    sized,
    whole,
)

few = settings(max_examples=40, deadline=None)


def upto(size):
    return st.binary(max_size=size)


def numbers(size):
    return st.integers(0, 2 ** (8 * size) - 1)


registers = st.sets(st.integers(0, 23)).map(lambda found: tuple(sorted(found)))
selections = st.lists(st.builds(Bank, numbers(2), registers), max_size=16).map(tuple)
attributes = numbers(4).map(lambda found: found & KNOWN_ATTRIBUTES)
aes = st.sampled_from([0, 128, 256])
schemes = st.sampled_from([ALG_NULL, ALG_ECDSA, ALG_ECDH])
ecc = st.builds(EccPublic, attributes, upto(32), aes, schemes, upto(32), upto(32))
publics = ecc | st.builds(RsaPublic, attributes, upto(32), aes, upto(256))
clocks = st.builds(ClockInfo, numbers(8), numbers(4), numbers(4), st.booleans())
attested = (
    st.builds(QuoteInfo, selections, upto(64))
    | st.builds(CreationInfo, upto(66), upto(64))
    | st.builds(CertifyInfo, upto(66), upto(66))
)
attests = st.builds(Attest, numbers(4), upto(66), upto(66), clocks, numbers(8), attested)
data = st.builds(CreationData, selections, upto(64), numbers(1), numbers(2), upto(66), upto(66), upto(66))
STRUCTURES = {
    "public": (publics, pack_public, read_public),
    "elliptic public": (ecc, pack_public, read_ecc_public),
    "attest": (attests, pack_attest, read_attest),
    "signature": (st.builds(EcdsaSignature, upto(32), upto(32)), pack_signature, read_signature),
    "creation data": (data, pack_creation_data, read_creation_data),
    "ticket": (st.builds(Ticket, st.just(ST_CREATION), numbers(4), upto(64)), pack_ticket, read_ticket),
    "selection": (selections, pack_selection, read_selection),
}
each_structure = pytest.mark.parametrize("name", STRUCTURES)


@each_structure
@few
@given(st.data())
def test_a_structure_reads_as_it_was_packed(name, data):
    strategy, pack, read = STRUCTURES[name]
    structure = data.draw(strategy)
    packed = pack(structure)
    assert whole(packed, read, name) == structure
    cut = data.draw(st.integers(0, len(packed) - 1))
    with pytest.raises(AttestationError):
        whole(packed[:cut], read, name)
    with pytest.raises(AttestationError, match="belong to nothing"):
        whole(packed + b"\0", read, name)


@each_structure
@few
@given(st.data())
def test_changed_bytes_are_refused_or_pack_to_themselves(name, data):
    """So what was hashed or signed is what was understood: there are no two readings."""
    strategy, pack, read = STRUCTURES[name]
    changed = bytearray(pack(data.draw(strategy)))
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = whole(bytes(changed), read, name)
    except AttestationError:
        return
    assert pack(found) == bytes(changed)


@each_structure
@few
@given(noise=st.binary(max_size=200))
def test_noise_is_refused_or_packs_to_itself(name, noise):
    _, pack, read = STRUCTURES[name]
    try:
        found = whole(noise, read, name)
    except AttestationError:
        return
    assert pack(found) == noise


def test_known_commands():
    assert pack_command(Command(0x144, parameters=b"\0\0")).hex() == "80010000000c000001440000"
    assert pack_command(Command(0x17B, parameters=b"\0\x08")).hex() == "80010000000c0000017b0008"
    extend = pack_command(Command(0x182, (11,), (RS_PASSWORD,), b"p")).hex()
    assert extend == "80020000001c000001820000000b0000000940000009000000000070"


def test_a_selection_has_a_bit_for_each_register():
    packed = pack_selection((Bank(0x000B, (0, 4, 7, 11)), Bank(0x0004, (23,))))
    assert packed.hex() == "00000002000b03910800000403000080"


@pytest.mark.parametrize(
    "packed", ["00000001000b0400000000", "00000001000b020000", "00000011" + 17 * "000b03010000", "ffffffff"]
)
def test_a_selection_of_another_shape_is_refused(packed):
    with pytest.raises(AttestationError):
        whole(bytes.fromhex(packed), read_selection, "it")


def test_what_is_longer_than_a_tpm_takes_is_refused():
    with pytest.raises(AttestationError, match="4096"):
        pack_command(Command(0x158, parameters=bytes(4087)))
    assert len(pack_command(Command(0x158, parameters=bytes(4086)))) == 4096
    with pytest.raises(AttestationError, match="70000"):
        sized(bytes(70000))


def test_the_templates_are_the_published_ones():
    policy = "837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa"
    assert ENDORSEMENT_POLICY.hex() == policy
    # TCG EK Credential Profile: the templates' attributes are 0x000300b2 for both.
    assert ENDORSEMENT_KEY_ECC.attributes == ENDORSEMENT_KEY_RSA.attributes == 0x000300B2
    tail = "0006008000430010" + "0003" + "0010" + "0020" + 32 * "00" + "0020" + 32 * "00"
    assert pack_public(ENDORSEMENT_KEY_ECC).hex() == "0023000b000300b20020" + policy + tail
    tail = "0006008000430010" + "0800" + "00000000" + "0100" + 256 * "00"
    assert pack_public(ENDORSEMENT_KEY_RSA).hex() == "0001000b000300b20020" + policy + tail
    assert STORAGE_KEY.attributes == 0x00030472  # TCG TPM v2.0 Provisioning Guidance, table 3
    assert ATTESTATION_KEY.attributes == 0x00050472
    assert REGISTER_KEY_ATTRIBUTES == 0x000204B2


PUBLIC = pack_public(dataclasses.replace(ENDORSEMENT_KEY_ECC, x=b"\1" * 32, y=b"\2" * 32))


@pytest.mark.parametrize(
    "at, changed, said",
    [
        (0, "0008", "kind of key"),
        (2, "000c", "hash for names"),
        (4, "000300b3", "reserved"),
        (4, "001300b2", "reserved"),
        (8, "0021", "33 bytes"),
        (42, "0007", "symmetric"),
        (44, "00c0", "AES key size"),
        (46, "0044", "mode"),
        (48, "0014", "scheme"),
        (50, "0004", "curve"),
        (52, "0020", "KDF"),
        (54, "0021", "33 bytes"),
    ],
)
def test_a_key_of_another_kind_is_refused(at, changed, said):
    changed = bytes.fromhex(changed)
    with pytest.raises(AttestationError, match=said):
        whole(PUBLIC[:at] + changed + PUBLIC[at + len(changed) :], read_public, "the key")


@pytest.mark.parametrize("at, changed, said", [(48, "0017", "scheme"), (50, "0c00", "size"), (52, "00000003", "exp")])
def test_an_rsa_key_of_another_kind_is_refused(at, changed, said):
    packed, changed = pack_public(ENDORSEMENT_KEY_RSA), bytes.fromhex(changed)
    with pytest.raises(AttestationError, match=said):
        whole(packed[:at] + changed + packed[at + len(changed) :], read_public, "the key")


def test_an_rsa_key_is_no_elliptic_one():
    with pytest.raises(AttestationError, match="RSA"):
        whole(pack_public(ENDORSEMENT_KEY_RSA), read_ecc_public, "the key")


def test_a_point_has_its_leading_zeros():
    public = EccPublic(0, b"", 0, ALG_NULL, b"\7", b"\1" * 32)
    assert point_bytes(public) == b"\4" + bytes(31) + b"\7" + b"\1" * 32


@pytest.mark.parametrize("packed", ["00140000002000000020", "0018000c", "0018000b0021" + 33 * "00"])
def test_another_signature_is_refused(packed):
    with pytest.raises(AttestationError):
        whole(bytes.fromhex(packed), read_signature, "the signature")


def response(tag, body, code=0, size=None):
    return tag.to_bytes(2, "big") + (size or 10 + len(body)).to_bytes(4, "big") + code.to_bytes(4, "big") + body


BARE = Command(0x17B)
PLAIN = Command(0x182, (11,), (RS_PASSWORD,))
MAKER = Command(0x131, (1,), (RS_PASSWORD,), b"", True)
ANSWER = b"\0\0\1\0\0"


def test_responses_as_they_come():
    assert read_response(response(0x8001, b"abc"), BARE) == (0, b"abc")
    assert read_response(response(0x8001, b"", 0x99D), PLAIN) == (0x99D, b"")
    assert read_response(response(0x8002, b"\0\0\0\2xy" + ANSWER), PLAIN) == (0, b"xy")
    assert read_response(response(0x8002, b"hand\0\0\0\2xy" + ANSWER), MAKER) == (0, b"handxy")


@pytest.mark.parametrize(
    "command, answer",
    [
        (BARE, b""),
        (BARE, response(0x8002, b"")),
        (BARE, response(0x8001, b"", size=11)),
        (BARE, response(0x8001, b"ab", size=11)),
        (BARE, response(0x8001, b"left", 0x101)),
        (BARE, response(0x00C4, b"", 0x1E)),
        (PLAIN, response(0x8001, b"\0\0\0\0" + ANSWER)),
        (PLAIN, response(0x8002, b"", 0x99D)),
        (PLAIN, response(0x8002, b"\0\0\0\3xy" + ANSWER)),
        (PLAIN, response(0x8002, b"\xff\xff\xff\xff")),
        (PLAIN, response(0x8002, b"\0\0\0\0" + ANSWER + ANSWER)),
        (PLAIN, response(0x8002, b"\0\0\0\0" + b"\0\x41" + bytes(65) + b"\1\0\0")),
        (MAKER, response(0x8002, b"han")),
    ],
)
def test_other_responses_are_refused(command, answer):
    with pytest.raises(AttestationError):
        read_response(answer, command)


@few
@given(st.sampled_from([BARE, PLAIN, MAKER]), st.binary(max_size=80))
def test_noise_for_a_response_is_refused(command, noise):
    try:
        read_response(noise, command)
    except AttestationError:
        return
    assert int.from_bytes(noise[2:6], "big") == len(noise)


@pytest.mark.parametrize("size", [0, 9, 4097, 2**32 - 1])
def test_a_response_of_another_size_is_refused(size):
    with pytest.raises(AttestationError, match="4096"):
        response_size(b"\x80\1" + size.to_bytes(4, "big") + bytes(4))


def test_codes_in_words():
    assert name_of_code(0x99D) == "a policy check failed (session 1)"
    assert name_of_code(0x1DF) == "an integrity check failed (parameter 1)"
    assert name_of_code(0x18B) == "there is no such handle here (handle 1)"
    assert name_of_code(0x0A7) == "the point is not on the curve"
    assert name_of_code(0x128).startswith("registers have changed")
    assert name_of_code(0xB0902).startswith("no room for another object")  # from the kernel's resource manager
    assert name_of_code(0x17E) == name_of_code(0x083) == "a code that has no name here"
    error = refused("TPM2_Load", 0x99D)
    assert error.code == 0x99D and error.command == "TPM2_Load" and isinstance(error, AttestationError)
    assert str(error) == "TPM2_Load: the TPM answered 0x99d, a policy check failed (session 1)."
