"""Where the relay, the gateway or a node lies or fails, a client says so, and passes on no byte of a lie."""

import asyncio

import httpx2
import pytest
from made_cloud import CONTENT

from pomona.private.client import asking
from pomona.private.client.asking import Refused
from pomona.private.client.oblivious import BrokenOff
from pomona.private.client.proxy import request_of
from pomona.private.client.reading import Unreachable
from pomona.private.sealing.binary_http import encode_content, encode_response_head
from pomona.private.sealing.oblivious_http import CHUNKED_RESPONSE


def test_an_honest_cloud_answers(cloud, ask):
    pieces, error = ask(cloud)
    assert error is None and pieces == list(CONTENT)
    assert [host for host in cloud.hosts() if host != "log.test"] == ["relay.test", "issuer.test", "relay.test"]
    assert not any(b"secret question" in body for _, _, body in cloud.asked)
    assert len(cloud.tokens) == len(cloud.envelopes) == 1


def swapped(pieces, one, other):
    pieces = list(pieces)
    pieces[one], pieces[other] = pieces[other], pieces[one]
    return pieces


def flipped(pieces, number):
    changed = bytes([pieces[number][-1] ^ 1])
    return [*pieces[:number], pieces[number][:-1] + changed, *pieces[number + 1 :]]


# What is done with the pieces of an answer, and how much of its content comes before it is noticed. Piece 0 has the
# head, the last one the end; between them is a piece for each of `CONTENT`.
CHANGES = {
    "cut before its last chunk": (lambda pieces: pieces[:-1], 4),
    "cut in the middle": (lambda pieces: pieces[:3], 2),
    "cut after its head": (lambda pieces: pieces[:1], 0),
    "cut within a chunk": (lambda pieces: [*pieces[:2], pieces[2][:-3]], 1),
    "chunks in another order": (lambda pieces: swapped(pieces, 2, 3), 1),
    "the first chunk late": (lambda pieces: swapped(pieces, 1, 4), 0),
    "the last chunk early": (lambda pieces: swapped(pieces, 4, 5), 3),
    "a chunk dropped": (lambda pieces: [*pieces[:2], *pieces[3:]], 1),
    "a chunk repeated": (lambda pieces: [*pieces[:3], pieces[2], *pieces[3:]], 2),
    "a bit turned": (lambda pieces: flipped(pieces, 3), 2),
    "a bit of the last chunk turned": (lambda pieces: flipped(pieces, 5), 4),
    "bytes put between": (lambda pieces: [*pieces[:2], b"\x20" + bytes(32), *pieces[2:]], 1),
}
AT_THE_END = {
    "bytes after the end": (lambda pieces: [*pieces, b"\0"], 4),
    "its last chunk twice": (lambda pieces: [*pieces, pieces[-1]], 4),
    "another answer after it": (lambda pieces: [*pieces, *pieces], 4),
}


@pytest.mark.parametrize("change", [*CHANGES, *AT_THE_END])
def test_what_a_gateway_changes_of_an_answer_ends_it(cloud, ask, change):
    """What came before is the node's own; nothing of what follows is passed on."""
    cloud.change_answer, genuine = (CHANGES | AT_THE_END)[change]
    pieces, error = ask(cloud)
    assert isinstance(error, BrokenOff) and "the node's answer broke off" in str(error)
    assert b"".join(pieces) == b"".join(CONTENT[:genuine])
    assert len(cloud.envelopes) == 1, "what has begun is not asked again"


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_relay_changes_of_an_answer_ends_it(cloud, ask, change):
    """The gateway's own chunks: its head is one, and each piece of the node's answer."""
    change_pieces, genuine = CHANGES[change]
    # The first two pieces have the heads, of the gateway's answer and of the node's within it.
    cloud.change_stream = lambda stream: [*stream[:2], *change_pieces([b"", *stream[2:]])[1:]]
    pieces, error = ask(cloud)
    assert isinstance(error, BrokenOff) and "through the gateway broke off" in str(error)
    assert b"".join(pieces) == b"".join(CONTENT[:genuine])
    assert len(cloud.envelopes) == 1, "what has begun is not asked again"


