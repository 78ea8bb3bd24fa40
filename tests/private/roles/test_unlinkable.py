"""Who knows the account cannot be joined with who knows the request; and nobody can be led to nodes of their own."""

import asyncio
import collections
import dataclasses
import http.server
import itertools
import json
import math
import re
import threading
import time
from types import SimpleNamespace

import httpx2
import pytest
from cloud import free_ports
from looking import Recorder

from pomona.private.attestation.case import Known
from pomona.private.client.asking import Asker
from pomona.private.client.audit import audit_log, audit_nodes
from pomona.private.client.buying import BATCH, challenge_of
from pomona.private.client.proxy import request_of
from pomona.private.client.reading import read_log
from pomona.private.client.trust import LogTrust, Trust
from pomona.private.roles.fleet import Fleet, Node
from pomona.private.roles.gateway_keys import prepare_gateway_keys
from pomona.private.roles.node_keys import make_keys
from pomona.private.roles.publishing import Publisher
from pomona.private.sealing.binary_http import decode_request
from pomona.private.sealing.chunked_oblivious_http import ChunkedRequestOpener, open_chunked_response
from pomona.private.sealing.envelope import node_identities
from pomona.private.tokens.auth_scheme import decode_authorization, encode_authorization
from pomona.private.tokens.batches import decode_batch_request, decode_batch_response, encode_batch_request
from pomona.private.tokens.blind_rsa import blind_sign
from pomona.private.tokens.issuance import PendingBatch, finish_token, prepare_token
from pomona.private.tokens.issuer import prepare_keys, published_key
from pomona.private.tokens.privacy_pass import NK, TokenResponse, challenge_digest
from pomona.private.transparency.errors import Forked
from pomona.private.transparency.leaves import NodeEntry, Release, encode, hash_of, split_directory
from pomona.private.transparency.log import open_log
from pomona.private.transparency.note import Signer, encode_vkey, verifier_of
from pomona.private.transparency.tiles import folder_fetch
from pomona.private.transparency.view import advance, compare, entries, new_view

SHORTEST = 8
"""Bytes that two transcripts may not have in common."""
PUBLIC = (b"authorization", b"content-type", b"application/")
"""What is the same for everybody and does not come from the log: names of headers and of media types."""
ENVELOPE_HEAD = 10
"""Bytes at the beginning of an envelope that name its form and how many nodes it is for."""
NODES, DRAWS = 12, 1000
FALSE_ALARM = 1e-6


def windows_of(content):
    return {content[at : at + SHORTEST] for at in range(len(content) - SHORTEST + 1)}


def in_common(one, other, allowed):
    """The longest byte strings that two transcripts have in common, of 8 bytes or more, and that nobody may have.

    Bytes beside what everybody has may be the same by chance, and count only from 8 on like any others."""
    windows, public = windows_of(one), set().union(*map(windows_of, allowed))
    found, at = set(), 0
    while at <= len(other) - SHORTEST:
        end = at
        while end <= len(other) - SHORTEST and other[end : end + SHORTEST] in windows:
            end += 1
        if end > at:
            found |= private_parts(other[at : end + SHORTEST - 1], public)
        at = end + 1
    return found


def private_parts(content, public):
    """What lies between the public windows of it, where that is 8 bytes or more."""
    found, begin = set(), 0
    for at in range(len(content) - SHORTEST + 1):
        if content[at : at + SHORTEST] in public:
            found.add(content[begin:at])
            begin = at + SHORTEST
    return {each for each in (*found, content[begin:]) if len(each) >= SHORTEST}


def bodies(stream):
    """The bodies of HTTP messages in what went one way over a connection; of a known length, or in chunks."""
    found = []
    while stream:
        head, _, stream = stream.partition(b"\r\n\r\n")
        if length := re.search(rb"(?i)content-length: (\d+)", head):
            found.append(stream[: int(length[1])])
            stream = stream[int(length[1]) :]
            continue
        body = b""
        while size := int(stream.partition(b"\r\n")[0], 16):
            stream = stream.partition(b"\r\n")[2]
            body, stream = body + stream[:size], stream[size + 2 :]
        found.append(body)
        stream = stream.partition(b"\r\n\r\n")[2]
    return found


def opened(keys, recorder):
    """What a gateway with these keys sees: (request, the bytes of the answer that it seals) of all that was sent it."""
    found = []
    for sent, received in recorder.connections:
        for request, response in zip(bodies(bytes(sent)), bodies(bytes(received)), strict=True):
            opener = ChunkedRequestOpener(keys)
            plain = b"".join(opener.feed(request)) + opener.close()
            answer = open_chunked_response(opener.exchange)
            found.append((plain, b"".join(answer.feed(response)) + answer.close()))
    return found


