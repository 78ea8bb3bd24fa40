"""Oblivious HTTP, whole and in chunks, against the examples of RFC 9458 and of the draft, and what it refuses."""

import dataclasses
import secrets

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.private.sealing import aead, kem
from pomona.private.sealing import chunked_oblivious_http as chunked
from pomona.private.sealing import oblivious_http as plain
from pomona.private.sealing.errors import SealingError
from pomona.private.sealing.oblivious_http import GatewayKey, KeyConfig

REQUEST = bytes.fromhex("00034745540568747470730b6578616d706c652e636f6d012f")
RESPONSE = bytes.fromhex("0140c8")
ALGORITHMS = ((1, 1), (1, 3))

PLAIN = {
    "private": "3c168975674b2fa8e465970b79c8dcf09f1c741626480bd4c6162fc5b6a98e1a",
    "config": "01002031e1f05a740102115220e9af918f738674aec95f54db6e04eb705aae8e79815500080001000100010003",
    "ephemeral": "bc51d5e930bda26589890ac7032f70ad12e4ecb37abb1b65b1256c9c48999c73",
    "enc": "4b28f881333e7c164ffc499ad9796f877f4e1051ee6d31bad19dec96c208b472",
    "sealed": "6374e469135906992e1268c594d2a10c695d858c40a026e7965e7d86b83dd440b2c0185204b4d63525",
    "secret": "62d87a6ba569ee81014c2641f52bea36",
    "nonce": "c789e7151fcba46158ca84b04464910d",
    "key": "5d0172a080e428b16d298c4ea0db620d",
    "base_nonce": "f6bf1aeb88d6df87007fa263",
    "answer": "86f9013e404feea014e7be4a441f234f857fbd",
}
CHUNKED = {
    "private": "1c190d72acdbe4dbc69e680503bb781a932c70a12c8f3754434c67d8640d8698",
    "config": "010020668eb21aace159803974a4c67f08b4152d29bed10735fd08f98ccdd6fe095708000800010001 00010003",
    "ephemeral": "b26d565f3f875ed480d1abced3d665159650c99174fd0b124ac4bda0c64ae324",
    "enc": "8811eb457e100811c40a0aa71340a1b81d804bb986f736f2f566a7199761a032",
    "sealed": [
        "1c2ad24942d4d692563012f2980c8fef437a336b9b2fc938ef77a5834f",
        "1d2e33d8fd25577afe31bd1c79d094f76b6250ae6549b473ecd950501311",
        "001c6c1395d0ef7c1022297966307b8a7f",
    ],
    "secret": "1d4484834ae36102a6ac42a5523454d9",
    "nonce": "bcce7f4cb921309ba5d62edf1769ef09",
    "key": "8209f78f2a1610d80c7125009b00aff0",
    "base_nonce": "fead854635d2d5527d64f546",
    "answer": [
        "1179bf1cc87fa0e2c02de4546945aa3d1e48",
        "12b348b5bd4c594c16b6170b07b475845d1f32",
        "00ed9d8a796617a5b27265f4d73247f639",
    ],
}


def unhex(case):
    return {k: [bytes.fromhex(x) for x in v] if isinstance(v, list) else bytes.fromhex(v) for k, v in case.items()}


@pytest.fixture
def example(monkeypatch):
    """An example's values, with its random numbers in the place of new ones, and its key at client and gateway."""

    def play(case):
        case = unhex(case)
        (config,) = plain.parse_key_configs(len(case["config"]).to_bytes(2, "big") + case["config"])
        assert plain.encode_key_configs([config])[2:] == case["config"]
        key = GatewayKey(config, kem.private_key(kem.X25519, case["private"]))
        assert key.private.public_bytes == config.public_key
        ephemeral = kem.private_key(kem.X25519, case["ephemeral"])
        monkeypatch.setattr(kem, "generate_key", lambda asked: ephemeral)
        monkeypatch.setattr(secrets, "token_bytes", {16: case["nonce"]}.__getitem__)
        return case, key

    return play


def test_the_example_of_rfc_9458(example):
    case, key = example(PLAIN)
    assert key.config == KeyConfig(1, 0x0020, key.private.public_bytes, ALGORITHMS)
    sealed, exchange = plain.encapsulate_request(key.config, REQUEST)
    assert sealed == bytes.fromhex("01002000010001") + case["enc"] + case["sealed"]
    opened, theirs = plain.decapsulate_request([key], sealed)
    assert opened == REQUEST and theirs == exchange
    assert (exchange.enc, exchange.secret) == (case["enc"], case["secret"])
    assert plain.response_keys(exchange, case["nonce"]) == (case["key"], case["base_nonce"])
    answer = plain.encapsulate_response(theirs, RESPONSE)
    assert answer == case["nonce"] + case["answer"]
    assert plain.decapsulate_response(exchange, answer) == RESPONSE