@pytest.mark.parametrize("bytes_after", [b"\0", b"more"])
def test_bytes_after_a_gateways_answer_end_it(cloud, ask, bytes_after):
    cloud.change_stream = lambda stream: [*stream, bytes_after]
    pieces, error = ask(cloud)
    assert isinstance(error, BrokenOff) and pieces == list(CONTENT)


def test_a_connection_that_fails_in_the_middle_ends_it(cloud, ask):
    cloud.change_stream = lambda stream: [*stream[:4], httpx2.ReadError("gone")]
    pieces, error = ask(cloud)
    assert isinstance(error, BrokenOff) and "through the gateway broke off" in str(error)
    assert pieces == list(CONTENT[:2])


def test_an_answer_of_a_node_that_was_not_asked_is_refused(cloud, ask):
    def another(pieces):
        asked = {keys.identity for keys in cloud.made if keys.identity in cloud.envelopes[-1]}
        other = next(keys.identity for keys in cloud.made if keys.identity not in asked)
        return [other + pieces[0][32:], *pieces[1:]]

    cloud.change_answer = another
    pieces, error = ask(cloud)
    assert pieces == [] and isinstance(error, BrokenOff) and "a node that was not asked" in str(error)


def test_an_answer_in_the_name_of_another_node_that_was_asked_is_refused(cloud, ask):
    def another(pieces):
        asked = [keys.identity for keys in cloud.made if keys.identity in cloud.envelopes[-1]]
        other = next(identity for identity in asked if identity != pieces[0][:32])
        return [other + pieces[0][32:], *pieces[1:]]

    cloud.change_answer = another
    pieces, error = ask(cloud)
    assert pieces == [] and isinstance(error, BrokenOff)


def test_the_answer_to_another_request_is_refused(cloud, ask):
    kept = []

    def first_again(pieces):
        kept.append(pieces)
        return kept[0]

    cloud.change_answer = first_again
    assert ask(cloud) == (list(CONTENT), None)
    pieces, error = ask(cloud)
    assert pieces == [] and isinstance(error, BrokenOff)


@pytest.mark.parametrize("parts", [[b""], [b"\xff" * 9], [encode_content(b"a")], [encode_response_head(200, ())[:2]]])
def test_what_a_node_seals_has_to_be_a_response(cloud, ask, parts):
    answer = cloud.answer_node
    cloud.answer_node = lambda envelope: answer(envelope, parts)
    pieces, error = ask(cloud)
    assert pieces == [] and isinstance(error, BrokenOff)


def test_a_node_that_ends_its_response_too_soon_is_noticed(cloud, ask):
    """The last chunk is there, and what it ends is not whole."""
    answer = cloud.answer_node
    whole = encode_content(b"a" * 100)
    cloud.answer_node = lambda envelope: answer(envelope, [encode_response_head(200, ()), whole[:-9]])
    pieces, error = ask(cloud)
    assert isinstance(error, BrokenOff) and b"a" * 100 not in b"".join(pieces)


RUBBISH = {
    "HTML": lambda body: httpx2.Response(200, html="<html>Welcome to this network</html>"),
    "HTML under the right type": lambda body: httpx2.Response(
        200, content=b"<html>Welcome</html>" * 9, headers={"content-type": CHUNKED_RESPONSE}
    ),
    "nothing": lambda body: httpx2.Response(200, headers={"content-type": CHUNKED_RESPONSE}),
    "its own request": lambda body: httpx2.Response(200, content=body, headers={"content-type": CHUNKED_RESPONSE}),
    "elsewhere": lambda body: httpx2.Response(302, headers={"location": "https://else.test"}),
    "an error": lambda body: httpx2.Response(500, content=b"broken"),
}


