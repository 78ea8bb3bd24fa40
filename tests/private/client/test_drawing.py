"""Which nodes a client asks: its own draw among all that the log lists, each judged; a gateway can only withhold."""

import asyncio
import base64
import collections
import json
import random

import pytest
from made_cloud import CONTENT, DAY, NOW

from pomona.private.attestation import clauses
from pomona.private.attestation.bundle import identity_of
from pomona.private.client import asking
from pomona.private.client.asking import MOST_BUNDLES, NoSuchModel
from pomona.private.client.oblivious import gateway_key
from pomona.private.client.reading import Unreachable
from pomona.private.sealing.envelope import MOST_NODES, node_identities
from pomona.private.transparency.leaves import Directory, Revocation, encode, hash_of

DRAWS, NODES = 1000, 20
CRITICAL = 43.820
"""Chi-squared with 19 degrees of freedom is above it with probability 0.001."""


def drawn(cloud, times=1, model="model"):
    """The nodes of so many draws of one client, each in its order."""

    async def draws():
        async with cloud.asker() as asker:
            known = await asker.known()
            return [await asker.draw(known, model) for _ in range(times)]

    return asyncio.run(draws())


def identities(draw):
    return [each.identity for each in draw.recipients]


def fails(cloud, kind, words):
    with pytest.raises(kind, match=words):
        drawn(cloud)


# --- the draw is uniform -------------------------------------------------------------------------------------------


def uneven(draws):
    """Two statistics that are each distributed as chi-squared with 19 degrees of freedom where draws are uniform: how
    often each node is in a draw, and how often it comes first.

    Of 8 in 20 without replacement the counts have the variance T p (1 - p), and are correlated by -1/19: hence the
    factor 19/20.
    """
    part = MOST_NODES / NODES
    among = collections.Counter(identity for draw in draws for identity in draw)
    first = collections.Counter(draw[0] for draw in draws)
    assert set(among) | set(first) == set(among) and len(among) == NODES
    spread = sum((count - len(draws) * part) ** 2 for count in among.values())
    spread *= (NODES - 1) / NODES / (len(draws) * part * (1 - part))
    mean = len(draws) / NODES
    absent = (NODES - len(first)) * mean
    return spread, absent + sum((count - mean) ** 2 / mean for count in first.values())


@pytest.fixture
def twenty(new_cloud, monkeypatch):
    """Twenty nodes that need no judging: what is counted is which are drawn."""
    new_cloud.count = NODES
    new_cloud.publish()
    monkeypatch.setattr(asking, "judge", lambda case: None)
    return new_cloud


def test_every_node_is_drawn_as_often_as_every_other(twenty):
    """With the system's own randomness. Where draws are uniform one trial is above the bound with a probability of at
    most 2 in 1,000, by two statistics; three in a row are so with less than 1 in 10^8. Where a node is drawn a quarter
    more often than the others, one trial is above it nearly always.
    """
    trials = []
    while len(trials) < 3 and not (trials and max(trials[-1]) < CRITICAL):
        trials.append(uneven([identities(draw) for draw in drawn(twenty, DRAWS)]))
    assert max(trials[-1]) < CRITICAL, trials


@pytest.mark.parametrize("seed", [1, 2])
def test_the_draw_adds_no_preference_to_the_randomness_that_it_is_given(twenty, monkeypatch, seed):
    """The same from a seed: it passes or fails for ever."""
    source = random.Random(seed)
    monkeypatch.setattr(asking.secrets, "SystemRandom", lambda: source)
    assert max(uneven([identities(draw) for draw in drawn(twenty, DRAWS)])) < CRITICAL


def test_a_draw_that_is_not_uniform_is_noticed(twenty):
    """The statistics notice one favourite, and an order that is always the same."""
    draws = [identities(draw) for draw in drawn(twenty, DRAWS)]
    favourite = draws[0][0]
    biased = [draw if number % 3 or favourite in draw else [favourite, *draw[1:]] for number, draw in enumerate(draws)]
    assert uneven(biased)[0] > CRITICAL
    assert uneven([sorted(draw) for draw in draws])[1] > CRITICAL


def test_the_draw_takes_the_systems_randomness(twenty, monkeypatch):
    random.seed(7)
    one = [identities(draw) for draw in drawn(twenty, 3)]
    random.seed(7)
    assert one != [identities(draw) for draw in drawn(twenty, 3)]


def test_of_many_nodes_eight_are_drawn_and_the_bundles_of_a_few_are_asked_for(twenty):
    asked = []
    honest = twenty.answer_bundles
    twenty.answer_bundles = lambda wanted: asked.append(wanted) or honest(wanted)
    (draw,) = drawn(twenty)
    assert len(draw.recipients) == MOST_NODES == len(set(identities(draw)))
    assert [len(each) for each in asked] == [NODES] and NODES <= MOST_BUNDLES
    drawn_from = [bytes.fromhex(each) for each in asked[0]]
    assert identities(draw) == drawn_from[:MOST_NODES], "which bundles there are does not change the order"


def test_bundles_are_asked_for_some_at_a_time_and_no_more_than_are_needed(cloud, monkeypatch):
    asked = []
    honest = cloud.answer_bundles
    cloud.answer_bundles = lambda wanted: asked.append(wanted) or honest(wanted)
    monkeypatch.setattr(asking, "MOST_BUNDLES", 4)
    (draw,) = drawn(cloud)
    assert [len(each) for each in asked] == [4, 4]
    assert identities(draw) == [bytes.fromhex(each) for some in asked for each in some]


# --- a gateway that lies about nodes -------------------------------------------------------------------------------