def test_the_example_of_the_chunked_draft(example):
    case, key = example(CHUNKED)
    head, sealer, exchange = chunked.seal_chunked_request(key.config)
    assert head == bytes.fromhex("01002000010001") + case["enc"]
    assert [sealer.chunk(REQUEST[:12]), sealer.chunk(REQUEST[12:]), sealer.chunk(b"", final=True)] == case["sealed"]
    opener = chunked.ChunkedRequestOpener([key])
    assert opener.feed(head) == []
    assert [opener.feed(each) for each in case["sealed"]] == [[REQUEST[:12]], [REQUEST[12:]], []]
    assert opener.close() == b"" and opener.finished and opener.exchange == exchange
    assert exchange.secret == case["secret"]
    assert plain.response_keys(exchange, case["nonce"]) == (case["key"], case["base_nonce"])
    nonce, sealer = chunked.seal_chunked_response(opener.exchange)
    assert nonce == case["nonce"]
    assert [sealer.chunk(RESPONSE[:1]), sealer.chunk(RESPONSE[1:]), sealer.chunk(b"", final=True)] == case["answer"]
    response = chunked.open_chunked_response(exchange)
    assert response.feed(nonce + case["answer"][0]) == [RESPONSE[:1]]
    assert response.feed(case["answer"][1] + case["answer"][2]) == [RESPONSE[1:]]
    assert response.close() == b"" and response.finished


# Key configurations


def test_a_collection_is_read_as_it_was_written(keys):
    configs = tuple(key.config for key in keys)
    data = plain.encode_key_configs(configs)
    assert plain.parse_key_configs(data) == configs
    unknown = bytes.fromhex("05 0012") + bytes(97) + bytes.fromhex("0004 00010001")
    assert plain.parse_key_configs(len(unknown).to_bytes(2, "big") + unknown + data) == configs


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_changed_collection_is_one_or_refused(data, keys, changed, changes):
    whole = plain.encode_key_configs([key.config for key in keys])
    try:
        plain.parse_key_configs(changed(whole, *(data.draw(each) for each in changes)))
    except SealingError:
        pass


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_are_a_collection_or_refused(data):
    for collection in (data, len(data).to_bytes(2, "big") + data, b"\0\x29\7\0\x20" + data):
        try:
            plain.parse_key_configs(collection)
        except SealingError:
            pass


def test_a_collection_with_one_mistake_is_refused_as_a_whole(keys):
    good = plain.encode_key_configs([keys[0].config])
    head, rest = keys[1].config.public_key, bytes.fromhex("0004 00010001")
    for config in (
        b"",
        b"\7",
        b"\7\0",
        b"\7\0\x10" + head[:-1],
        b"\7\0\x10" + head[:-1] + bytes([head[-1] ^ 1]) + rest,  # no point of the curve
        b"\7\0\x10" + head,
        b"\7\0\x10" + head + b"\0\0",
        b"\7\0\x10" + head + b"\0\3\0\1\0",
        b"\7\0\x10" + head + rest + b"\0",
        b"\7\0\x10" + head + rest[:-1],
    ):
        with pytest.raises(SealingError):
            plain.parse_key_configs(good + len(config).to_bytes(2, "big") + config)
    for data in (b"", b"\0", good + b"\0", good[:-1]):
        with pytest.raises(SealingError):
            plain.parse_key_configs(data)


def test_a_wrong_configuration_is_not_written(keys):
    good = keys[0].config
    for change in (
        {"key_id": 256},
        {"key_id": -1},
        {"kem_id": 0x12},
        {"public_key": b"short"},
        {"algorithms": ()},
        {"algorithms": ((1, 65536),)},
        {"algorithms": ((-1, 1),)},
        {"algorithms": ((1, 1),) * 16384},
    ):
        with pytest.raises(SealingError):
            plain.encode_key_configs([dataclasses.replace(good, **change)])
    with pytest.raises(SealingError, match="no key configuration"):
        plain.encode_key_configs([])
    plain.parse_key_configs(plain.encode_key_configs([dataclasses.replace(good, algorithms=((1, 1),) * 1000)]))


def test_a_client_takes_the_first_algorithms_that_it_has(keys):
    config = dataclasses.replace(keys[0].config, algorithms=((2, 1), (1, 99), (1, 3), (1, 1)))
    assert plain.client_suite(config).aead == aead.CHACHA20_POLY1305
    with pytest.raises(SealingError, match="no known algorithms"):
        plain.client_suite(dataclasses.replace(config, algorithms=((2, 1), (1, 99))))


