"""A private cloud in this process, as a client sees it: what it asks of the network is answered by functions here.

Nothing is stood in for but the network itself: the log's files, the tokens' signatures, both layers of sealing and the
nodes' keys are real. Every function that answers can be replaced by one that lies.
"""

import base64
import copy
import json
import types

import httpx2
from cryptography.hazmat.primitives.asymmetric import rsa

from pomona.private.client.asking import Asker
from pomona.private.client.reading import read_log
from pomona.private.client.trust import LogTrust, Trust
from pomona.private.roles.node_keys import make_keys
from pomona.private.sealing import kem
from pomona.private.sealing.binary_http import decode_request, encode_content, encode_end, encode_response_head
from pomona.private.sealing.chunked_oblivious_http import ChunkedRequestOpener, seal_chunked_response
from pomona.private.sealing.envelope import NodeKey, node_identities, open_request
from pomona.private.sealing.mlkem import MlKemKey
from pomona.private.sealing.oblivious_http import CHUNKED_RESPONSE, GatewayKey, KeyConfig, encode_key_configs
from pomona.private.tokens import blind_rsa
from pomona.private.tokens.auth_scheme import decode_authorization
from pomona.private.tokens.batches import BATCH_RESPONSE_MEDIA_TYPE, decode_batch_request, encode_batch_response
from pomona.private.tokens.privacy_pass import TokenResponse, encode_token_key, token_key_id
from pomona.private.transparency import leaves
from pomona.private.transparency.log import open_log
from pomona.private.transparency.note import Signer, encode_vkey, verifier_of

DAY = 86_400
NOW = 1_800_000_000 // DAY * DAY + 3600
"""An hour into a day."""
ORIGIN = "example.org/log"
SIGNER = Signer(ORIGIN, bytes(range(32)))
ACCOUNT = "an account's key"
CONTENT = (b"one ", b"two ", b"three ", b"four")
"""What a node answers, a sealed chunk for each, after one for the head and before the last one, for the end."""
ISSUER_KEY, STRANGERS_KEY = (rsa.generate_private_key(65537, 2048) for _ in range(2))


