"""RFC 9577 and RFC 9578: their vectors, strict parsing, keys, and every token that is not taken."""

import dataclasses
import hashlib

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.private.tokens import blind_rsa
from pomona.private.tokens.errors import TokenError
from pomona.private.tokens.issuance import PendingBatch, finish_token, prepare_token
from pomona.private.tokens.privacy_pass import (
    IssuerKey,
    Token,
    TokenChallenge,
    TokenRequest,
    authenticator_input,
    challenge_digest,
    decode_challenge,
    decode_request,
    decode_response,
    decode_token,
    decode_token_key,
    encode_challenge,
    encode_request,
    encode_token,
    encode_token_key,
    names_origin,
    token_key_id,
    verify_token,
)

DECODERS = {
    decode_challenge: encode_challenge,
    decode_request: encode_request,
    decode_response: lambda response: response.blind_sig,
    decode_token: encode_token,
    decode_token_key: encode_token_key,
}


@pytest.fixture(scope="module")
def valid(issued, key, challenge):
    """Bytes that each decoder takes."""
    return {
        decode_challenge: encode_challenge(challenge),
        decode_request: issued[0][2 : 2 + 259] if len(issued[0]) == 2 + 3 * 259 else None,
        decode_response: issued[1][-256:],
        decode_token: encode_token(issued[2][0]),
        decode_token_key: encode_token_key(key.public_key),
    }


@pytest.mark.parametrize("number", range(5))
def test_vectors_of_rfc_9578(vectors, number):
    file = vectors("rfc9578.json")
    private_key = serialization.load_pem_private_key(bytes.fromhex(file["private_key_pem"]), None)
    vector = {name: bytes.fromhex(value) for name, value in file["vectors"][number].items()}
    public = decode_token_key(bytes.fromhex(file["token_key"]))
    assert public == private_key.public_key() and encode_token_key(public).hex() == file["token_key"]

    challenge = decode_challenge(vector["token_challenge"])
    assert encode_challenge(challenge) == vector["token_challenge"]
    key = IssuerKey(public, 0, 100)
    r = int.from_bytes(vector["blind"])
    request, pending = prepare_token(
        challenge_digest(challenge),
        key,
        nonce=vector["nonce"],
        salt=vector["salt"],
        blind_inverse=pow(r, -1, public.public_numbers().n),
    )
    assert encode_request(request) == vector["token_request"]
    assert decode_request(vector["token_request"]) == request
    assert blind_rsa.blind_sign(private_key, request.blinded_msg) == vector["token_response"]
    batch = PendingBatch(key, challenge_digest(challenge), (pending,))
    token = finish_token(batch, pending, decode_response(vector["token_response"]))
    assert encode_token(token) == vector["token"]
    assert decode_token(vector["token"]) == token
    verify_token(token, challenge, key, 99)


@pytest.mark.parametrize("number", range(5))
def test_structures_of_rfc_9577(vectors, number):
    vector = vectors("rfc9577.json")["structures"][number]
    field = {name: bytes.fromhex(value) for name, value in vector.items()}
    origins = tuple(field["origin_info"].decode().split(",")) if field["origin_info"] else ()
    challenge = TokenChallenge(field["issuer_name"].decode(), field["redemption_context"], origins)
    signed = authenticator_input(field["nonce"], challenge_digest(challenge), field["token_key_id"])
    assert signed == field["token_authenticator_input"]
    assert decode_challenge(encode_challenge(challenge)) == challenge


def test_an_independent_reader_reads_the_key(key):
    content = encode_token_key(key.public_key)
    assert len(content) == 342
    assert serialization.load_der_public_key(content).public_numbers() == key.public_key.public_numbers()
    assert token_key_id(key.public_key) == hashlib.sha256(content).digest()


def test_what_is_no_token_key(key, other_key):
    content = encode_token_key(key.public_key)
    modulus = range(content.index(key.public_key.public_numbers().n.to_bytes(256)), len(content) - 5)
    for at in [*range(modulus.start), *range(modulus.stop, len(content))]:
        with pytest.raises(TokenError):
            decode_token_key(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    for at, bit in ((modulus.start, 0x80), (modulus.stop - 1, 1)):  # shorter than 2048 bits; even
        with pytest.raises(TokenError):
            decode_token_key(content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :])
    pkcs1 = key.public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(TokenError):
        decode_token_key(pkcs1)
    for public in (
        rsa.generate_private_key(65537, 1024).public_key(),
        rsa.RSAPublicNumbers(3, key.public_key.public_numbers().n).public_key(),
    ):
        with pytest.raises(TokenError):
            encode_token_key(public)


@pytest.mark.parametrize("decode", DECODERS, ids=lambda decode: decode.__name__)
def test_each_structure_has_one_length(valid, decode):
    content = valid[decode]
    assert DECODERS[decode](decode(content)) == content
    for wrong in (*(content[:count] for count in range(len(content))), content + b"\0", b"\0" + content):
        with pytest.raises(TokenError):
            decode(wrong)


@pytest.mark.parametrize("decode", [decode_challenge, decode_request, decode_token], ids=lambda one: one.__name__)
@pytest.mark.parametrize("kind", [b"\0\0", b"\0\1", b"\0\3", b"\2\0"])
def test_other_token_types_are_refused(valid, decode, kind):
    with pytest.raises(TokenError, match="type 0x0002"):
        decode(kind + valid[decode][2:])


