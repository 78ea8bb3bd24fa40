"""Oblivious HTTP in chunks (draft-ietf-ohai-chunked-ohttp-08): requests and responses that are read as they come.

    Request   the header and enc of oblivious_http.py, then chunks sealed by the HPKE context
    Response  nonce (16 or 32), then chunks sealed under a key of its own

chunks.py has the form of the chunks. The last one ends where the HTTP message around it ends.
"""

import secrets
from collections.abc import Sequence

from pomona.private.sealing.aead import Opener, Sealer
from pomona.private.sealing.chunks import CHUNK_BYTES, ChunkOpener, ChunkSealer, HeadedOpener
from pomona.private.sealing.cursor import Cursor
from pomona.private.sealing.oblivious_http import (
    Exchange,
    GatewayKey,
    KeyConfig,
    begin_request,
    read_request_head,
    response_keys,
    response_nonce_bytes,
)

REQUEST_LABEL, RESPONSE_LABEL = b"message/bhttp chunked request", b"message/bhttp chunked response"


def seal_chunked_request(config: KeyConfig) -> tuple[bytes, ChunkSealer, Exchange]:
    """A client's request: its first bytes (39 or 72), what seals its chunks, and what opens its response (section 6.1).

    Raises:
        SealingError: the configuration has no known algorithms, or its public key is none.
    """
    head, context, exchange = begin_request(config, REQUEST_LABEL, RESPONSE_LABEL)
    return head, ChunkSealer(context.seal, delimited=False), exchange


class ChunkedRequestOpener:
    """Opens a request at the gateway, from bytes cut in any way (section 6.1). After an error it opens nothing more."""

    def __init__(self, keys: Sequence[GatewayKey], most_bytes: int = CHUNK_BYTES) -> None:
        """`most_bytes` is the plaintext of a chunk at most."""
        self._keys, self._most_bytes = keys, most_bytes
        self._opener = HeadedOpener(self._head)
        self.exchange: Exchange | None = None
        """What seals the response, once the head of the request has come."""

    @property
    def finished(self) -> bool:
        """Whether the request is known to be whole."""
        return self._opener.finished

    def feed(self, data: bytes) -> list[bytes]:
        """The plaintexts of the chunks that these bytes complete, in order, none of them empty.

        Raises:
            SealingError: the head is refused (see `oblivious_http.decapsulate_request`), or a chunk is.
        """
        return self._opener.feed(data)

    def close(self) -> bytes:
        """Ends the request: the plaintext of its last chunk.

        Raises:
            SealingError: the request is truncated, its last chunk does not open, or it was refused before.
        """
        return self._opener.close()

    def _head(self, cursor: Cursor) -> ChunkOpener:
        context, self.exchange = read_request_head(self._keys, cursor, REQUEST_LABEL, RESPONSE_LABEL)
        return ChunkOpener(context.open, delimited=False, most_bytes=self._most_bytes)


def seal_chunked_response(exchange: Exchange) -> tuple[bytes, ChunkSealer]:
    """A gateway's response: its first bytes (16 or 32), and what seals its chunks (section 6.2)."""
    nonce = secrets.token_bytes(response_nonce_bytes(exchange.aead))
    sealer = Sealer(exchange.aead, *response_keys(exchange, nonce))
    return nonce, ChunkSealer(sealer.seal, delimited=False)


def open_chunked_response(exchange: Exchange, most_bytes: int = CHUNK_BYTES) -> HeadedOpener:
    """What opens the response at the client, from bytes cut in any way (section 6.2).

    `most_bytes` is the plaintext of a chunk at most.
    """

    def head(cursor: Cursor) -> ChunkOpener:
        nonce = cursor.take(response_nonce_bytes(exchange.aead), "the response's nonce")
        opener = Opener(exchange.aead, *response_keys(exchange, nonce))
        return ChunkOpener(opener.open, delimited=False, most_bytes=most_bytes)

    return HeadedOpener(head)
