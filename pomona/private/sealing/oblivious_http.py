"""Oblivious HTTP (RFC 9458): a relay carries encrypted requests to a gateway, which does not learn who asks.

    Encapsulated request   key identifier (1), KEM, KDF, AEAD (2 each), enc (32 or 65), sealed Binary HTTP
    Encapsulated response  nonce (16 or 32), sealed Binary HTTP

chunked_oblivious_http.py has the variant in chunks, on the same headers and keys.
"""

import dataclasses
import secrets
from collections.abc import Sequence

from pomona.private.sealing import hkdf, kem
from pomona.private.sealing.aead import NONCE_BYTES, Aead, Opener, Sealer
from pomona.private.sealing.cursor import Cursor
from pomona.private.sealing.errors import SealingError
from pomona.private.sealing.hpke import (
    RecipientContext,
    SenderContext,
    Suite,
    setup_recipient,
    setup_sender,
    suite_ids,
    suite_of,
)
from pomona.private.sealing.kem import PrivateKey

KEYS = "application/ohttp-keys"
REQUEST, RESPONSE = "message/ohttp-req", "message/ohttp-res"
CHUNKED_REQUEST, CHUNKED_RESPONSE = "message/ohttp-chunked-req", "message/ohttp-chunked-res"
"""Media types (RFC 9458, section 9; draft-ietf-ohai-chunked-ohttp-08, section 8)."""
REQUEST_LABEL, RESPONSE_LABEL = b"message/bhttp request", b"message/bhttp response"
_HEADER_BYTES, _PAIR_BYTES = 7, 4


@dataclasses.dataclass(frozen=True)
class KeyConfig:
    """A gateway's key, as clients get it (RFC 9458, section 3.1)."""

    key_id: int
    """0 to 255."""
    kem_id: int
    public_key: bytes
    """32 or 65 bytes."""
    algorithms: tuple[tuple[int, int], ...]
    """Pairs of a KDF and an AEAD that the gateway takes, in its order."""


@dataclasses.dataclass(frozen=True)
class GatewayKey:
    """A key of a gateway, with its private half."""

    config: KeyConfig
    private: PrivateKey = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class Exchange:
    """What both ends keep of a request until it is answered. A secret."""

    aead: Aead
    enc: bytes
    """The encapsulated key: new for every request, so a gateway refuses the ones that it saw."""
    secret: bytes = dataclasses.field(repr=False)


def encode_key_configs(configs: Sequence[KeyConfig]) -> bytes:
    """A collection of key configurations, as `application/ohttp-keys` (RFC 9458, section 3.2).

    Raises:
        SealingError: there is none; or an identifier, a key or the list of algorithms is out of range.
    """
    if not configs:
        raise SealingError("There is no key configuration to write: a collection has one at least (RFC 9458, 3.2).")
    encoded = [_encode_config(config) for config in configs]
    return b"".join(len(each).to_bytes(2, "big") + each for each in encoded)


def parse_key_configs(data: bytes) -> tuple[KeyConfig, ...]:
    """The configurations of an `application/ohttp-keys` collection whose KEM this room has, in their order.

    Others are passed over. A collection with any mistake is refused as a whole, so that no two clients take different
    parts of it (RFC 9458, section 3.2).

    Raises:
        SealingError: the collection is empty or has a mistake.
    """
    cursor = Cursor(data)
    configs = []
    if not data:
        raise SealingError("A collection of key configurations is empty: it has one at least (RFC 9458, 3.2).")
    while not cursor.at_end():
        length = int.from_bytes(cursor.take(2, "the length of a key configuration"), "big")
        configs.append(_parse_config(cursor.take(length, "a key configuration")))
    return tuple(config for config in configs if config)


def client_suite(config: KeyConfig) -> Suite:
    """The suite that a client uses: the first of the gateway's pairs that this room has.

    Raises:
        SealingError: it has none of them.
    """
    for kdf_id, aead_id in config.algorithms:
        try:
            return suite_of(config.kem_id, kdf_id, aead_id)
        except SealingError:
            continue
    raise SealingError("A key configuration offers no known algorithms: HKDF-SHA256 with AEAD 0x0001 to 0x0003.")


def encapsulate_request(config: KeyConfig, request: bytes) -> tuple[bytes, Exchange]:
    """A client's encapsulated request (RFC 9458, section 4.3), and what opens its response.

    Raises:
        SealingError: the configuration has no known algorithms, or its public key is none.
    """
    head, context, exchange = begin_request(config, REQUEST_LABEL, RESPONSE_LABEL)
    return head + context.seal(b"", request), exchange


def decapsulate_request(keys: Sequence[GatewayKey], data: bytes) -> tuple[bytes, Exchange]:
    """The request that a gateway got (RFC 9458, section 4.3), and what seals its response.

    Raises:
        SealingError: it is truncated, for an unknown key, of a suite that the key's configuration does not offer, or
            it does not open.
    """
    cursor = Cursor(data)
    context, exchange = read_request_head(keys, cursor, REQUEST_LABEL, RESPONSE_LABEL)
    return context.open(b"", cursor.take(cursor.left, "the sealed request")), exchange


def encapsulate_response(exchange: Exchange, response: bytes) -> bytes:
    """A gateway's encapsulated response (RFC 9458, section 4.4): 32 or 48 bytes longer."""
    nonce = secrets.token_bytes(response_nonce_bytes(exchange.aead))
    return nonce + Sealer(exchange.aead, *response_keys(exchange, nonce)).seal(b"", response)


