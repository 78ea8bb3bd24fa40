"""The issuer's directory: RFC 9578, section 4."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.private.tokens.auth_scheme import encode_base64url
from pomona.private.tokens.directory import (
    MOST_DIRECTORY_BYTES,
    DirectoryKey,
    IssuerDirectory,
    decode_directory,
    encode_directory,
    preferred_key,
)
from pomona.private.tokens.errors import TokenError
from pomona.private.tokens.privacy_pass import encode_token_key

URI = "https://issuer.example.net/request"


def test_the_directory_of_section_4(key, other_key):
    directory = IssuerDirectory(URI, (DirectoryKey(key.public_key, 1686913811), DirectoryKey(other_key.public_key)))
    first, second = (encode_base64url(encode_token_key(one.public_key)) for one in (key, other_key))
    assert json.loads(encode_directory(directory)) == {
        "issuer-request-uri": URI,
        "token-keys": [
            {"token-type": 2, "token-key": first, "not-before": 1686913811},
            {"token-type": 2, "token-key": second},
        ],
    }
    assert decode_directory(encode_directory(directory)) == directory
    assert preferred_key(directory, 1686913810.9) == other_key.public_key
    assert preferred_key(directory, 1686913811) == key.public_key
    with pytest.raises(TokenError, match="no key"):
        preferred_key(IssuerDirectory(URI, directory.token_keys[:1]), 0)
    with pytest.raises(TokenError, match="no key"):
        preferred_key(IssuerDirectory(URI, ()), 0)


def test_what_is_not_known_is_ignored(key):
    own = {"token-type": 2, "token-key": encode_base64url(encode_token_key(key.public_key)), "more": [{}]}
    others = [{"token-type": 1, "token-key": "AAAA"}, {"token-type": 56788, "token-key": "no base64", "not-before": -5}]
    content = json.dumps({"issuer-request-uri": "/request", "token-keys": [*others, own], "x": None}).encode()
    assert decode_directory(content) == IssuerDirectory("/request", (DirectoryKey(key.public_key),))


def test_what_is_no_directory(key):
    def written(uri=URI, keys=None, **fields):
        own = {"token-type": 2, "token-key": encode_base64url(encode_token_key(key.public_key)), **fields}
        return json.dumps({"issuer-request-uri": uri, "token-keys": [own] if keys is None else keys}).encode()

    assert decode_directory(written())
    for wrong in (
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"issuer-request-uri": "/"}',
        b'{"token-keys": []}',
        b"\xff\xfe",
        b'{"issuer-request-uri": "\xff", "token-keys": []}',
        b'{"issuer-request-uri": "\\ud800", "token-keys": []}',
        b"[" * 60000,
        b'{"a":' * 10000,
        b'{"x": ' + b"[" * 60000 + b', "issuer-request-uri": "/", "token-keys": []}',
        written() + b"x",
        written()[:-1],
        written(uri=""),
        written(uri="a b"),
        written(uri="höst"),
        written(uri="a\n"),
        written(uri="a" * 2049),
        written(uri=5),
        written(keys={}),
        written(keys=[5]),
        written(keys=[{}]),
        written(**{"token-type": "2"}),
        written(**{"token-type": 2.5}),
        written(**{"token-key": 5}),
        written(**{"token-key": ""}),
        written(**{"token-key": "AAAA"}),
        written(**{"token-key": encode_base64url(encode_token_key(key.public_key))[:-1]}),
        written(**{"not-before": -1}),
        written(**{"not-before": 1.5}),
        written(**{"not-before": 1 << 53}),
        written(**{"not-before": 10**400}),
        written(**{"not-before": "5"}),
        written() + b" " * MOST_DIRECTORY_BYTES,
    ):
        with pytest.raises(TokenError):
            decode_directory(wrong)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_bytes_are_refused_or_read(key, data):
    valid = encode_directory(IssuerDirectory(URI, (DirectoryKey(key.public_key, 5),)))
    content = bytearray(data.draw(st.just(valid) | st.binary(max_size=60)))
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), max_size=3)):
        if at < len(content):
            content[at] = value
    try:
        found = decode_directory(bytes(content))
    except TokenError:
        return
    assert decode_directory(encode_directory(found)) == found