def fails(body):
    raise httpx2.ConnectError("nobody there")


@pytest.mark.parametrize("answer", [*RUBBISH.values(), fails], ids=[*RUBBISH, "no connection"])
@pytest.mark.parametrize("when", ["at once", "after the bundles"])
def test_a_relay_that_answers_something_else_is_not_believed(cloud, ask, answer, when):
    honest, calls = cloud.answer_relay, []

    def relay(body):
        calls.append(body)
        return honest(body) if when != "at once" and len(calls) == 1 else answer(body)

    cloud.answer_relay = relay
    pieces, error = ask(cloud)
    assert pieces == [] and isinstance(error, Unreachable)
    assert "issuer.test" not in cloud.hosts() or when != "at once", "nothing is bought for nothing"


def test_the_right_bytes_under_another_media_type_are_not_read(cloud, ask):
    honest = cloud.answer_relay

    def named_otherwise(body):
        answer = honest(body)
        answer.headers["content-type"] = "text/html"
        return answer

    cloud.answer_relay = named_otherwise
    pieces, error = ask(cloud)
    assert pieces == [] and isinstance(error, Unreachable) and "the relay answers 200" in str(error)


def test_a_relay_that_fails_is_asked_again_with_the_same_token_and_the_same_bytes(cloud, ask):
    honest, calls = cloud.answer_relay, []

    def relay(body):
        calls.append(body)
        answer = honest(body)
        return fails(body) if len(calls) in (2, 3) else answer

    cloud.answer_relay = relay
    assert ask(cloud) == (list(CONTENT), None)
    assert len(cloud.tokens) == 3 and len(set(cloud.tokens)) == len(set(cloud.envelopes)) == 1
    assert len(set(calls)) == 4, "nobody between sees that they are the same"


def test_a_cloud_that_is_busy_is_asked_again_with_the_same_token_and_the_same_bytes(cloud, ask):
    cloud.statuses += [503, 503]
    assert ask(cloud) == (list(CONTENT), None)
    assert len(cloud.tokens) == len(cloud.envelopes) == 3
    assert len(set(cloud.tokens)) == len(set(cloud.envelopes)) == 1


def test_a_cloud_that_stays_busy_is_left_alone(cloud, ask):
    cloud.statuses += [503] * 9
    pieces, error = ask(cloud)
    assert pieces == [] and isinstance(error, Refused) and error.status == 503 and len(cloud.tokens) == asking.TRIES


def test_a_token_that_was_spent_is_followed_by_another(cloud, ask):
    cloud.statuses.append(401)
    assert ask(cloud) == (list(CONTENT), None)
    assert len(cloud.tokens) == len(set(cloud.tokens)) == 2 and len(set(cloud.envelopes)) == 1


def test_a_gateway_that_takes_no_token_does_not_get_all_of_them(cloud, ask):
    cloud.statuses += [401] * 9
    pieces, error = ask(cloud)
    assert pieces == [] and isinstance(error, Refused) and error.status == 401
    assert len(cloud.tokens) == len(set(cloud.tokens)) == asking.TRIES
    assert cloud.hosts().count("issuer.test") <= 2


@pytest.mark.parametrize("status", [400, 404, 413, 429, 500])
def test_a_refusal_is_not_argued_with(cloud, ask, status):
    cloud.statuses.append(status)
    pieces, error = ask(cloud)
    assert pieces == [] and isinstance(error, Refused) and error.status == status and "not now" in str(error)
    assert len(cloud.tokens) == 1


def test_no_two_requests_have_anything_in_common(cloud, ask):
    async def twice():
        async with cloud.asker() as asker:
            for _ in range(2):
                async with asker.ask(request_of("/v1/completions", b"the same"), "model") as answer:
                    assert await answer.whole() == b"".join(CONTENT)

    asyncio.run(twice())
    one, other = cloud.envelopes
    assert len(set(cloud.tokens)) == 2 and len(one) == len(other)
    assert one[-64:] != other[-64:]