@pytest.mark.parametrize("decode", DECODERS, ids=lambda decode: decode.__name__)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_bytes_are_refused_or_come_back(valid, decode, data):
    content = bytearray(valid[decode])
    if data.draw(st.booleans()):
        content = bytearray(data.draw(st.binary(max_size=400)))
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=3)):
        if at < len(content):
            content[at] = value
    try:
        found = decode(bytes(content))
    except TokenError:
        return
    assert DECODERS[decode](found) == content


NAMES = ["", "a b", "a,b", "user@host", "höst", "host:", "host:0", "host:123456", "-", "[::1", "a\n", "a\0", "a" * 300]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_server_name(name):
    with pytest.raises(TokenError):
        TokenChallenge(name)
    with pytest.raises(TokenError):
        TokenChallenge("issuer.example", b"", ("gateway.example", name))
    content = (2).to_bytes(2) + len(name.encode()).to_bytes(2) + name.encode() + bytes(3)
    with pytest.raises(TokenError):
        decode_challenge(content)


@pytest.mark.parametrize("name", ["a", "a.b-c.example", "127.0.0.1:8443", "[::1]:443", "issuer.example:65535"])
def test_what_is_a_server_name(name):
    challenge = TokenChallenge(name, bytes(32), (name, "b.example"))
    assert decode_challenge(encode_challenge(challenge)) == challenge


@pytest.mark.parametrize("length", [1, 31, 33, 255])
def test_a_context_is_empty_or_of_32_bytes(length):
    with pytest.raises(TokenError, match="context"):
        TokenChallenge("issuer.example", bytes(length))
    content = encode_challenge(TokenChallenge("issuer.example"))
    with pytest.raises(TokenError, match="context"):
        decode_challenge(content[:18] + bytes([length]) + bytes(length) + bytes(2))


def test_the_names_of_servers_fit_their_length():
    most = ("a" * 200,) * 326  # with commas 65525 characters
    assert decode_challenge(encode_challenge(TokenChallenge("i", b"", most))).origin_info == most
    with pytest.raises(TokenError, match="65535"):
        TokenChallenge("i", b"", (*most, "a" * 200))


def test_which_server_a_challenge_is_for(challenge):
    assert names_origin(challenge, "Gateway.Example") and names_origin(challenge, "gateway.example:8443")
    assert not names_origin(challenge, "gateway.example:444") and not names_origin(challenge, "example")
    assert names_origin(TokenChallenge("issuer.example"), "anything.example")


def test_a_good_token_is_taken_until_its_key_expires(token, challenge, key):
    verify_token(token, challenge, key, key.expires - 1)
    for now in (key.expires, key.expires + 1e9):
        with pytest.raises(TokenError, match="expired"):
            verify_token(token, challenge, key, now)


def test_a_token_of_another_key(token, challenge, key, other_key, now):
    with pytest.raises(TokenError, match="another key"):
        verify_token(token, challenge, other_key, now)
    forged = dataclasses.replace(token, token_key_id=token_key_id(other_key.public_key))
    with pytest.raises(TokenError, match="signature"):
        verify_token(forged, challenge, other_key, now)


def test_a_token_for_another_challenge(token, challenge, key, now):
    for other in (
        dataclasses.replace(challenge, issuer_name="other.example"),
        dataclasses.replace(challenge, redemption_context=bytes(32)),
        dataclasses.replace(challenge, redemption_context=b""),
        dataclasses.replace(challenge, origin_info=challenge.origin_info[:1]),
    ):
        with pytest.raises(TokenError, match="another challenge"):
            verify_token(token, other, key, now)
        forged = dataclasses.replace(token, challenge_digest=challenge_digest(other))
        with pytest.raises(TokenError, match="signature"):
            verify_token(forged, other, key, now)


@settings(max_examples=40, deadline=None)
@given(at=st.integers(0, 353), bit=st.integers(0, 7))
def test_no_altered_token_is_taken(token, challenge, key, now, at, bit):
    content = bytearray(encode_token(token))
    content[at] ^= 1 << bit
    with pytest.raises(TokenError):
        verify_token(decode_token(bytes(content)), challenge, key, now)


def test_what_is_printed_spends_nothing(token, issued):
    request = decode_request(issued[0][2:261])
    for text in (repr(token), str(token), repr([token])):
        assert token.nonce.hex() not in text and repr(token.nonce)[2:20] not in text
        assert token.authenticator.hex() not in text and repr(token.authenticator)[2:20] not in text
    assert repr(request) == f"TokenRequest(truncated_token_key_id={request.truncated_token_key_id})"
    assert repr(decode_response(issued[1][-256:])) == "TokenResponse()"


def test_errors_tell_no_secrets(token, challenge, key, now):
    altered = Token(bytes(32), token.challenge_digest, token.token_key_id, token.authenticator)
    with pytest.raises(TokenError) as caught:
        verify_token(altered, challenge, key, now)
    assert str(caught.value) == "The token's signature is wrong."
    with pytest.raises(TokenError) as caught:
        decode_request(encode_request(TokenRequest(1, b"\x41" * 255)))
    assert "AAA" not in str(caught.value)