def issuer_leaf(**changes):
    """The issuer's key of the day as the log has it."""
    public = ISSUER_KEY.public_key()
    fields = {"issuer": "issuer.test", "token_key": _encoded(encode_token_key(public))}
    fields |= {"token_key_id": token_key_id(public).hex(), "not_before": NOW // DAY * DAY}
    return leaves.IssuerKey(**{**fields, "expires": (NOW // DAY + 2) * DAY, **changes})


class Pieces(httpx2.AsyncByteStream):
    """A body in pieces; an exception among them is raised there."""

    def __init__(self, pieces):
        self.pieces = pieces

    async def __aiter__(self):
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece


class MadeCloud:
    """A log with a release, an issuer's and a gateway's key and a directory of nodes; a client's settings and state."""

    def __init__(self, folder, nodes=10, profile="laptop"):
        self.folder = folder
        self.begin(folder / "client")
        self.log = open_log(folder / "log", SIGNER, ORIGIN)
        self.files = folder / "log"
        settings = LogTrust("https://log.test", ORIGIN, encode_vkey(verifier_of(SIGNER)))
        names = {"issuer_name": "issuer.test", "gateway_name": "gateway.test"}
        self.trust = Trust(settings, "https://relay.test", "https://issuer.test", ACCOUNT, **names, profiles=(profile,))
        private = kem.generate_key(kem.X25519)
        self.gateway_key = GatewayKey(KeyConfig(1, kem.X25519.id, private.public_bytes, ((1, 1),)), private)
        self.release = leaves.Release(
            **self.dates(), name="model", version="1", image="0a" * 32, model="0b" * 32, profile=profile
        )
        self.issuer_leaf = issuer_leaf()
        self.gateway_leaf = leaves.GatewayKey(
            **self.dates(), gateway="gateway.test", key_config=_encoded(encode_key_configs([self.gateway_key.config]))
        )
        self.count = nodes

    def begin(self, state):
        """Forgets what was asked, and begins with a client that knows nothing."""
        self.state, self.now = state, float(NOW)
        self.asked = []
        """(host, path, body) of everything that was asked for."""
        self.tokens, self.envelopes, self.statuses = [], [], []
        """Tokens and envelopes as the gateway got them; what it answers instead of a node's answer."""

    def copied(self, state):
        """The same cloud for a test that leaves its log as it is, with functions of its own."""
        other = copy.copy(self)
        other.begin(state)
        return other

    def dates(self, before=3600, after=2 * DAY):
        return {"not_before": NOW - before, "expires": NOW + after}

    def publish(self, *without):
        """Puts the leaves, the nodes and their directory into the log."""
        first = [self.release, self.issuer_leaf, self.gateway_leaf]
        self.log.append([leaves.encode(leaf) for leaf in first if leaf not in without], self.now)
        known = read_log(self.trust.log, self.folder / "node", self.now)
        self.made = [make_keys(None, None, known, self.release, self.now) for _ in range(self.count)]
        self.bundles = {keys.identity: keys.content for keys in self.made}
        entries = [leaves.NodeEntry(keys.identity.hex(), "", keys.release.hex()) for keys in self.made]
        self.list_nodes(entries)
        self.asked.clear()

    def list_nodes(self, entries):
        parts = leaves.split_directory(entries, NOW - 3600, NOW + 2 * 3600)
        self.log.append([leaves.encode(part) for part in parts], self.now)

    def asker(self):
        return Asker(self.trust, self.state, lambda: self.now)

    def hosts(self):
        """Who was asked, in order."""
        return [host for host, _, _ in self.asked]

    # --- what answers ------------------------------------------------------------------------------------------------

    def answer_log(self, path):
        try:
            return httpx2.Response(200, content=(self.files / path).read_bytes())
        except FileNotFoundError:
            return httpx2.Response(404)

    def answer_issuer(self, body):
        return self.sign(body, ISSUER_KEY)

    def sign(self, body, key):
        asked = decode_batch_request(body)
        signed = [TokenResponse(blind_rsa.blind_sign(key, each.blinded_msg)) for each in asked]
        headers = {"content-type": BATCH_RESPONSE_MEDIA_TYPE}
        return httpx2.Response(200, content=encode_batch_response(signed), headers=headers)

    def answer_relay(self, body):
        """The relay, and the gateway behind it."""
        opener = ChunkedRequestOpener([self.gateway_key])
        inner = decode_request(b"".join(opener.feed(body)) + opener.close())
        if inner.path == b"/bundles":
            status, pieces = 200, [self.answer_bundles(json.loads(inner.content))]
        else:
            header = dict(inner.headers)[b"authorization"].decode()
            self.tokens.append(decode_authorization(header))
            self.envelopes.append(inner.content)
            status = self.statuses.pop(0) if self.statuses else 200
            pieces = self.change_answer(self.answer_node(inner.content)) if status == 200 else [b"not now"]
        nonce, sealer = seal_chunked_response(opener.exchange)
        sealed = [nonce + sealer.chunk(encode_response_head(status, ()))]
        sealed += [sealer.chunk(encode_content(piece)) for piece in pieces]
        sealed.append(sealer.chunk(encode_end(), final=True))
        if inner.path != b"/bundles":
            sealed = self.change_stream(sealed)
        return httpx2.Response(200, stream=Pieces(sealed), headers={"content-type": CHUNKED_RESPONSE})

    def answer_bundles(self, wanted):
        found = [self.bundles[bytes.fromhex(each)] for each in wanted if bytes.fromhex(each) in self.bundles]
        return self.given_out(found)

    def given_out(self, bundles):
        return json.dumps([_encoded(each) for each in bundles]).encode()

    def answer_node(self, envelope, parts=None):
        """The pieces of an answer: one sealed chunk each, the first with the answer's head."""
        identity = node_identities(envelope)[0]
        keys = next(each for each in self.made if each.identity == identity)
        private = types.SimpleNamespace(public_bytes=keys.point, diffie_hellman=keys.diffie_hellman)
        _, sealer = open_request(NodeKey(identity, private, MlKemKey.from_seed(keys.mlkem_seed)), envelope)
        head = encode_response_head(200, ((b"content-type", b"text/plain"),))
        parts = [head, *map(encode_content, CONTENT), encode_end()] if parts is None else parts
        sealed = [sealer.chunk(part) for part in parts[:-1]] + [sealer.chunk(parts[-1], final=True)]
        return [sealer.head() + sealed[0], *sealed[1:]]

    def change_answer(self, pieces):
        """What a gateway makes of a node's answer."""
        return pieces

    def change_stream(self, pieces):
        """What a relay makes of a gateway's answer."""
        return pieces

    # --- the network -------------------------------------------------------------------------------------------------

    def network(self, monkeypatch):
        """Everything that the client's HTTP client sends comes here."""

        def handle(transport, request):
            self.asked.append((request.url.host, request.url.path, b""))
            assert request.url.host == "log.test" and request.method == "GET"
            return self.answer_log(request.url.path.removeprefix("/"))

        async def handle_async(transport, request):
            body = await request.aread()
            self.asked.append((request.url.host, request.url.path, body))
            assert request.method == "POST"
            answer = {"relay.test": self.answer_relay, "issuer.test": self.answer_issuer}[request.url.host](body)
            if isinstance(answer.stream, Pieces):
                return answer
            return httpx2.Response(answer.status_code, headers=answer.headers, stream=Pieces([answer.content]))

        async def nothing(transport, *_):
            pass

        for kind, names in (
            (httpx2.HTTPTransport, ("__init__", "close", "__enter__", "__exit__")),
            (httpx2.AsyncHTTPTransport, ("__init__", "aclose", "__aenter__", "__aexit__")),
        ):
            for name in names:  # nothing to open or close; reading the certificates of all authorities takes 20 ms
                no_work = nothing if name.startswith(("a", "__a")) else lambda transport, *_, **__: None
                monkeypatch.setattr(kind, name, no_work)
        monkeypatch.setattr(httpx2.HTTPTransport, "handle_request", handle)
        monkeypatch.setattr(httpx2.AsyncHTTPTransport, "handle_async_request", handle_async)


def _encoded(data):
    return base64.b64encode(data).decode()