@pytest.fixture(scope="module")
def seen(cloud, device_file):
    """What the issuer and the gateway of a cloud see of one client that asks five times."""
    port = free_ports(2)
    issuer, relay = Recorder(port, cloud.port + 1), Recorder(port + 1, cloud.port + 2)
    trust = dataclasses.replace(cloud.trust(), issuer=issuer.address, relay=relay.address + "/")

    async def ask():
        async with Asker(trust, cloud.folder / "unlinkable") as asker:
            for _ in range(5):
                body = json.dumps({"model": device_file.stem, "prompt": "hello", "max_tokens": 3}).encode()
                async with asker.ask(request_of("/v1/completions", body)) as answer:
                    await answer.whole()
            return await asker.known()

    try:
        known = asyncio.run(ask())
    finally:
        issuer.close()
        relay.close()
    keys = tuple(prepare_gateway_keys(cloud.folder / "gateway" / "keys", time.time()).values())
    public = (*PUBLIC, *known.entries, trust.gateway_name.encode())
    return SimpleNamespace(issuer=issuer, gateway=opened(keys, relay), trust=trust, public=public, known=known)


def requests_of(seen):
    """Those among what the gateway saw that a node was to answer."""
    found = [decode_request(plain) for plain, _ in seen.gateway]
    return [each for each in found if each.path == b"/requests"]


def header(request, name):
    return next(value for each, value in request.headers if each == name)


def test_issuer_and_gateway_have_nothing_in_common(seen):
    gateway = b"\0".join(part for pair in seen.gateway for part in pair)
    tokens = [decode_authorization(header(each, b"authorization").decode()) for each in requests_of(seen)]
    gateway += b"\0".join(part for each in tokens for part in (each.nonce, each.authenticator))
    assert len(seen.issuer.transcript) > BATCH * 2 * NK and len(tokens) == 5 and len(gateway) > 5 * 4000
    assert seen.trust.account.encode() in seen.issuer.transcript and seen.trust.account.encode() not in gateway
    assert in_common(seen.issuer.transcript, gateway, seen.public) == set()


def test_what_can_be_computed_of_tokens_has_nothing_in_common(cloud, seen):
    """Raised to the public exponent, what the issuer signed and the gateway verified are still others."""
    [sent], [received] = zip(*[map(bytes, each) for each in seen.issuer.connections if each[0]])
    [batch], [answer] = bodies(sent), bodies(received)
    blinded = {each.blinded_msg for each in decode_batch_request(batch)}
    signed = {each.blind_sig for each in decode_batch_response(answer)}
    assert len(blinded) == len(signed) == BATCH
    tokens = [decode_authorization(header(each, b"authorization").decode()) for each in requests_of(seen)]
    numbers = published_key(prepare_keys(cloud.folder / "issuer/keys", time.time())[0]).public_key.public_numbers()
    opened = {pow(int.from_bytes(each.authenticator), numbers.e, numbers.n).to_bytes(NK) for each in tokens}
    assert len(opened) == 5 and not opened & (blinded | signed)
    assert len({each.nonce for each in tokens}) == 5
    assert len({(each.token_key_id, each.challenge_digest) for each in tokens}) == 1, "the same for everybody"


def test_tokens_that_are_not_blinded_are_found_in_both(cloud, seen):
    """The same look at a client that leaves the blinding out."""
    signing = prepare_keys(cloud.folder / "issuer/keys", time.time())[0]
    key, challenge = published_key(signing), challenge_of(seen.trust.issuer_name, seen.trust.gateway_name)
    request, pending = prepare_token(challenge_digest(challenge), key, blind_inverse=1)
    signature = blind_sign(signing.private_key, request.blinded_msg)
    token = finish_token(PendingBatch(key, challenge_digest(challenge), ()), pending, TokenResponse(signature))
    gateway = encode_authorization(token).encode() + token.nonce + token.authenticator
    common = in_common(encode_batch_request([request]) + signature, gateway, seen.public)
    assert any(token.authenticator in each for each in common)


def test_requests_of_one_client_have_nothing_in_common(seen):
    """Nor can the gateway tell whose they are by themselves: keys, tokens and ciphertexts are new each time."""
    found = requests_of(seen)
    same = (*seen.public, header(found[0], b"content-type"))
    token = decode_authorization(header(found[0], b"authorization").decode())
    for one, other in itertools.pairwise(found):
        known = node_identities(one.content)
        common = in_common(one.content[ENVELOPE_HEAD:], other.content[ENVELOPE_HEAD:], (*same, *known))
        assert common == set()
        texts = [header(each, b"authorization") for each in (one, other)]
        assert decode_authorization(texts[0].decode()).nonce != decode_authorization(texts[1].decode()).nonce
    assert token.token_key_id.hex().encode() in b"".join(seen.known.entries)


