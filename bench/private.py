"""The private cloud beside a plain server of the same model, all roles on this machine.

    make bench-private

* The time to a first token: a small model, one user, in turns; the difference is what issuer, relay, gateway, node and
  the sealing cost. Tokens are in the wallet and the log was read within the minute, as a second question finds them.
* Tokens a second of eight users at AFM-on-device's shape (random weights, 3.7 bits): 256 tokens in, 128 out, in turns.
* A node's bundle against every clause; tokens signed by the issuer in a second, over HTTP.

The last line is JSON.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import httpx2
import numpy as np
from random_models import write_ours

from pomona.model.presets import AFM_DEVICE
from pomona.private.attestation.case import open_case
from pomona.private.attestation.clauses import judge
from pomona.private.client.asking import Asker
from pomona.private.client.buying import ISSUE_PATH, signing_key
from pomona.private.client.proxy import request_of
from pomona.private.client.trust import read_trust
from pomona.private.tokens.batches import BATCH_REQUEST_MEDIA_TYPE
from pomona.private.tokens.issuance import finish_batch, prepare_batch

ROOT = Path(__file__).parents[1]
PLAIN, CLOUD = 8390, 8710
USERS, PROMPT, HEARD = 8, 256, 128


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--questions", type=int, default=60)
    options.add_argument("--only", choices=("first", "rate"))
    chosen = options.parse_args()
    found = {}
    if chosen.only != "rate":
        with both(model("small", dataclasses.replace(AFM_DEVICE, num_layers=2))) as config:
            found |= asyncio.run(first_token(config, chosen.questions))
    if chosen.only != "first":
        with both(model("3.7", AFM_DEVICE)) as config:
            found |= asyncio.run(rate(config, chosen.rounds))
    print(json.dumps(found))


def model(name, architecture):
    """A device file with random weights, made where it is not there yet."""
    path = ROOT / "runs" / "decode" / f"{name}.pom"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        draft = path.with_name(f"draft-{path.name}")
        draft.unlink(missing_ok=True)
        write_ours(draft, "3.7", architecture)
        draft.rename(path)
    return path


@contextlib.contextmanager
def both(path):
    """A plain server and a private cloud with one node, of the same file; only one is asked at a time."""
    folder = Path(tempfile.mkdtemp())
    pomona = [sys.executable, "-m", "pomona.cli.main"]
    sizes = ["--slots", str(USERS), "--context", str(PROMPT + HEARD + 64)]
    plain = [*pomona, "serve", str(path), "--name", path.stem, "--port", str(PLAIN), *sizes, "--private"]
    cloud = [*pomona, "private", "up", str(path), "--folder", str(folder / "p"), "--nodes", "1", "--port", str(CLOUD)]
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        for command in (plain, [*cloud, *sizes]):
            process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL))
            stack.callback(process.terminate)
            if command is not plain:
                assert b"nodes serve" in process.stdout.readline(), "the private cloud did not come up"
        while True:
            with contextlib.suppress(OSError):
                if urllib.request.urlopen(f"http://127.0.0.1:{PLAIN}/health", timeout=5).status == 200:
                    break
            time.sleep(0.1)
        yield folder / "p" / "client.json"


def body(name, seed, length, count):
    """A completion of a random prompt, streamed; every token is an event."""
    rng = np.random.default_rng(seed)
    prompt = [1, *rng.integers(3, 299, length - 1).tolist()]
    asked = {"model": name, "prompt": prompt, "max_tokens": count, "temperature": 0, "stream": True}
    return json.dumps(asked | {"stream_options": {"include_usage": True}}).encode()


async def heard(pieces):
    """Seconds to the first event, and the last event, of a stream's pieces."""
    began, wait, rest, last = time.perf_counter(), None, b"", None
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data: {"):
                wait = wait or time.perf_counter() - began
                last = json.loads(line[6:])
    assert last and "error" not in last, last
    return wait, last["usage"]["completion_tokens"]


async def directly(client, content):
    began = time.perf_counter()
    address = f"http://127.0.0.1:{PLAIN}/v1/completions"
    async with client.stream("POST", address, content=content, headers={"content-type": "application/json"}) as answer:
        opened = time.perf_counter() - began
        wait, count = await heard(answer.aiter_raw())
    return opened + wait, count


async def privately(asker, name, content):
    began = time.perf_counter()
    async with asker.ask(request_of("/v1/completions", content), name) as answer:
        opened = time.perf_counter() - began
        assert answer.status == 200
        wait, count = await heard(answer.pieces)
    return opened + wait, count


async def first_token(config, questions):
    """One user, in turns; then bundles and tokens."""
    async with asking(config) as (asker, client):
        name = "small"
        waits = {"direct": [], "private": []}
        for number in range(questions + 5):
            content = body(name, number, 32, 4)
            pairs = [("direct", directly(client, content)), ("private", privately(asker, name, content))]
            for who, asked in pairs if number % 2 else reversed(pairs):
                waits[who].append((await asked)[0])
        direct, private = (np.array(waits[who][5:]) for who in ("direct", "private"))  # the first ones read and buy
        known = await asker.known()
        bundles = await asker.bundles(known, list(known.nodes))
        return {
            "ttft_overhead_ms": round(1000 * float(np.median(private - direct)), 1),
            "ttft_ms_direct": round(1000 * float(np.median(direct)), 1),
            "ttft_ms_private": round(1000 * float(np.median(private)), 1),
            "verify_bundle_ms": round(1000 * verified(next(iter(bundles.values())), known), 2),
            "tokens_issued_per_second": round(await issued(asker, client, known), 1),
            "attested": "tpm emulator" if shutil.which("swtpm") else "nothing",
        }


@contextlib.asynccontextmanager
async def asking(config):
    async with Asker(read_trust(config), config.parent / "client") as asker, httpx2.AsyncClient(timeout=600) as client:
        yield asker, client


def verified(bundle, known):
    """Seconds to read a bundle and run every clause; what is known of the log is fresh each time."""
    seconds = []
    for _ in range(200):
        fresh = dataclasses.replace(known)  # nothing of it is worked out yet
        began = time.perf_counter()
        judge(open_case(bundle, fresh))
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


async def issued(asker, client, known):
    """Tokens a second of one batch, blinding and checking by the client left out."""
    count = 200
    key = signing_key(known, asker.trust.issuer_name, time.time())
    content, batch = prepare_batch(count, asker._purse.challenge, key)
    headers = {"content-type": BATCH_REQUEST_MEDIA_TYPE, "authorization": f"Bearer {asker.trust.account}"}
    began = time.perf_counter()
    answer = await client.post(asker.trust.issuer + ISSUE_PATH, content=content, headers=headers)
    seconds = time.perf_counter() - began
    assert len(finish_batch(batch, answer.content)) == count
    return count / seconds


async def rate(config, rounds):
    """Eight users at once, in turns."""
    async with asking(config) as (asker, client):
        found = {"direct": [], "private": []}
        await privately(asker, "3.7", body("3.7", 0, 8, 2))
        for number in range(rounds):
            contents = [body("3.7", (number, user), PROMPT, HEARD) for user in range(USERS)]
            crowds = {
                "direct": lambda contents=contents: [directly(client, content) for content in contents],
                "private": lambda contents=contents: [privately(asker, "3.7", content) for content in contents],
            }
            for who in sorted(crowds, reverse=bool(number % 2)):
                began = time.perf_counter()
                told = await asyncio.gather(*crowds[who]())
                found[who].append(sum(count for _, count in told) / (time.perf_counter() - began))
                print(f"{who}: {found[who][-1]:.2f} tokens/s", file=sys.stderr, flush=True)
        ratios = [a / b for a, b in zip(found["private"], found["direct"])]
        return {
            "throughput_ratio_vs_direct": round(statistics.median(ratios), 3),
            "tokens_per_second_direct": round(statistics.median(found["direct"]), 2),
            "tokens_per_second_private": round(statistics.median(found["private"]), 2),
            "cores": os.cpu_count(),
        }


if __name__ == "__main__":
    main()