# Requests and responses, whole


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("aead_id", [1, 2, 3])
def test_each_suite_goes_both_ways(keys, number, aead_id):
    config = dataclasses.replace(keys[number].config, algorithms=((1, aead_id),))
    ours = [GatewayKey(dataclasses.replace(key.config, algorithms=((1, aead_id),)), key.private) for key in keys]
    sealed, exchange = plain.encapsulate_request(config, b"request")
    opened, theirs = plain.decapsulate_request(ours, sealed)
    assert opened == b"request"
    answer = plain.encapsulate_response(theirs, b"response")
    assert len(answer) == (16 if aead_id == 1 else 32) + len(b"response") + 16
    assert plain.decapsulate_response(exchange, answer) == b"response"
    assert plain.encapsulate_response(theirs, b"response") != answer

    head, sealer, exchange = chunked.seal_chunked_request(config)
    opener = chunked.ChunkedRequestOpener(ours)
    assert opener.feed(head + sealer.chunk(b"req")) == [b"req"]
    opener.feed(sealer.chunk(b"uest", final=True))
    assert opener.close() == b"uest"
    nonce, sealer = chunked.seal_chunked_response(opener.exchange)
    response = chunked.open_chunked_response(exchange)
    assert response.feed(nonce + sealer.chunk(b"response")) == [b"response"]


def test_a_request_for_another_key_is_refused(keys):
    sealed, _ = plain.encapsulate_request(keys[0].config, REQUEST)
    for others in ([], keys[1:]):
        with pytest.raises(SealingError, match="a key that is not here"):
            plain.decapsulate_request(others, sealed)
    other_kem = sealed[:1] + b"\0\x10" + sealed[3:]
    with pytest.raises(SealingError, match="a key that is not here"):
        plain.decapsulate_request(keys, other_kem)
    impostor = GatewayKey(keys[0].config, kem.generate_key(kem.X25519))
    with pytest.raises(SealingError, match="does not open"):
        plain.decapsulate_request([impostor], sealed)


def test_algorithms_that_are_not_offered_are_refused(keys):
    config = dataclasses.replace(keys[0].config, algorithms=((1, 2),))
    sealed, _ = plain.encapsulate_request(config, REQUEST)
    with pytest.raises(SealingError, match="does not offer"):
        plain.decapsulate_request(keys, sealed)
    unknown = GatewayKey(dataclasses.replace(keys[0].config, algorithms=((1, 99),)), keys[0].private)
    with pytest.raises(SealingError, match="not supported"):
        plain.decapsulate_request([unknown], sealed[:5] + b"\0\x63" + sealed[7:])


def test_a_request_cut_anywhere_or_changed_anywhere_is_refused(keys):
    sealed, _ = plain.encapsulate_request(keys[0].config, REQUEST)
    for end in range(len(sealed)):
        with pytest.raises(SealingError):
            plain.decapsulate_request(keys, sealed[:end])
        with pytest.raises(SealingError):
            plain.decapsulate_request(keys, sealed[:end] + bytes([sealed[end] ^ 0x40]) + sealed[end + 1 :])


def test_a_response_cut_changed_or_to_another_request_is_refused(keys):
    sealed, exchange = plain.encapsulate_request(keys[0].config, REQUEST)
    _, theirs = plain.decapsulate_request(keys, sealed)
    answer = plain.encapsulate_response(theirs, RESPONSE)
    for end in range(len(answer)):
        with pytest.raises(SealingError, match=r"truncated|does not open"):
            plain.decapsulate_response(exchange, answer[:end])
        with pytest.raises(SealingError, match="does not open"):
            plain.decapsulate_response(exchange, answer[:end] + bytes([answer[end] ^ 1]) + answer[end + 1 :])
    _, other = plain.encapsulate_request(keys[0].config, REQUEST)
    with pytest.raises(SealingError, match="does not open"):
        plain.decapsulate_response(other, answer)


def test_whole_and_chunked_do_not_open_each_other(keys):
    sealed, _ = plain.encapsulate_request(keys[0].config, REQUEST)
    opener = chunked.ChunkedRequestOpener(keys)
    opener.feed(sealed[:39] + b"\0" + sealed[39:])
    with pytest.raises(SealingError, match="does not open"):
        opener.close()
    head, sealer, _ = chunked.seal_chunked_request(keys[0].config)
    sealed_chunk = sealer.chunk(REQUEST)
    with pytest.raises(SealingError, match="does not open"):
        plain.decapsulate_request(keys, head + sealed_chunk[1:])


def test_secrets_are_not_in_what_is_printed(keys):
    _, exchange = plain.encapsulate_request(keys[0].config, REQUEST)
    assert "secret" not in repr(exchange) and "private" not in repr(keys[0])


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=100))
def test_any_bytes_are_refused(keys, data):
    _, exchange = plain.encapsulate_request(keys[0].config, REQUEST)
    for start in (b"", b"\7\0\x20\0\1\0\1", b"\x08\0\x10\0\1\0\1"):
        with pytest.raises(SealingError):
            plain.decapsulate_request(keys, start + data)
        opener = chunked.ChunkedRequestOpener(keys)
        with pytest.raises(SealingError):
            opener.feed(start + data)
            opener.close()
    with pytest.raises(SealingError):
        plain.decapsulate_response(exchange, data)
    opener = chunked.open_chunked_response(exchange)
    with pytest.raises(SealingError):
        opener.feed(data)
        opener.close()
