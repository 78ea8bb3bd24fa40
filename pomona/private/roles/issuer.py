"""The issuer: knows accounts, and how many tokens each took today; never what a token is spent on."""

import asyncio
import base64
import contextlib
import dataclasses
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pomona.api.errors import ApiError
from pomona.api.keys import Keys
from pomona.private.client.buying import ISSUE_PATH
from pomona.private.client.reading import read_log
from pomona.private.client.trust import LogTrust
from pomona.private.roles.http import body, every, plain
from pomona.private.roles.publishing import Publisher, publish
from pomona.private.tokens.batches import BATCH_REQUEST_MEDIA_TYPE, BATCH_RESPONSE_MEDIA_TYPE
from pomona.private.tokens.directory import DIRECTORY_MEDIA_TYPE, encode_directory
from pomona.private.tokens.errors import QuotaExceeded, TokenError
from pomona.private.tokens.issuer import (
    Issuer,
    SigningKey,
    drop_key,
    issue,
    issuer_directory,
    prepare_keys,
    published_key,
)
from pomona.private.tokens.privacy_pass import encode_token_key, token_key_id
from pomona.private.tokens.quota import open_quota
from pomona.private.transparency.leaves import IssuerKey, Leaf

DIRECTORY_PATH = "/.well-known/private-token-issuer-directory"
AGAIN_SECONDS = 900.0
LARGEST_BATCH = 1 << 19


@dataclasses.dataclass(frozen=True)
class IssuerSettings:
    """What an issuer is started with."""

    folder: Path
    name: str
    """As challenges and the log name it."""
    accounts: Keys
    per_day_tokens: int
    log: LogTrust
    publisher: Publisher


def build_issuer(settings: IssuerSettings, clock: Callable[[], float] = time.time) -> Starlette:
    """The application of an issuer. It issues nothing before its keys are in the log."""
    quota = open_quota(settings.folder / "quota.sqlite", settings.per_day_tokens)
    state: list[Issuer] = []

    async def token_request(request: Request) -> Response:
        try:
            account = settings.accounts.who(request.headers.get("authorization")).name
        except ApiError as error:
            return plain(error.status, error.message)
        if not state:
            return plain(503, "the keys are not in the log yet")
        if request.headers.get("content-type") != BATCH_REQUEST_MEDIA_TYPE:
            return plain(415, f"the media type is {BATCH_REQUEST_MEDIA_TYPE}")
        batch = await body(request, LARGEST_BATCH)
        try:
            answer = await asyncio.to_thread(issue, state[0], account, batch or b"", clock())
        except TokenError as error:
            return plain(400, str(error))
        except QuotaExceeded as error:
            return plain(429, str(error))
        return Response(answer, headers={"cache-control": "no-store"}, media_type=BATCH_RESPONSE_MEDIA_TYPE)

    async def directory(request: Request) -> Response:
        if not state:
            return plain(503, "the keys are not in the log yet")
        return Response(encode_directory(issuer_directory(state[0], ISSUE_PATH)), media_type=DIRECTORY_MEDIA_TYPE)

    def renew() -> None:
        keys = prepare_keys(settings.folder / "keys", clock())
        known = read_log(settings.log, settings.folder / "log", clock())
        for key in keys:
            if known.is_revoked(_leaf(settings.name, key)):
                drop_key(settings.folder / "keys", key)
        keys = prepare_keys(settings.folder / "keys", clock())
        wanted = [_leaf(settings.name, key) for key in keys]
        missing = [leaf for leaf in wanted if leaf not in known.written]
        if missing:
            publish(settings.publisher, missing)
        state[:] = [Issuer(keys, quota)]

    async def renewed() -> bool:
        await asyncio.to_thread(renew)
        return True

    @contextlib.asynccontextmanager
    async def life(app: Starlette) -> AsyncGenerator[None, None]:
        try:
            async with every(AGAIN_SECONDS, renewed):
                yield
        finally:
            quota.database.close()

    routes = [
        Route(ISSUE_PATH, token_request, methods=["POST"]),
        Route(DIRECTORY_PATH, directory, methods=["GET"]),
    ]
    return Starlette(routes=routes, lifespan=life)


def _leaf(name: str, key: SigningKey) -> Leaf:
    public = published_key(key)
    return IssuerKey(
        not_before=public.not_before,
        expires=public.expires,
        issuer=name,
        token_key=base64.b64encode(encode_token_key(public.public_key)).decode(),
        token_key_id=token_key_id(public.public_key).hex(),
    )
