"""Batches: the draft's vectors, their limits, lengths in as few bytes as they need, and any bytes at all."""

import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.private.tokens import blind_rsa
from pomona.private.tokens.batches import (
    MOST_BATCH_BYTES,
    MOST_TOKENS,
    decode_batch_request,
    decode_batch_response,
    encode_batch_request,
    encode_batch_response,
)
from pomona.private.tokens.errors import TokenError
from pomona.private.tokens.issuance import PendingBatch, finish_batch, prepare_token
from pomona.private.tokens.presentation import Reader, read_variable_length, variable_length
from pomona.private.tokens.privacy_pass import (
    IssuerKey,
    TokenRequest,
    TokenResponse,
    challenge_digest,
    decode_challenge,
    decode_token_key,
    encode_token,
)

REQUEST = TokenRequest(7, bytes(range(256)))
RESPONSE = TokenResponse(bytes(range(256)))


@pytest.mark.parametrize("number", range(2))
def test_vectors_of_the_draft(vectors, number):
    file = vectors("rfc9578.json")
    private_key = serialization.load_pem_private_key(bytes.fromhex(file["private_key_pem"]), None)
    key = IssuerKey(decode_token_key(bytes.fromhex(file["token_key"])), 0, 100)
    vector = vectors("generic_batch.json")["vectors"][number]
    made, expected = [], []
    for one in vector["issuance"]:
        field = {name: bytes.fromhex(value) for name, value in one.items()}
        inverse = pow(int.from_bytes(field["blind"]), -1, key.public_key.public_numbers().n)
        digest = challenge_digest(decode_challenge(field["token_challenge"]))
        request, pending = prepare_token(digest, key, nonce=field["nonce"], salt=field["salt"], blind_inverse=inverse)
        made.append((request, PendingBatch(key, digest, (pending,))))
        expected.append(field["token"])
    assert len(made) == number + 1
    assert encode_batch_request([request for request, _ in made]).hex() == vector["token_request"]
    assert decode_batch_request(bytes.fromhex(vector["token_request"])) == [request for request, _ in made]
    answers = [TokenResponse(blind_rsa.blind_sign(private_key, request.blinded_msg)) for request, _ in made]
    assert encode_batch_response(answers).hex() == vector["token_response"]
    assert decode_batch_response(bytes.fromhex(vector["token_response"])) == answers
    tokens = [finish_batch(batch, encode_batch_response([one])) for (_, batch), one in zip(made, answers)]
    assert [[encode_token(token) for token in one] for one in tokens] == [[one] for one in expected]


@pytest.mark.parametrize(
    ("value", "content"),  # RFC 9000, appendix A.1, and the limits of each length
    [
        (37, "25"),
        (15293, "7bbd"),
        (494878333, "9d7f3e7d"),
        (151288809941952652, "c2197c5eff14e88c"),
        (0, "00"),
        (63, "3f"),
        (64, "4040"),
        (16383, "7fff"),
        (16384, "80004000"),
        (2**30 - 1, "bfffffff"),
        (2**30, "c000000040000000"),
        (2**62 - 1, "ffffffffffffffff"),
    ],
)
def test_lengths_of_rfc_9000(value, content):
    assert variable_length(value).hex() == content
    assert read_variable_length(Reader("", bytes.fromhex(content))) == value


@pytest.mark.parametrize("content", ["4025", "403f", "80000025", "80003fff", "c000000000000025", "c00000003fffffff"])
def test_lengths_take_as_few_bytes_as_they_need(content):
    with pytest.raises(TokenError, match="fewer"):
        read_variable_length(Reader("", bytes.fromhex(content)))


def test_a_batch_has_1_to_1000_tokens():
    most = encode_batch_request([REQUEST] * MOST_TOKENS)
    assert len(most) == MOST_BATCH_BYTES == 259_004
    assert decode_batch_request(most) == [REQUEST] * MOST_TOKENS
    answers = encode_batch_response([RESPONSE] * MOST_TOKENS)
    assert len(answers) == MOST_BATCH_BYTES and decode_batch_response(answers) == [RESPONSE] * MOST_TOKENS
    assert decode_batch_response(encode_batch_response([None] * MOST_TOKENS)) == [None] * MOST_TOKENS
    for count in (0, MOST_TOKENS + 1):
        with pytest.raises(TokenError, match="1 to 1000"):
            encode_batch_request([REQUEST] * count)
        with pytest.raises(TokenError, match="1 to 1000"):
            encode_batch_response([None] * count)
        content = most[4 : 4 + 259] * count
        with pytest.raises(TokenError, match="1 to 1000"):
            decode_batch_request(variable_length(len(content)) + content)
        with pytest.raises(TokenError, match="1 to 1000"):
            decode_batch_response(variable_length(count) + bytes(count))


def test_a_length_is_no_promise():
    for claimed in (260, 2**30, 2**62 - 1):
        for decode in (decode_batch_request, decode_batch_response):
            with pytest.raises(TokenError):
                decode(variable_length(claimed) + b"\x00" * 259)


def test_what_is_no_batch():
    request, response = encode_batch_request([REQUEST] * 2), encode_batch_response([RESPONSE, None, RESPONSE])
    for decode, content in ((decode_batch_request, request), (decode_batch_response, response)):
        for wrong in (*(content[:count] for count in range(len(content))), content + b"\0"):
            with pytest.raises(TokenError):
                decode(wrong)
    for at, value in ((2, 1), (3, 1), (2 + 259, 1), (3 + 259, 5)):  # other token types
        with pytest.raises(TokenError, match="type"):
            decode_batch_request(request[:at] + bytes([value]) + request[at + 1 :])
    for at, value in ((2, 2), (2, 255), (2 + 259, 2)):  # neither there nor not there
        with pytest.raises(TokenError, match="neither"):
            decode_batch_response(response[:at] + bytes([value]) + response[at + 1 :])
    for at in (3, 4):
        with pytest.raises(TokenError, match="type"):
            decode_batch_response(response[:at] + b"\x01" + response[at + 1 :])
    short = request[2:-1]  # a request that lacks its last byte, under a right length
    with pytest.raises(TokenError):
        decode_batch_request(variable_length(len(short)) + short)


@pytest.mark.parametrize(
    ("decode", "encode", "valid"),
    [
        (decode_batch_request, encode_batch_request, encode_batch_request([REQUEST] * 2)),
        (decode_batch_response, encode_batch_response, encode_batch_response([RESPONSE, None, None])),
    ],
    ids=["request", "response"],
)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_bytes_are_refused_or_come_back(decode, encode, valid, data):
    content = bytearray(data.draw(st.sampled_from([valid, b"\x01\x00", b"\x03\x00\x00\x00"]) | st.binary(max_size=300)))
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, 550), st.integers(0, 255)), max_size=3)):
        if at < len(content):
            content[at] = value
    try:
        found = decode(bytes(content))
    except TokenError:
        return
    assert encode(found) == content
