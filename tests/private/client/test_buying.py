"""Tokens are bought under a key that everybody sees in the log, or not at all."""

import base64

import httpx2
import pytest
from made_cloud import ACCOUNT, CONTENT, DAY, NOW, STRANGERS_KEY, issuer_leaf

from pomona.private.client import buying
from pomona.private.client.buying import OutOfTokens, Purse
from pomona.private.client.reading import Unreachable
from pomona.private.tokens.batches import BATCH_RESPONSE_MEDIA_TYPE
from pomona.private.tokens.errors import TokenError
from pomona.private.tokens.privacy_pass import challenge_digest, encode_token_key, token_key_id
from pomona.private.transparency.leaves import Revocation, encode, hash_of


def kept_tokens(cloud):
    """How many tokens the client has on its disk."""
    purse = Purse(cloud.trust, cloud.state)
    try:
        return purse._wallet.count(challenge_digest(purse.challenge), cloud.now)
    finally:
        purse.close()


def bought_nothing(cloud, ask, kind, words):
    pieces, error = ask(cloud)
    assert pieces == [] and type(error) is kind and words in str(error), error
    assert not cloud.tokens and not cloud.envelopes, "no request went out"
    assert kept_tokens(cloud) == 0


def test_a_batch_is_bought_and_spent_one_by_one(cloud, ask):
    for left in (1, 0, 1):
        assert ask(cloud) == (list(CONTENT), None)
        assert kept_tokens(cloud) == left
    assert cloud.hosts().count("issuer.test") == 2
    assert len(set(cloud.tokens)) == 3


LEAVES = {
    "none": [],
    "of another issuer": [issuer_leaf(issuer="else.test")],
    "of yesterday": [issuer_leaf(not_before=(NOW // DAY - 1) * DAY)],
    "of tomorrow": [issuer_leaf(not_before=(NOW // DAY + 1) * DAY)],
    "expired": [issuer_leaf(expires=NOW)],
    "revoked": [
        issuer_leaf(),
        Revocation(not_before=NOW - 1, expires=NOW + 1, leaf=hash_of(issuer_leaf()).hex(), reason="lost"),
    ],
}


@pytest.mark.parametrize("leaves", LEAVES.values(), ids=LEAVES)
def test_nothing_is_bought_under_a_key_that_is_not_in_the_log(new_cloud, ask, leaves):
    """The issuer would have one key for each client otherwise, and know its tokens again."""
    new_cloud.log.append([encode(leaf) for leaf in leaves], new_cloud.now)
    new_cloud.publish(new_cloud.issuer_leaf)
    bought_nothing(new_cloud, ask, Unreachable, "no key of the issuer issuer.test that signs today")
    assert "issuer.test" not in new_cloud.hosts()


def test_signatures_of_another_key_are_no_tokens(cloud, ask):
    cloud.answer_issuer = lambda body: cloud.sign(body, STRANGERS_KEY)
    bought_nothing(cloud, ask, TokenError, "")


def test_one_wrong_signature_spoils_the_batch(cloud, ask):
    """An issuer could mark a client by the tokens that it signs otherwise."""
    honest = cloud.answer_issuer

    def one_wrong(body):
        content = honest(body).content
        changed = content[:-1] + bytes([content[-1] ^ 1])
        return httpx2.Response(200, content=changed, headers={"content-type": BATCH_RESPONSE_MEDIA_TYPE})

    cloud.answer_issuer = one_wrong
    bought_nothing(cloud, ask, TokenError, "")


def of(content):
    return lambda body: httpx2.Response(200, content=content, headers={"content-type": BATCH_RESPONSE_MEDIA_TYPE})


def fails(body):
    raise httpx2.ReadTimeout("too slow")


ANSWERS = {
    "nothing": (of(b""), TokenError, "cut short"),
    "rubbish": (of(b"\xff" * 600), TokenError, ""),
    "a length without content": (of(b"\x7f\xff"), TokenError, "cut short"),
    "no token at all": (of(b"\x02\0\0"), TokenError, "without a token"),
    "one token for two": (of(b"\x01\0"), TokenError, "batch of 2 was answered with 1"),
    "HTML": (lambda body: httpx2.Response(200, html="<html>"), Unreachable, "the issuer answers 200"),
    "an error": (lambda body: httpx2.Response(500), Unreachable, "the issuer answers 500"),
    "elsewhere": (lambda body: httpx2.Response(307, headers={"location": "https://e"}), Unreachable, "answers 307"),
    "no such account": (lambda body: httpx2.Response(401, content=b"no key"), OutOfTokens, "no key"),
    "nothing left": (lambda body: httpx2.Response(429, content=b"tomorrow"), OutOfTokens, "tomorrow"),
    "no answer": (fails, Unreachable, "does not answer: ReadTimeout"),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_issuer_that_answers_something_else_sells_nothing(cloud, ask, answer):
    cloud.answer_issuer, kind, words = ANSWERS[answer]
    bought_nothing(cloud, ask, kind, words)


def test_the_issuer_sees_the_account_and_never_a_token(cloud, ask):
    assert ask(cloud) == (list(CONTENT), None)
    (bought,) = [body for host, _, body in cloud.asked if host == "issuer.test"]
    token = cloud.tokens[0]
    assert token.nonce not in bought and token.authenticator not in bought
    relayed = b"".join(body for host, _, body in cloud.asked if host == "relay.test")
    assert ACCOUNT.encode() not in relayed and token.nonce not in relayed


def test_a_key_that_is_not_the_leafs_own_is_no_leaf(new_cloud):
    """A leaf's key and its identifier belong together: the log takes no other."""
    public = STRANGERS_KEY.public_key()
    with pytest.raises(Exception, match="id is the SHA-256 of the key"):
        encode(issuer_leaf(token_key=base64.b64encode(encode_token_key(public)).decode()))
    assert token_key_id(public).hex() != issuer_leaf().token_key_id


def test_tokens_do_not_outlive_their_key(cloud, ask):
    assert ask(cloud) == (list(CONTENT), None)
    assert kept_tokens(cloud) == buying.BATCH - 1
    cloud.now = issuer_leaf().expires
    assert kept_tokens(cloud) == 0