def test_what_is_in_common_counts_from_eight_bytes_beside_what_is_public():
    public, secret = b"everybody's", bytes(range(128, 137))
    assert in_common(b"a" + public + b"\1\2", b"b" + public + b"\1\2", (public,)) == set()
    assert in_common(b"a" + public + secret, b"b" + public + secret, (public,)) == {secret}
    assert in_common(secret + public + b"a", secret + public + b"b", (public,)) == {secret}
    assert in_common(public + secret + public, b"a" + public + secret + public, (public,)) == {secret}
    assert in_common(public + secret[:7] + public, b"a" + public + secret[:7] + public, (public,)) == set()


# The draw, over nodes that are listed in a log of the test's own.


def made_log(folder, signer, directories, now):
    """A log with a release, and directories one after the other; and what is known of it."""
    with open_log(folder, signer, signer.name) as log:
        for leaves in directories:
            log.append([encode(each) for each in leaves], now)
    return known_of(folder, signer, now)


def known_of(folder, signer, now):
    fetch = folder_fetch(folder)
    view = advance(new_view(signer.name, encode_vkey(verifier_of(signer))), fetch, now)
    return Known(view, [entry for _, entry in entries(view, fetch)], now)


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    """12 nodes without TPMs, their bundles, and the log that lists them."""
    now, folder = float(int(time.time())), tmp_path_factory.mktemp("listed")
    signer = Signer("log.example", bytes(range(32)))
    dates = {"not_before": int(now), "expires": int(now) + 3600}
    release = Release(**dates, name="small", version="1", image="1" * 64, model="2" * 64, profile="laptop")
    known = made_log(folder / "log", signer, [[release]], now)
    bundles = [make_keys(None, None, known, release, now) for _ in range(NODES)]
    nodes = [NodeEntry(each.identity.hex(), f"http://{n}", hash_of(release).hex()) for n, each in enumerate(bundles)]
    directory = split_directory(nodes, int(now), int(now) + 3600)
    known = made_log(folder / "log", signer, [directory], now)
    return SimpleNamespace(
        bundles={each.identity: each.content for each in bundles},
        **{"known": known, "now": now, "nodes": nodes, "signer": signer, "folder": folder, "release": release},
    )


def asker_of(listed, folder, bundles):
    """A client that knows the log and the bundles, without a network."""
    log = LogTrust("http://log", listed.signer.name, encode_vkey(verifier_of(listed.signer)))
    trust = Trust(log, "http://relay/", "http://issuer", "account", "issuer", "gateway", ("laptop",))
    asker = Asker(trust, folder, lambda: listed.now)
    asker._bundles = dict(bundles)
    return asker


