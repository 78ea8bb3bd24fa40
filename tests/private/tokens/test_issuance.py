"""From a batch to tokens: what a client takes, and that an issuer cannot tell its tokens apart."""

import dataclasses

import pytest

from pomona.private.tokens import blind_rsa
from pomona.private.tokens.batches import (
    MOST_TOKENS,
    decode_batch_request,
    decode_batch_response,
    encode_batch_response,
)
from pomona.private.tokens.errors import TokenError
from pomona.private.tokens.issuance import finish_batch, prepare_batch
from pomona.private.tokens.privacy_pass import (
    VARIANT,
    TokenResponse,
    authenticator_input,
    challenge_digest,
    encode_token,
    token_key_id,
    verify_token,
)


@pytest.fixture(scope="module")
def batch(challenge, key, sign):
    body, pending = prepare_batch(3, challenge, key)
    return body, pending, sign(body)


def test_a_batch_becomes_tokens(batch, challenge, key, now):
    body, pending, response = batch
    assert {one.truncated_token_key_id for one in decode_batch_request(body)} == {token_key_id(key.public_key)[-1]}
    tokens = finish_batch(pending, response)
    for token in tokens:
        verify_token(token, challenge, key, now)
        assert token.challenge_digest == challenge_digest(challenge)
    assert len({token.nonce for token in tokens}) == 3


def test_an_answer_of_fewer_tokens(batch, challenge, key, now):
    _, pending, response = batch
    answers = decode_batch_response(response)
    tokens = finish_batch(pending, encode_batch_response([None, answers[1], None]))
    assert [token.nonce for token in tokens] == [pending.tokens[1].nonce]
    verify_token(tokens[0], challenge, key, now)
    assert finish_batch(pending, encode_batch_response([None] * 3)) == []


def test_answers_that_are_not_of_the_batch(batch, challenge, key, other_private_key, sign):
    body, pending, response = batch
    answers = decode_batch_response(response)
    for wrong in (answers[:2], [*answers, answers[0]], [None]):
        with pytest.raises(TokenError, match="answered with"):
            finish_batch(pending, encode_batch_response(wrong))
    other_body, _ = prepare_batch(3, challenge, key)
    flipped = TokenResponse(bytes([answers[2].blind_sig[0] ^ 1]) + answers[2].blind_sig[1:])
    for wrong in (
        encode_batch_response(answers[::-1]),
        encode_batch_response([answers[0], answers[0], answers[2]]),
        encode_batch_response([*answers[:2], flipped]),
        sign(other_body),
    ):
        with pytest.raises(TokenError, match="Invalid signature"):
            finish_batch(pending, wrong)
    with pytest.raises(TokenError):
        finish_batch(pending, response[:-1])
    # The other key's modulus may be the smaller one, so that it cannot sign every blinded message: try until it can.
    n = other_private_key.public_key().public_numbers().n
    while any(int.from_bytes(one.blinded_msg) >= n for one in decode_batch_request(body)):
        body, pending = prepare_batch(1, challenge, key)
    with pytest.raises(TokenError, match="Invalid signature"):
        finish_batch(pending, sign(body, other_private_key))


@pytest.mark.parametrize("count", [-1, 0, MOST_TOKENS + 1, 10**12])
def test_batches_of_a_wrong_size(count, challenge, key):
    with pytest.raises(TokenError, match="1 to 1000"):
        prepare_batch(count, challenge, key)


def test_nothing_that_the_issuer_saw_is_in_a_token(issued):
    body, response, tokens = issued
    seen = {content[at : at + 16] for content in (body, response) for at in range(len(content) - 15)}
    for token in tokens:
        content = encode_token(token)
        assert not any(content[at : at + 16] in seen for at in range(len(content) - 15))


def test_every_answer_fits_every_token(issued, key, private_key):
    """What an issuer saw at one request could have become any token: there is a blind that leads from one to the other.

    With nonces and blinds drawn at random, all of these are as likely: it learns nothing by comparing.
    """
    body, response, tokens = issued
    n, e = key.public_key.public_numbers().n, key.public_key.public_numbers().e
    for request, answer in zip(decode_batch_request(body), decode_batch_response(response)):
        for token in tokens:
            signature = int.from_bytes(token.authenticator)
            blind = int.from_bytes(answer.blind_sig) * pow(signature, -1, n) % n
            encoded = pow(signature, e, n)
            assert encoded * pow(blind, e, n) % n == int.from_bytes(request.blinded_msg)
            msg = authenticator_input(token.nonce, token.challenge_digest, token.token_key_id)
            answered = blind_rsa.finalize(VARIANT, key.public_key, msg, answer.blind_sig, pow(blind, -1, n))
            assert answered == token.authenticator


def test_requests_and_tokens_are_fresh(challenge, key):
    bodies, nonces = [], []
    for _ in range(4):
        body, pending = prepare_batch(2, challenge, key)
        bodies += [one.blinded_msg for one in decode_batch_request(body)]
        nonces += [one.nonce for one in pending.tokens]
        assert not any(nonce in body for nonce in nonces)
    assert len(set(bodies)) == len(set(nonces)) == 8


def test_what_is_printed_of_a_batch_unblinds_nothing(batch):
    pending = batch[1]
    text = repr(pending) + repr(pending.tokens)
    for one in pending.tokens:
        assert repr(one) == "PendingToken()"
        assert str(one.inverse)[:20] not in text and repr(one.nonce)[2:20] not in text
    assert {field.name for field in dataclasses.fields(pending) if field.repr} == {"key", "challenge_digest"}
