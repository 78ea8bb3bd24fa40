"""The server's life: start the engine, listen, answer until somebody ends it, finish what was begun."""

import asyncio
import dataclasses
import sys
import time
from collections.abc import Callable

from pomona.api.app import build_app
from pomona.api.counters import Counters
from pomona.api.keys import Keys
from pomona.api.service import Service
from pomona.api.template import Template
from pomona.data.tokenizer import Tokenizer
from pomona.listen.server import Server, address_of, bound
from pomona.serve.grammar import Grammars
from pomona.serve.messages import Start
from pomona.serve.remote import Remote

DRAIN_SECONDS = 60


@dataclasses.dataclass(frozen=True)
class Listening:
    """What is served, where, to whom."""

    start: Start
    name: str
    tokenizer: Tokenizer
    template: Template
    keys: Keys
    host: str = "127.0.0.1"
    port: int = 8000
    most_waiting: int = 64


def run_server(
    listening: Listening, say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True)
) -> None:
    """Serves until SIGINT or SIGTERM; then finishes what was begun, for a minute at most.

    Raises:
        UserError: the model cannot be served, or the address is taken.
    """
    asyncio.run(_serve(listening, say))


async def _serve(listening: Listening, say: Callable[[str], None]) -> None:
    began = time.monotonic()
    sock = bound(listening.host, listening.port)
    remote = Remote(listening.start)
    service = Service(
        name=listening.name,
        adapters=tuple(listening.start.adapters),
        tokenizer=listening.tokenizer,
        link=remote,
        template=listening.template,
        keys=listening.keys,
        counters=Counters(remote),
        grammars=Grammars(listening.tokenizer),
        most_waiting=listening.most_waiting,
        created=int(time.time()),
    )
    try:
        with sock:
            ready = await remote.start()
            address = address_of(sock)
            say(f"{', '.join(service.models())} at {address}, ready after {time.monotonic() - began:.1f} s")
            say(f"  {ready.slots} slots of {ready.context} tokens, {ready.memory_bytes / 1e9:.2f} GB, {ready.device}")
            say(f"  a chat in the browser: {address}/")
            say(f"  {_curl(address, listening)}")
            await Server(build_app(service), service.drain, DRAIN_SECONDS).serve([sock])
    finally:
        await remote.stop()


def _curl(address: str, listening: Listening) -> str:
    key = ' -H "Authorization: Bearer $KEY"' if listening.keys.principals else ""
    body = f'{{"model": "{listening.name}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    return f"curl {address}/v1/chat/completions{key} -d '{body}'"
