"""RFC 9474: its vectors, an independent RSASSA-PSS, every check that refuses, and what hides the key."""

import dataclasses
import math

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.private.tokens import blind_rsa
from pomona.private.tokens.errors import SigningFailure, TokenError

VARIANTS = list(blind_rsa.VARIANTS.values())
NAMES = list(blind_rsa.VARIANTS)
VARIANT = blind_rsa.PSS_DETERMINISTIC


@pytest.fixture(scope="module")
def vector_key(vectors):
    key = {name: int(value, 16) for name, value in vectors("rfc9474.json")["key"].items()}
    p, q, d = key["p"], key["q"], key["d"]
    public = rsa.RSAPublicNumbers(key["e"], key["n"])
    return rsa.RSAPrivateNumbers(p, q, d, d % (p - 1), d % (q - 1), pow(q, -1, p), public).private_key()


def test_the_variants_are_those_of_section_5(vectors):
    assert {(one.name, one.salt_bytes, one.randomized) for one in VARIANTS} == {
        ("RSABSSA-SHA384-PSS-Randomized", 48, True),
        ("RSABSSA-SHA384-PSSZERO-Randomized", 0, True),
        ("RSABSSA-SHA384-PSS-Deterministic", 48, False),
        ("RSABSSA-SHA384-PSSZERO-Deterministic", 0, False),
    }
    assert [one["variant"] for one in vectors("rfc9474.json")["vectors"]] == NAMES


@pytest.mark.parametrize("number", range(4), ids=NAMES)
def test_vectors_of_rfc_9474(vectors, vector_key, number):
    vector = vectors("rfc9474.json")["vectors"][number]
    variant, public = blind_rsa.VARIANTS[vector["variant"]], vector_key.public_key()
    expected = {name: bytes.fromhex(vector[name]) for name in vector if name != "variant"}
    msg = blind_rsa.prepare(variant, expected["msg"], msg_prefix=expected.get("msg_prefix"))
    assert msg == expected["prepared_msg"]
    assert blind_rsa.emsa_pss_encode(msg, 4095, expected["salt"]) == expected["encoded_msg"]
    inverse = int.from_bytes(expected["inv"])
    blinded_msg, kept = blind_rsa.blind(variant, public, msg, salt=expected["salt"], blind_inverse=inverse)
    assert (blinded_msg, kept) == (expected["blinded_msg"], inverse)
    blind_sig = blind_rsa.blind_sign(vector_key, blinded_msg)
    assert blind_sig == expected["blind_sig"]
    assert blind_rsa.finalize(variant, public, msg, blind_sig, inverse) == expected["sig"]


def signed(variant, private_key, message):
    public = private_key.public_key()
    msg = blind_rsa.prepare(variant, message)
    blinded_msg, inverse = blind_rsa.blind(variant, public, msg)
    return msg, blind_rsa.finalize(variant, public, msg, blind_rsa.blind_sign(private_key, blinded_msg), inverse)


def pss(variant):
    return padding.PSS(padding.MGF1(hashes.SHA384()), variant.salt_bytes)


@pytest.mark.parametrize("variant", VARIANTS, ids=NAMES)
@settings(max_examples=4, deadline=None)
@given(message=st.binary(max_size=300))
def test_an_independent_pss_takes_the_signatures(private_key, variant, message):
    msg, signature = signed(variant, private_key, message)
    assert msg[32 * variant.randomized :] == message
    private_key.public_key().verify(signature, msg, pss(variant), hashes.SHA384())
    with pytest.raises(InvalidSignature):
        private_key.public_key().verify(signature, msg + b"x", pss(variant), hashes.SHA384())


@pytest.mark.parametrize("bits", [1024, 1025, 1031, 2056])
def test_a_modulus_of_any_length_is_encoded_right(bits):
    private_key = rsa.generate_private_key(65537, bits)
    assert private_key.key_size == bits
    for variant in VARIANTS:
        msg, signature = signed(variant, private_key, b"message")
        private_key.public_key().verify(signature, msg, pss(variant), hashes.SHA384())


@pytest.mark.parametrize("variant", VARIANTS, ids=NAMES)
def test_signatures_of_an_independent_pss_are_verified(private_key, variant):
    signature = private_key.sign(b"message", pss(variant), hashes.SHA384())
    assert blind_rsa.verify(variant, private_key.public_key(), b"message", signature)


def test_a_wrong_signature_is_not_valid(private_key, other_private_key):
    public = private_key.public_key()
    msg, signature = signed(VARIANT, private_key, b"message")
    assert blind_rsa.verify(VARIANT, public, msg, signature)
    n = public.public_numbers().n
    for altered in (
        bytes([signature[0] ^ 1]) + signature[1:],
        signature[:-1] + bytes([signature[-1] ^ 1]),
        signature[1:],
        b"\0" + signature,
        signature + b"\0",
        b"",
        bytes(256),
        n.to_bytes(256),
        (n - 1).to_bytes(256),
    ):
        assert not blind_rsa.verify(VARIANT, public, msg, altered)
    assert not blind_rsa.verify(VARIANT, public, b"another", signature)
    assert not blind_rsa.verify(VARIANT, other_private_key.public_key(), msg, signature)
    assert not blind_rsa.verify(blind_rsa.PSSZERO_DETERMINISTIC, public, msg, signature)


def test_a_signature_keeps_its_leading_zero(private_key):
    public = private_key.public_key()
    signature = b"\1"
    while signature[0]:
        signature = private_key.sign(b"message", pss(VARIANT), hashes.SHA384())
    assert blind_rsa.verify(VARIANT, public, b"message", signature)
    assert not blind_rsa.verify(VARIANT, public, b"message", signature[1:])