def decapsulate_response(exchange: Exchange, data: bytes) -> bytes:
    """The response that a client got (RFC 9458, section 4.4).

    Raises:
        SealingError: it is truncated, or not the response to this request.
    """
    cursor = Cursor(data)
    nonce = cursor.take(response_nonce_bytes(exchange.aead), "the response's nonce")
    opener = Opener(exchange.aead, *response_keys(exchange, nonce))
    return opener.open(b"", cursor.take(cursor.left, "the sealed response"))


def begin_request(
    config: KeyConfig, request_label: bytes, response_label: bytes
) -> tuple[bytes, SenderContext, Exchange]:
    """At a client: the head of a request (39 or 72 bytes), what seals it, and what opens its response.

    The labels are those of RFC 9458, sections 4.3 and 4.4, or of another format (section 4.6).

    Raises:
        SealingError: the configuration has no known algorithms, or its public key is none.
    """
    suite = client_suite(config)
    header = bytes([config.key_id]) + suite_ids(suite)
    enc, context = setup_sender(suite, config.public_key, request_label + b"\0" + header)
    return header + enc, context, _exchange(context, suite, enc, response_label)


def read_request_head(
    keys: Sequence[GatewayKey], cursor: Cursor, request_label: bytes, response_label: bytes
) -> tuple[RecipientContext, Exchange]:
    """At a gateway: reads the head of a request, and gives what opens the rest and what seals the response.

    Raises:
        SealingError: see `decapsulate_request`.
        MoreNeeded: the rest of the head may still come.
    """
    header = cursor.take(_HEADER_BYTES, "the head of the request")
    kem_id, kdf_id, aead_id = (int.from_bytes(header[at : at + 2], "big") for at in (1, 3, 5))
    key = next((key for key in keys if (key.config.key_id, key.config.kem_id) == (header[0], kem_id)), None)
    if key is None:
        raise SealingError("The request is for a key that is not here: the client has to fetch the keys again.")
    if (kdf_id, aead_id) not in key.config.algorithms:
        raise SealingError(
            "The request uses algorithms that its key does not offer: one of the pairs of its configuration."
        )
    suite = suite_of(kem_id, kdf_id, aead_id)
    enc = cursor.take(suite.kem.public_key_bytes, "the encapsulated key")
    context = setup_recipient(suite, enc, key.private, request_label + b"\0" + header)
    return context, _exchange(context, suite, enc, response_label)


def response_nonce_bytes(aead: Aead) -> int:
    """max(Nn, Nk): the bytes of a response's nonce and of the exported secret, 16 or 32 (RFC 9458, section 4.4)."""
    return max(NONCE_BYTES, aead.key_bytes)


def response_keys(exchange: Exchange, nonce: bytes) -> tuple[bytes, bytes]:
    """The key and the base nonce of a response (RFC 9458, section 4.4, steps 3 to 5)."""
    key = hkdf.extract(exchange.enc + nonce, exchange.secret)
    return hkdf.expand(key, b"key", exchange.aead.key_bytes), hkdf.expand(key, b"nonce", NONCE_BYTES)


def _exchange(context: SenderContext | RecipientContext, suite: Suite, enc: bytes, response_label: bytes) -> Exchange:
    """What is kept for the response (RFC 9458, section 4.4, step 1)."""
    return Exchange(suite.aead, enc, context.export(response_label, response_nonce_bytes(suite.aead)))


def _encode_config(config: KeyConfig) -> bytes:
    if config.kem_id not in kem.KEMS or not 0 <= config.key_id <= 255:
        raise SealingError("A key configuration has a wrong identifier: 0 to 255, of KEM 0x0010 or 0x0020.")
    kem.check_public_key(kem.KEMS[config.kem_id], config.public_key)
    pairs = [each for pair in config.algorithms for each in pair]
    if not 1 <= len(config.algorithms) <= 16383 or not all(0 <= each <= 0xFFFF for each in pairs):
        raise SealingError("A key configuration has wrong algorithms: 1 to 16383 pairs of 16 bits (RFC 9458, 3.1).")
    algorithms = b"".join(each.to_bytes(2, "big") for each in pairs)
    head = bytes([config.key_id]) + config.kem_id.to_bytes(2, "big") + config.public_key
    return head + len(algorithms).to_bytes(2, "big") + algorithms


def _parse_config(data: bytes) -> KeyConfig | None:
    """One configuration; None where its KEM is unknown, and so the length of its public key."""
    cursor = Cursor(data)
    key_id = cursor.take(1, "a key configuration")[0]
    kem_id = int.from_bytes(cursor.take(2, "a key configuration"), "big")
    if kem_id not in kem.KEMS:
        return None
    public_key = cursor.take(kem.KEMS[kem_id].public_key_bytes, "a public key")
    kem.check_public_key(kem.KEMS[kem_id], public_key)
    length = int.from_bytes(cursor.take(2, "a key configuration"), "big")
    if length != cursor.left or length % _PAIR_BYTES or not length:
        raise SealingError("A key configuration has algorithms of a wrong length: 4 to 65532 bytes (RFC 9458, 3.1).")
    pairs = (cursor.take(_PAIR_BYTES, "the algorithms") for _ in range(length // _PAIR_BYTES))
    algorithms = tuple((int.from_bytes(pair[:2], "big"), int.from_bytes(pair[2:], "big")) for pair in pairs)
    return KeyConfig(key_id, kem_id, public_key, algorithms)