def test_a_gateway_that_withholds_bundles_gets_no_request(cloud, ask):
    for content in (
        b"[]",
        b"{}",
        b"null",
        b"not JSON",
        b"[1, 2]",
        b'["!"]',
        b"[" * 100_000,
        b"\xff",
        b'{"a": "b"}',
        b'"a"',
    ):
        cloud.answer_bundles = lambda wanted, content=content: content
        pieces, error = ask(cloud)
        assert pieces == [] and isinstance(error, Unreachable) and not cloud.envelopes, content
    assert "issuer.test" not in cloud.hosts()


@pytest.mark.parametrize("given", range(10))
def test_a_gateway_cannot_choose_a_node_by_withholding_the_others(cloud, given):
    """Half of the bundles may be missing, of nodes that are gone since the log was read."""
    kept = dict(list(cloud.bundles.items())[:given])
    cloud.answer_bundles = lambda wanted: cloud.given_out(kept.values())
    if given < 5:
        fails(cloud, Unreachable, f"withholds the bundles of {10 - given} of 10 nodes")
    else:
        assert set(identities(drawn(cloud)[0])) <= set(kept)


def test_bundles_that_the_directory_does_not_list_are_not_used(cloud, new_cloud):
    """Whole bundles of another cloud's nodes, which nobody in this log has heard of."""
    new_cloud.publish()
    cloud.network(pytest.MonkeyPatch())
    others = list(new_cloud.bundles.values())
    cloud.answer_bundles = lambda wanted: cloud.given_out(others)
    fails(cloud, Unreachable, "withholds the bundles of 10 of 10 nodes")


@pytest.mark.parametrize("at", [0, 20, 700, -40, -1])
def test_bundles_with_changed_bytes_are_not_used(cloud, at):
    """They are those of no node that is listed."""

    def changed(bundle):
        data = bytearray(bundle)
        data[at] ^= 1
        return bytes(data)

    cloud.answer_bundles = lambda wanted: cloud.given_out([changed(each) for each in cloud.bundles.values()])
    fails(cloud, Unreachable, "withholds the bundles of 10 of 10 nodes")


def test_bundles_in_another_order_and_twice_are_of_the_nodes_that_they_are_of(cloud):
    cloud.answer_bundles = lambda wanted: cloud.given_out([*cloud.bundles.values()][::-1] * 2)
    (draw,) = drawn(cloud)
    assert len(draw.recipients) == MOST_NODES
    for each in draw.recipients:
        assert base64.b64encode(each.public_key) in cloud.bundles[each.identity]


def test_a_node_whose_bundle_a_clause_refuses_is_left_out_with_the_reason(cloud, ask, monkeypatch):
    assert len(drawn(cloud)[0].recipients) == MOST_NODES
    monkeypatch.setattr(clauses, "LONGEST_SECONDS", 3600)
    fails(cloud, Unreachable, "short_lived: the node's keys are good for 86400 s")
    pieces, error = ask(cloud)
    assert pieces == [] and isinstance(error, Unreachable) and not cloud.envelopes


def test_a_revoked_release_is_not_asked(new_cloud, ask):
    cloud = new_cloud
    cloud.publish()
    assert ask(cloud) == (list(CONTENT), None)
    leaf = hash_of(cloud.release).hex()
    cloud.log.append([encode(Revocation(not_before=NOW, expires=NOW + 9, leaf=leaf, reason="broken"))], cloud.now)
    pieces, error = ask(cloud)
    assert pieces == [] and isinstance(error, NoSuchModel) and len(cloud.envelopes) == 1


def test_an_empty_directory_has_nobody_to_ask(new_cloud):
    new_cloud.publish()
    new_cloud.log.append([encode(Directory(**new_cloud.dates(), nodes=(), part=1, parts=1))], new_cloud.now)
    fails(new_cloud, Unreachable, "the directory has none")


def test_a_model_that_nobody_serves_is_said_with_those_that_are(cloud):
    with pytest.raises(NoSuchModel, match="'else' does not exist; there are: model"):
        drawn(cloud, model="else")


def test_the_request_is_for_the_nodes_that_were_drawn_and_no_other(cloud, ask):
    assert ask(cloud) == (list(CONTENT), None)
    named = node_identities(cloud.envelopes[0])
    assert len(named) == MOST_NODES and set(named) <= set(cloud.bundles)
    assert all(identity_of(cloud.bundles[each]) == each for each in named)


# --- the gateway's key ---------------------------------------------------------------------------------------------


def test_nothing_is_sealed_to_a_gateways_key_that_is_not_in_the_log(new_cloud, ask):
    new_cloud.publish(new_cloud.gateway_leaf)
    pieces, error = ask(new_cloud)
    assert pieces == [] and isinstance(error, Unreachable) and "no key of the gateway gateway.test" in str(error)
    assert set(new_cloud.hosts()) == {"log.test"}


def test_a_gateways_key_counts_while_its_leaf_does(cloud):
    async def keys():
        async with cloud.asker() as asker:
            known = await asker.known()
            assert gateway_key(known, "gateway.test") == cloud.gateway_key.config
            with pytest.raises(Unreachable):
                gateway_key(known, "else.test")

    asyncio.run(keys())
    assert cloud.gateway_leaf.expires == NOW + 2 * DAY


def test_what_the_gateway_is_asked_for_bundles_says_nothing_of_the_client(cloud, ask):
    asked = []
    honest = cloud.answer_bundles
    cloud.answer_bundles = lambda wanted: asked.append(wanted) or honest(wanted)
    assert ask(cloud) == (list(CONTENT), None)
    (wanted,) = asked
    assert sorted(wanted) == sorted(each.hex() for each in cloud.bundles)
    assert json.dumps(wanted)