def test_finalize_takes_no_wrong_answer(private_key, other_private_key):
    public = private_key.public_key()
    blinded_msg, inverse = blind_rsa.blind(VARIANT, public, b"message")
    blind_sig = blind_rsa.blind_sign(private_key, blinded_msg)
    for wrong in (blind_rsa.blind_sign(other_private_key, b"\0" + blinded_msg[1:]), blinded_msg, bytes(256)):
        with pytest.raises(TokenError, match="Invalid signature"):
            blind_rsa.finalize(VARIANT, public, b"message", wrong, inverse)
    with pytest.raises(TokenError, match="Invalid signature"):
        blind_rsa.finalize(VARIANT, public, b"message", blind_sig, inverse + 1)
    with pytest.raises(TokenError, match="Invalid signature"):
        blind_rsa.finalize(VARIANT, public, b"another", blind_sig, inverse)
    for wrong in (blind_sig[1:], b"\0" + blind_sig, b""):
        with pytest.raises(TokenError, match="Unexpected input size"):
            blind_rsa.finalize(VARIANT, public, b"message", wrong, inverse)


def test_the_signer_takes_nothing_out_of_range(private_key):
    n = private_key.public_key().public_numbers().n
    for content in (n.to_bytes(256), (n + 1).to_bytes(256), b"\xff" * 256):
        with pytest.raises(TokenError, match="out of range"):
            blind_rsa.blind_sign(private_key, content)
    for content in (b"", bytes(255), bytes(257)):
        with pytest.raises(TokenError, match="Unexpected input size"):
            blind_rsa.blind_sign(private_key, content)
    d = private_key.private_numbers().d
    for content in (0, 1, n - 1):
        assert blind_rsa.blind_sign(private_key, content.to_bytes(256)) == pow(content, d, n).to_bytes(256)


def test_a_wrong_result_does_not_get_out(private_key, monkeypatch):
    numbers = private_key.private_numbers()
    faulty = dataclasses.make_dataclass("Faulty", ["p", "q", "dmp1", "dmq1", "iqmp", "public_numbers"])(
        numbers.p, numbers.q, numbers.dmp1 ^ 1 << 500, numbers.dmq1, numbers.iqmp, numbers.public_numbers
    )
    right = blind_rsa._rsasp1
    content = bytes(200) + bytes(range(1, 57))
    wrong = right(faulty, int.from_bytes(content))
    # Why it must not get out: one such result has a factor of the modulus in it.
    e, n = numbers.public_numbers.e, numbers.public_numbers.n
    assert math.gcd(pow(wrong, e, n) - int.from_bytes(content), n) == numbers.q
    monkeypatch.setattr(blind_rsa, "_rsasp1", lambda _, m: right(faulty, m))
    with pytest.raises(SigningFailure):
        blind_rsa.blind_sign(private_key, content)


def test_blind_refuses_what_shares_a_factor_with_the_modulus(private_key, monkeypatch):
    public, p = private_key.public_key(), private_key.private_numbers().p
    for inverse in (p, 0):
        with pytest.raises(TokenError, match="Blinding error"):
            blind_rsa.blind(VARIANT, public, b"message", blind_inverse=inverse)
    monkeypatch.setattr(blind_rsa, "emsa_pss_encode", lambda *_: (2 * p).to_bytes(256))
    with pytest.raises(TokenError, match="Invalid input"):
        blind_rsa.blind(VARIANT, public, b"message")


def test_what_cannot_be_encoded(private_key):
    for salt in (b"", bytes(47), bytes(49)):
        with pytest.raises(TokenError, match="Encoding error"):
            blind_rsa.blind(VARIANT, private_key.public_key(), b"message", salt=salt)
    assert len(blind_rsa.emsa_pss_encode(b"message", 8 * 98, bytes(48))) == 98
    with pytest.raises(TokenError, match="Encoding error"):
        blind_rsa.emsa_pss_encode(b"message", 8 * 97, bytes(48))


def test_blinds_and_prefixes_are_fresh(private_key):
    public = private_key.public_key()
    blinded = [blind_rsa.blind(blind_rsa.PSSZERO_DETERMINISTIC, public, b"message") for _ in range(20)]
    assert len({one for one, _ in blinded}) == len({inverse for _, inverse in blinded}) == 20
    assert len({blind_rsa.prepare(blind_rsa.PSS_RANDOMIZED, b"message") for _ in range(20)}) == 20
    assert blind_rsa.prepare(VARIANT, b"message") == b"message"


def test_the_signer_hides_base_and_exponents(private_key, monkeypatch):
    numbers, seen = private_key.private_numbers(), []
    secret = {numbers.p: numbers.dmp1, numbers.q: numbers.dmq1}

    def spy(base, exponent, modulus):
        if modulus in secret:
            seen.append((base, exponent, modulus))
        return pow(base, exponent, modulus)

    monkeypatch.setattr(blind_rsa, "pow", spy, raising=False)
    results = {blind_rsa.blind_sign(private_key, (12345).to_bytes(256)) for _ in range(5)}
    assert len(results) == 1 and len(seen) == 10
    assert len({base for base, _, _ in seen}) == len({exponent for _, exponent, _ in seen}) == 10
    for base, exponent, modulus in seen:
        assert base != 12345 and exponent % (modulus - 1) == secret[modulus] and exponent != secret[modulus]
