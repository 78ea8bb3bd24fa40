"""What the tests of this room share: keys, cuts, what hypothesis changes in a message, and readings of our own."""

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import strategies as st

from pomona.private.sealing import kem
from pomona.private.sealing.answer import AnswerOpener
from pomona.private.sealing.binary_http import Informational, Response
from pomona.private.sealing.binary_http_reader import End, ResponseReader
from pomona.private.sealing.envelope import NodeKey, Recipient, seal_request
from pomona.private.sealing.mlkem import MlKemKey
from pomona.private.sealing.oblivious_http import GatewayKey, KeyConfig

VECTORS = Path(__file__).parent / "vectors"


@pytest.fixture(scope="session")
def vectors():
    """The published vectors of a file, with their values as they are there."""
    return lambda name: json.loads((VECTORS / name).read_text())


@pytest.fixture(scope="session")
def nodes():
    """Nine nodes: their keys, and what a client knows of each."""
    keys = [NodeKey(bytes([n]) * 32, kem.generate_key(kem.P256), MlKemKey.generate()) for n in range(1, 10)]
    return keys, [Recipient(key.identity, key.private.public_bytes, key.mlkem.public_bytes) for key in keys]


@pytest.fixture(scope="session")
def cut():
    """Cuts bytes at places that may be anywhere."""

    def at(data, places):
        ends = sorted({place % (len(data) + 1) for place in places} | {len(data)})
        return [data[start:end] for start, end in zip([0, *ends], ends)]

    return at


@pytest.fixture(scope="session")
def changed():
    """A message changed: a byte, bytes left out, put in or doubled, or the end cut off. It may come out as it was."""

    def change(data, how, place, piece):
        place %= len(data) + 1
        if how == "flip" and place < len(data):
            return data[:place] + bytes([data[place] ^ (1 + sum(piece) % 255)]) + data[place + 1 :]
        if how == "drop":
            return data[:place] + data[place + len(piece) :]
        if how == "insert":
            return data[:place] + piece + data[place:]
        if how == "double":
            return data[: place + len(piece)] + data[place:]
        return data[:place]

    return change


CHANGES = (
    st.sampled_from(["flip", "drop", "insert", "double", "end"]),
    st.integers(0, 1 << 16),
    st.binary(min_size=1, max_size=20),
)


@pytest.fixture(scope="session")
def changes():
    """The strategies for the last three arguments of `changed`."""
    return CHANGES


@pytest.fixture(scope="session")
def answer():
    """A whole answer."""

    def answer(sealer, *pieces):
        return sealer.head() + b"".join(sealer.chunk(piece) for piece in pieces) + sealer.chunk(b"", final=True)

    return answer


@pytest.fixture(scope="session")
def opened():
    """The pieces of an answer."""

    def opened(keys, *pieces):
        opener = AnswerOpener(keys)
        texts = [text for piece in pieces for text in opener.feed(piece)]
        opener.close()
        assert opener.finished
        return texts

    return opened


@pytest.fixture(scope="session")
def their_context():
    """The HPKE context of an entry, by pyhpke."""

    def their_context(entry, preamble, key):
        pyhpke = pytest.importorskip("pyhpke")
        oracle = pyhpke.CipherSuite.new(
            pyhpke.KEMId.DHKEM_P256_HKDF_SHA256, pyhpke.KDFId.HKDF_SHA256, pyhpke.AEADId.AES128_GCM
        )
        private = key.private.private.private_numbers().private_value.to_bytes(32, "big")
        ciphertext = entry[97:1185]
        return oracle.create_recipient_context(
            entry[32:97],
            oracle.kem.deserialize_private_key(private),
            b"pomona envelope request\0" + preamble + key.identity,
            psk=key.mlkem.private.decapsulate(ciphertext),
            psk_id=hashlib.sha256(ciphertext).digest(),
        )

    return their_context


@pytest.fixture(scope="session")
def expanded():
    """HKDF-SHA256 of the library."""

    def expanded(salt, secret, info, length):
        return HKDF(SHA256(), length, salt, info).derive(secret)

    return expanded


@pytest.fixture(scope="session")
def asked(nodes):
    """A request to two nodes, and the keys of its answers."""
    return seal_request(nodes[1][:2], b"text")


def gateway_key(each=kem.X25519, key_id=7, algorithms=((1, 1), (1, 3))):
    private = kem.generate_key(each)
    return GatewayKey(KeyConfig(key_id, each.id, private.public_bytes, algorithms), private)


@pytest.fixture(scope="session")
def keys():
    """A gateway with a key of each curve, and one of the first that is older."""
    return [gateway_key(), gateway_key(kem.P256, 8, ((1, 1), (1, 2), (1, 3))), gateway_key(key_id=6)]


@pytest.fixture(scope="session")
def joined():
    """The response that these parts are, in the only order they can have."""

    def joined(parts):
        interim = tuple(part for part in parts if isinstance(part, Informational))
        head, *content, end = parts[len(interim) :]
        assert isinstance(head, Response) and isinstance(end, End) and all(content)
        return dataclasses.replace(head, content=b"".join(content), trailers=end.trailers, informational=interim)

    return joined


@pytest.fixture(scope="session")
def read(joined):
    """A response from pieces, put together again."""

    def read(pieces, limits=None):
        reader = ResponseReader(limits) if limits else ResponseReader()
        parts = [part for piece in pieces for part in reader.feed(piece)]
        return joined(parts + reader.close())

    return read