def chi_squared_tail(statistic, freedom):
    """The chance that a chi-squared variable is larger, for odd degrees of freedom: the regularized upper incomplete
    gamma function of half of both (NIST's DLMF, 8.8.2 and 7.11.1)."""
    assert freedom % 2
    half = statistic / 2
    terms = (half ** (n + 0.5) * math.exp(-half) / math.gamma(n + 1.5) for n in range(freedom // 2))
    return math.erfc(math.sqrt(half)) + sum(terms)


def tail_of(counts, expected, each_time=1):
    """The chance of counts that are less even, where so many different nodes are drawn each time: of more than one,
    the counts vary less, and the statistic is larger by as much."""
    statistic = sum((each - expected) ** 2 / expected for each in counts)
    return chi_squared_tail(statistic * (len(counts) - 1) / (len(counts) - each_time), len(counts) - 1)


def test_nodes_are_chosen_uniformly(listed, tmp_path):
    """1,000 requests: which node the gateway hands them to, with none of them busy, and which are drawn at all.

    A fair draw fails once in a million runs for each of the two."""
    chosen, drawn = collections.Counter(), collections.Counter()

    async def pieces():
        yield b"sealed"

    def serve(request):
        chosen[request.url.host] += 1
        return httpx2.Response(200, content=pieces())

    async def ask():
        network = httpx2.MockTransport(serve)
        async with httpx2.AsyncClient(transport=network) as client, asker_of(listed, tmp_path, listed.bundles) as asker:
            fleet = Fleet([], Publisher("http://log", ""), client)
            fleet.nodes = {bytes.fromhex(each.identity): Node(each.address, b"", b"") for each in listed.nodes}
            for _ in range(DRAWS):
                found = (await asker.draw(listed.known, "small")).recipients
                assert len({each.identity for each in found}) == 8
                drawn.update(each.identity for each in found)
                serving = await fleet.serve([each.identity for each in found], b"")
                assert [piece async for piece in serving.pieces()] == [b"sealed"]

    asyncio.run(ask())
    assert len(chosen) == len(drawn) == NODES and sum(chosen.values()) == DRAWS
    assert tail_of(chosen.values(), DRAWS / NODES) > FALSE_ALARM, chosen
    assert tail_of(drawn.values(), DRAWS * 8 / NODES, 8) > FALSE_ALARM, drawn


def test_a_choice_that_prefers_one_node_is_not_uniform():
    """The same number of requests, of which the first node gets twice its share."""
    fair = (DRAWS - 2 * DRAWS / NODES) / (NODES - 1)
    assert tail_of([2 * DRAWS / NODES, *[fair] * (NODES - 1)], DRAWS / NODES) < FALSE_ALARM
    for statistic, tail in ((19.675, 0.05), (31.264, 0.001)):  # of 11 degrees of freedom, in every table
        assert math.isclose(chi_squared_tail(statistic, 11), tail, rel_tol=0.001)


# A directory for one client alone.


@pytest.fixture(params=["hides a node", "adds a node"])
def forked(request, listed, tmp_path):
    """A second log under the same key, of the same size, whose directory is another for one client."""
    entry = NodeEntry("e" * 64, "http://evil", hash_of(listed.release).hex())
    nodes = listed.nodes[1:] if request.param == "hides a node" else [*listed.nodes, entry]
    now = int(listed.now)
    known = made_log(tmp_path / "log", listed.signer, [[listed.release], split_directory(nodes, now, now + 3600)], now)
    return SimpleNamespace(known=known, folder=tmp_path / "log")


def test_an_auditor_sees_that_one_client_gets_another_directory(listed, forked):
    """Each of the two passes by itself: they have to be compared, and are then proof against the log."""
    assert audit_log(listed.known).passed and audit_log(forked.known).passed
    assert len(listed.known.entries) == len(forked.known.entries)
    assert set(listed.known.nodes) ^ set(forked.known.nodes)
    verdict = compare(listed.known.view.signed, forked.known.view.signed)
    assert verdict.verdict == "forked"
    assert {verdict.error.held, verdict.error.offered} == {listed.known.view.note, forked.known.view.note}
    assert compare(listed.known.view.signed, listed.known.view.signed).verdict == "consistent"
    other = dataclasses.replace(listed.known, entries=forked.known.entries)
    assert not audit_log(other).passed, "entries of the one under the other's signature"


def test_a_client_that_saw_one_directory_refuses_the_other(listed, forked, tmp_path):
    """Over HTTP, from a log that changes what it shows; what proves it is kept."""
    shown = {"folder": listed.folder / "log"}

    class Files(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=shown["folder"])

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            vkey = encode_vkey(verifier_of(listed.signer))
            log = LogTrust(f"http://127.0.0.1:{server.server_port}", listed.signer.name, vkey)
            assert len(read_log(log, tmp_path / "client", listed.now).nodes) == NODES
            assert len(read_log(log, tmp_path / "client", listed.now).nodes) == NODES
            shown["folder"] = forked.folder
            with pytest.raises(Forked):
                read_log(log, tmp_path / "client", listed.now)
            assert set(read_log(log, tmp_path / "another", listed.now).nodes) == set(forked.known.nodes)
        finally:
            server.shutdown()
    assert (tmp_path / "client/forked/held").read_bytes() == listed.known.view.note
    assert (tmp_path / "client/forked/offered").read_bytes() == forked.known.view.note


def test_a_bundle_that_nobody_gives_out_fails_the_audit(listed, tmp_path):
    """A gateway that cannot change the directory may keep bundles back, and so leave clients nodes of its choice."""
    hidden, *rest = listed.bundles
    given = {identity: listed.bundles[identity] for identity in rest}

    async def audit(bundles):
        async with asker_of(listed, tmp_path, bundles) as asker:

            async def nobody_answers(known, identities):
                return asker._bundles

            asker.bundles = nobody_answers
            drawn = await asker.draw(listed.known)
            return await audit_nodes(asker, listed.known), drawn

    reports, drawn = asyncio.run(audit(given))
    assert [each.about for each in reports if not each.passed] == [f"node {hidden.hex()}"]
    assert hidden not in [each.identity for each in drawn.recipients] and len(drawn.recipients) == 8
    reports, _ = asyncio.run(audit(listed.bundles))
    assert len(reports) == NODES and all(each.passed for each in reports)
