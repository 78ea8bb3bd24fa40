"""Damaged bytes for every parser of the private cloud that reads from the network: as many of each as one likes.

    make bench-fuzz-private

Each parser gets valid messages that were changed: bits turned, bytes cut out, repeated, exchanged for those of another
message, lengths set to extremes, and bytes at random. Each input ends in a value, or in the one exception of its room.
Anything else stops the bench: another exception, an input that takes a second, or a process that grows by 256 MiB.

The last line is JSON: inputs of each, parsers, accepted, the slowest input in milliseconds, megabytes grown.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import sys
import time
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import rsa

from pomona.private.attestation.bundle import Bundle, Claims, ReleaseProof, decode_bundle, encode_bundle
from pomona.private.evidence.errors import AttestationError
from pomona.private.evidence.processors import certificates, configfs, snp, tdx
from pomona.private.evidence.tpm import structures as tpm
from pomona.private.evidence.tpm.templates import ATTESTATION_KEY, ENDORSEMENT_KEY_RSA
from pomona.private.evidence.tpm.wire import CC, RS_PASSWORD, Bank, Command, read_response, whole
from pomona.private.sealing import answer, binary_http, envelope, kem, mlkem, oblivious_http, padding
from pomona.private.sealing.binary_http_reader import ResponseReader
from pomona.private.sealing.chunked_oblivious_http import (
    ChunkedRequestOpener,
    open_chunked_response,
    seal_chunked_request,
    seal_chunked_response,
)
from pomona.private.sealing.errors import SealingError
from pomona.private.tokens import auth_scheme, batches, directory, issuance, privacy_pass
from pomona.private.tokens.errors import TokenError
from pomona.private.transparency import checkpoint, leaves, merkle, note, tiles
from pomona.private.transparency.errors import TransparencyError

ROOT = Path(__file__).parents[1]
RECORDED = ROOT / "tests" / "private" / "evidence" / "recordings"
SLOW_SECONDS, MOST_GROWTH = 1.0, 256 << 20
EXTREMES = [b"\0", b"\xff", b"\xff\xff", b"\x7f\xff\xff\xff", b"\xff" * 4, b"\xc0\0\0\0\xff\xff\xff\xff", b"\xff" * 8]


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--inputs", type=int, default=100_000)
    options.add_argument("--only", help="a part of the parsers' names")
    chosen = options.parse_args()
    names = [name for name in parsers() if not chosen.only or chosen.only in name]
    began = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        told = pool.starmap(fuzz, [(name, chosen.inputs) for name in names], chunksize=1)
    for name, each in zip(names, told):
        print(f"{name}: {each['accepted']} accepted, slowest {each['slowest_ms']:.0f} ms", file=sys.stderr)
    print(
        json.dumps(
            {
                "inputs_of_each": chosen.inputs,
                "parsers": len(names),
                "accepted": sum(each["accepted"] for each in told),
                "slowest_ms": round(max(each["slowest_ms"] for each in told), 1),
                "grown_mb": max(each["grown_mb"] for each in told),
                "seconds": round(time.perf_counter() - began),
            }
        )
    )


def fuzz(name, inputs):
    """One parser, with so many inputs."""
    parse, refuses, seeds = parsers()[name]
    for seed in seeds:
        parse(seed)  # what is changed is valid before
    rng = random.Random(name)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    accepted, slowest = 0, 0.0
    for _ in range(inputs):
        data = damaged(rng, seeds)
        began = time.perf_counter()
        try:
            parse(data)
            accepted += 1
        except refuses:
            pass
        except BaseException:
            print(f"{name}: {data[:4096].hex()}", file=sys.stderr, flush=True)
            raise
        slowest = max(slowest, time.perf_counter() - began)
        assert slowest < SLOW_SECONDS, f"{name} took {slowest:.1f} s: {data[:4096].hex()}"
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - grown
    assert grown * 1024 < MOST_GROWTH, f"{name} grew by {grown >> 10} MiB"
    return {"accepted": accepted, "slowest_ms": 1000 * slowest, "grown_mb": grown >> 10}


def damaged(rng, seeds):
    """A valid message after one to four changes; now and then bytes at random."""
    if rng.random() < 0.02:
        return rng.randbytes(rng.randrange(400))
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(7):
            case 0:
                if data:
                    data[at % len(data)] ^= 1 << rng.randrange(8)
            case 1:
                del data[at : at + rng.choice((1, 2, 7, 64))]
            case 2:
                data[at:at] = data[at : at + rng.choice((1, 2, 31, 500))]
            case 3:
                other = rng.choice(seeds)
                start = rng.randrange(len(other) + 1)
                data[at : at + 16] = other[start : start + 16]
            case 4:
                extreme = rng.choice(EXTREMES)
                data[at : at + len(extreme)] = extreme
            case 5:
                del data[at:]
            case 6:
                data[at:at] = rng.randbytes(rng.choice((1, 3, 40)))
    return bytes(data)


def parsers():
    """(what parses, what it may raise, valid messages) by name."""
    return {**sealing(), **tokens(), **transparency(), **evidence()}


def streamed(make):
    """A reader of a stream, as a function of all bytes, which come in two pieces."""

    def parse(data):
        reader, middle = make(), len(data) // 2
        reader.feed(data[:middle])
        reader.feed(data[middle:])
        reader.close()

    return parse


def sealing():
    headers = ((b"content-type", b"application/json"), (b"x", b"y" * 40))
    request = binary_http.Request(b"POST", b"https", b"node", b"/v1/chat/completions", headers, b'{"a": 1}' * 20)
    response = binary_http.Response(200, headers, b"hello" * 50, ((b"late", b"1"),))
    late = [binary_http.encode(each, True) for each in (request, response)]
    known = [padding.padded(binary_http.encode(each)) for each in (request, response)]
    private = kem.private_key(kem.X25519, bytes(range(32)))
    config = oblivious_http.KeyConfig(7, kem.X25519.id, private.public_bytes, ((1, 1), (1, 3)))
    gateway = [oblivious_http.GatewayKey(config, private)]
    head, sealer, exchange = seal_chunked_request(config)
    chunked = head + sealer.chunk(b"a" * 300) + sealer.chunk(b"b" * 30, final=True)
    nonce, answering = seal_chunked_response(exchange)
    answered = nonce + answering.chunk(b"c" * 300) + answering.chunk(b"", final=True)
    node = envelope.NodeKey(b"n" * 32, kem.generate_key(kem.P256), mlkem.MlKemKey.generate())
    recipient = envelope.Recipient(node.identity, node.private.public_bytes, node.mlkem.public_bytes)
    sealed, keys = envelope.seal_request([recipient], padding.padded(known[0]))
    _, said = envelope.open_request(node, sealed)
    reply = said.head() + said.chunk(b"hello" * 9) + said.chunk(b"", final=True)
    single, _ = oblivious_http.encapsulate_request(config, known[0])
    make = {
        "binary_http": (binary_http.decode, [*late, *known]),
        "binary_http_stream": (streamed(ResponseReader), [late[1]]),
        "ohttp_key_configs": (oblivious_http.parse_key_configs, [oblivious_http.encode_key_configs([config] * 3)]),
        "ohttp_request": (lambda data: oblivious_http.decapsulate_request(gateway, data), [single]),
        "ohttp_chunked_request": (streamed(lambda: ChunkedRequestOpener(gateway)), [chunked]),
        "ohttp_chunked_response": (streamed(lambda: open_chunked_response(exchange)), [answered]),
        "envelope_header": (lambda data: (envelope.node_identities(data), envelope.replay_digest(data)), [sealed]),
        "envelope": (lambda data: envelope.open_request(node, data), [sealed]),
        "envelope_answer": (streamed(lambda: answer.AnswerOpener(keys)), [reply]),
    }
    return {name: (parse, SealingError, seeds) for name, (parse, seeds) in make.items()}


def tokens():
    private = rsa.generate_private_key(65537, 2048)
    key = privacy_pass.IssuerKey(private.public_key(), 0, 1 << 40)
    challenge = privacy_pass.TokenChallenge("issuer.example", b"", ("gateway.example",))
    body, _ = issuance.prepare_batch(2, challenge, key)
    token = privacy_pass.Token(b"n" * 32, b"c" * 32, b"k" * 32, b"a" * 256)
    answers = batches.encode_batch_response([privacy_pass.TokenResponse(b"s" * 256), None])
    offered = auth_scheme.encode_www_authenticate(auth_scheme.OfferedChallenge(challenge, key.public_key, 60))
    published = directory.IssuerDirectory("/token-request", (directory.DirectoryKey(key.public_key, 5),))
    text = lambda parse: lambda data: parse(data.decode("latin-1"))
    make = {
        "challenge": (privacy_pass.decode_challenge, [privacy_pass.encode_challenge(challenge)]),
        "token": (privacy_pass.decode_token, [privacy_pass.encode_token(token)]),
        "token_key": (privacy_pass.decode_token_key, [privacy_pass.encode_token_key(key.public_key)]),
        "token_batch": (batches.decode_batch_request, [body]),
        "token_batch_answer": (batches.decode_batch_response, [answers]),
        "authorization": (
            text(auth_scheme.decode_authorization),
            [auth_scheme.encode_authorization(token).encode()],
        ),
        "www_authenticate": (text(auth_scheme.decode_www_authenticate), [offered.encode()]),
        "issuer_directory": (directory.decode_directory, [directory.encode_directory(published)]),
    }
    return {name: (parse, TokenError, seeds) for name, (parse, seeds) in make.items()}


def transparency():
    dates, digest = {"not_before": 5, "expires": 50}, "ab" * 32
    entries = [
        leaves.Release(**dates, name="m", version="1", image=digest, model=digest, profile="tpm"),
        leaves.Directory(**dates, nodes=(leaves.NodeEntry(digest, "http://a", digest),), part=1, parts=1),
        leaves.Revocation(**dates, leaf=digest, reason="because"),
    ]
    encoded = [leaves.encode(each) for each in entries]
    signer = note.generate_signer("log.example")
    verifier = note.verifier_of(signer)
    hashes = [merkle.leaf_hash(each) for each in encoded]
    signed = checkpoint.cosign(
        checkpoint.sign_checkpoint(checkpoint.Checkpoint("log.example", 3, merkle.root_of_hashes(hashes)), signer),
        signer,
        1000,
    )
    own = note.verifier_of(signer, note.COSIGNATURE)
    root = merkle.root_of_hashes(hashes)
    node = lambda level, index: merkle.root_of_hashes(hashes[index << level : (index + 1) << level])
    path = b"".join(merkle.inclusion_proof(1, 3, node))

    def prove(data):
        cut = [data[start : start + 32] for start in range(0, len(data), 32)]
        merkle.verify_inclusion(1, 3, hashes[1], cut, root)

    make = {
        "leaf": (leaves.decode, encoded),
        "checkpoint": (
            lambda data: checkpoint.open_checkpoint(data, "log.example", verifier, (own,)),
            [note.encode_note(signed)],
        ),
        "entry_bundle": (tiles.decode_bundle, [tiles.encode_bundle(encoded)]),
        "inclusion_proof": (prove, [path]),
    }
    return {name: (parse, TransparencyError, seeds) for name, (parse, seeds) in make.items()}


def evidence():
    clock, banks = tpm.ClockInfo(5, 1, 2, True), (Bank(0x0B, (4, 7, 13)),)
    attested = [
        tpm.Attest(0xFF544347, b"q" * 34, b"e" * 32, clock, 9, each)
        for each in (tpm.QuoteInfo(banks, b"d" * 32), tpm.CreationInfo(b"n" * 34, b"h" * 32))
    ]
    created = tpm.CreationData(banks, b"d" * 32, 1, 0x0B, b"p" * 34, b"q" * 34, b"")
    public = [tpm.pack_public(each) for each in (ATTESTATION_KEY, ENDORSEMENT_KEY_RSA)]
    lines = [json.loads(line) for line in (RECORDED / "tpm_node_life.jsonl").read_text().splitlines()]
    told = [bytes.fromhex(line["response"]) for line in lines]
    quoting = Command(CC["Quote"], (1,), (RS_PASSWORD,))
    of_quote = [data for data in told if data[:2] == b"\x80\x02"]
    claims = Claims(b"\4" * 65, b"m" * 1184, b"r" * 32, 5, 50)
    bundle = encode_bundle(Bundle(claims, ReleaseProof(b"{}", 3, (b"h" * 32,), b"note")))
    quotes = [path.read_bytes() for path in sorted(RECORDED.glob("tdx_quote*.bin"))]
    key = (RECORDED / "snp_vcek_milan.der").read_bytes()
    entry = configfs.ENTRY
    table = entry.pack(b"g" * 16, 2 * entry.size, 5) + entry.pack(bytes(16), 0, 0) + b"hello"
    chain = tdx.read_quote(quotes[0]).pck_chain
    make = {
        "bundle": (decode_bundle, [bundle]),
        "tpm_public": (lambda data: whole(data, tpm.read_public, "it"), public),
        "tpm_attest": (lambda data: whole(data, tpm.read_attest, "it"), [tpm.pack_attest(each) for each in attested]),
        "tpm_creation": (lambda data: whole(data, tpm.read_creation_data, "it"), [tpm.pack_creation_data(created)]),
        "tpm_signature": (
            lambda data: whole(data, tpm.read_signature, "it"),
            [tpm.pack_signature(tpm.EcdsaSignature(b"r" * 32, b"s" * 32))],
        ),
        "tpm_response": (lambda data: read_response(data, quoting), of_quote[:1]),
        "tdx_quote": (tdx.read_quote, quotes),
        "pck_chain": (lambda data: certificates.read_pem_chain(data, ("a", "b", "c")), [chain]),
        "snp_report": (snp.read_report, [(RECORDED / "snp_report_milan.bin").read_bytes()]),
        "snp_key": (snp.read_endorsement_key, [key]),
        "snp_table": (configfs.read_certificate_table, [table]),
    }
    return {name: (parse, AttestationError, seeds) for name, (parse, seeds) in make.items()}


if __name__ == "__main__":
    main()
