"""What a worker does while it waits: the whole way of a request once, with one of its own making.

What runs for the first time after a fork copies the memory that it touches: no real request has to wait for that.
"""

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Awaitable, Callable

from pomona.data.tokenizer import END
from pomona.private.roles import between
from pomona.private.sealing.answer import AnswerSealer
from pomona.private.sealing.binary_http import Request, encode
from pomona.private.sealing.envelope import IDENTITY_BYTES, NodeKey, Recipient, open_request, seal_request
from pomona.private.sealing.kem import P256, generate_key
from pomona.private.sealing.mlkem import MlKemKey
from pomona.private.sealing.padding import padded
from pomona.serve.messages import Finished, Prompted, Ready, Said, Submit, framed, size_of

Answer = Callable[[between.Request, bytes, AnswerSealer, socket.socket], Awaitable[str]]
"""What the worker does with an opened request."""


async def rehearse(answer: Answer, model: str, context: int, mlkem: MlKemKey) -> None:
    """Seals a request to a key that nobody else has, opens it, has it answered, with an engine that says two tokens."""
    key, identity = generate_key(P256), os.urandom(IDENTITY_BYTES)
    asked = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2, "stream": True}
    headers = ((b"content-type", b"application/json"),)
    request = Request(b"POST", b"https", b"node", b"/v1/chat/completions", headers, json.dumps(asked).encode())
    sealed, _ = seal_request([Recipient(identity, key.public_bytes, mlkem.public_bytes)], padded(encode(request)))
    plaintext, sealer = open_request(NodeKey(identity, key, mlkem), sealed)
    ours, theirs = socket.socketpair()
    with theirs:
        engine = asyncio.create_task(_play(ours))
        told = between.Request(b"", Ready(1, context, "", 0, 0.0), 0)
        await answer(told, plaintext, sealer, theirs)
    await engine


async def _play(connection: socket.socket) -> None:
    """The node's end, and the engine behind it."""
    reader, writer = await asyncio.open_unix_connection(sock=connection)
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            told = between.to_node(await reader.readexactly(size_of(await reader.readexactly(4))))
            if isinstance(told, Submit):
                id = told.id
                for event in (Prompted(id, 0), Said(id, [END + 1, END + 2]), Finished(id, "length")):
                    writer.write(framed(event))
    writer.close()
