"""Two issuers' keys, a challenge, a few tokens, the published vectors, and processes that use the same file at once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

import pomona
from pomona.private.tokens import blind_rsa
from pomona.private.tokens.batches import decode_batch_request, encode_batch_response
from pomona.private.tokens.issuance import finish_batch, prepare_batch
from pomona.private.tokens.privacy_pass import IssuerKey, TokenChallenge, TokenResponse

DAY = 86400
NOW = 1_800_000_000 // DAY * DAY + 3600.0
"""An hour into a day."""


@pytest.fixture(scope="session")
def now():
    return NOW


@pytest.fixture(scope="session")
def private_key():
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture(scope="session")
def other_private_key():
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture(scope="session")
def key(private_key):
    return IssuerKey(private_key.public_key(), int(NOW) - 3600, int(NOW) - 3600 + 2 * DAY)


@pytest.fixture(scope="session")
def other_key(other_private_key, key):
    return IssuerKey(other_private_key.public_key(), key.not_before, key.expires)


@pytest.fixture(scope="session")
def challenge():
    return TokenChallenge("issuer.example", bytes(range(32)), ("gateway.example", "gateway.example:8443"))


@pytest.fixture(scope="session")
def sign(private_key):
    """The issuer's half without a quota: the answer to a batch."""

    def answer(body, signer=private_key):
        return encode_batch_response(
            [TokenResponse(blind_rsa.blind_sign(signer, one.blinded_msg)) for one in decode_batch_request(body)]
        )

    return answer


@pytest.fixture(scope="session")
def issued(key, challenge, sign):
    """A batch of three as it went: the request's body, the answer, the tokens."""
    body, pending = prepare_batch(3, challenge, key)
    response = sign(body)
    return body, response, finish_batch(pending, response)


@pytest.fixture(scope="session")
def token(issued):
    return issued[2][0]


@pytest.fixture(scope="session")
def vectors():
    """Reads a file of published vectors."""
    return lambda name: json.loads((Path(__file__).parent / "vectors" / name).read_text())


@pytest.fixture
def start():
    """Starts `python -c script arguments`; what still runs at the end is killed."""
    running = []

    def process(script, *arguments):
        paths = [str(Path(pomona.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        one = subprocess.Popen(
            [sys.executable, "-c", script, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stdin=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )
        running.append(one)
        return one

    yield process
    for one in running:
        one.kill()
        one.wait()
        one.stdin.close()
        one.stdout.close()


@pytest.fixture
def race(start):
    """Two processes of one script, given the same lines at the same time: what each answered, line by line.

    The script says `ready`, then one line for each that it reads from its standard input.
    """

    def run(script, lines, *arguments):
        racers = [start(script, *arguments) for _ in range(2)]
        assert [one.stdout.readline() for one in racers] == ["ready\n"] * 2
        answers = []
        for line in lines:
            for one in racers:
                one.stdin.write(f"{line}\n")
                one.stdin.flush()
            answers.append(tuple(one.stdout.readline().strip() for one in racers))
        return answers

    return run
