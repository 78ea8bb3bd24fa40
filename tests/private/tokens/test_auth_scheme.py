"""The scheme PrivateToken: the header values of RFC 9577, the grammar around them, and what is refused."""

import base64

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pomona.private.tokens.auth_scheme import (
    MOST_AUTHORIZATION_CHARACTERS,
    MOST_CHALLENGE_CHARACTERS,
    OfferedChallenge,
    decode_authorization,
    decode_base64url,
    decode_www_authenticate,
    encode_authorization,
    encode_base64url,
    encode_www_authenticate,
)
from pomona.private.tokens.errors import TokenError
from pomona.private.tokens.privacy_pass import encode_challenge, encode_token, encode_token_key


@pytest.mark.parametrize("number", range(3))
def test_headers_of_rfc_9577(vectors, number):
    vector = vectors("rfc9577.json")["headers"][number]
    ours = [one for one in vector["challenges"] if one["type"] == 2]
    found = decode_www_authenticate(vector["www_authenticate"])
    assert [
        {
            "type": 2,
            "token_key": encode_token_key(one.token_key).hex(),
            "challenge": encode_challenge(one.challenge).hex(),
            "max_age": one.max_age_seconds,
        }
        for one in found
    ] == ours
    assert len(ours) == (1, 1, 0)[number]


def test_a_challenge_goes_and_comes(challenge, key):
    for offered in (
        OfferedChallenge(challenge, key.public_key, 3600),
        OfferedChallenge(challenge, key.public_key),
        OfferedChallenge(challenge, None, 0),
    ):
        assert decode_www_authenticate(encode_www_authenticate(offered)) == [offered]
    value = encode_www_authenticate(OfferedChallenge(challenge, key.public_key, 3600))
    text = base64.urlsafe_b64encode(encode_challenge(challenge)).decode()
    assert value.startswith(
        f'PrivateToken challenge="{text}", token-key="MIIBUjA9BgkqhkiG9w0BAQowMKANMAsGCWCGSAFlAwQCAq'
    )
    assert value.endswith('", max-age="3600"')


def test_a_token_goes_and_comes(token):
    value = encode_authorization(token)
    assert value == f'PrivateToken token="{base64.urlsafe_b64encode(encode_token(token)).decode()}"'
    assert decode_authorization(value) == token


def test_the_ways_to_write_a_token(token):
    text = encode_base64url(encode_token(token))
    assert "=" not in text
    for value in (
        f'privatetoken TOKEN="{text}"',
        f"PRIVATETOKEN token={text}",
        f'PrivateToken   token \t= "{text}" ',
        f'PrivateToken token="{text}", realm="a, b", extra=1',
        f'PrivateToken realm="a \\"quoted\\" PrivateToken token=x", token="{text}"',
        f'PrivateToken token="\\{text[0]}{text[1:]}"',
        f'PrivateToken\ttoken="{text}"',
        f', , PrivateToken token="{text}" , ,',
    ):
        assert decode_authorization(value) == token


def test_what_is_no_authorization(token):
    text = encode_base64url(encode_token(token))
    value = f'PrivateToken token="{text}"'
    for wrong in (
        "",
        ",",
        "PrivateToken",
        "PrivateToken ",
        "PrivateToken token",
        "PrivateToken token=",
        'PrivateToken token=""',
        f"PrivateToken {text}",
        f"Bearer {text}",
        f'Bearer token="{text}"',
        f'token="{text}"',
        f'PrivateTokentoken="{text}"',
        f'PrivateToken token="{text}',
        f'PrivateToken token={text}"',
        f'PrivateToken token="{text}" realm="x"',
        f'PrivateToken token="{text}", token="{text}"',
        f'PrivateToken token="{text}", TOKEN="{text}"',
        f'{value}, PrivateToken token="{text}"',
        f"Basic abc, {value}",
        f'PrivateToken token="{text}="',
        f'PrivateToken token=" {text}"',
        f'PrivateToken token="{text[:-4]}"',
        f'PrivateToken token="{text[:-1]}"',
        f'PrivateToken token="{text}AAAA"',
        f'PrivateToken token="{"_" + text[1:]}"',
        f'PrivateToken other="{text}"',
        f'PrivateToken token="{text}", \x00',
        f'PrivateToken token="{text}", é=1',
        f'PrivateToken token="{text[:-2]}é="',
        f'PrivateToken token="{text}", x="{"a" * MOST_AUTHORIZATION_CHARACTERS}"',
    ):
        with pytest.raises(TokenError):
            decode_authorization(wrong)


def test_other_schemes_and_other_types_are_ignored(challenge):
    value = encode_www_authenticate(OfferedChallenge(challenge, None))
    grease = 'PrivateToken challenge="nJ4hAAAA", token-key="AAAA"'
    for others in (
        'Basic realm="x"',
        "Negotiate",
        "Negotiate abc==",
        "Negotiate abc",
        "Negotiate a87421000492aa874209af8bc028/+==",
        'Digest qop="auth, auth-int", nonce=abc, algorithm=MD5',
        grease,
        "PrivateToken realm=x",
    ):
        for together in (f"{others}, {value}", f"{value}, {others}", f"{others},{value},,{others}"):
            assert decode_www_authenticate(together) == [OfferedChallenge(challenge, None)]
        assert decode_www_authenticate(others) == []
    assert decode_www_authenticate(f"{value}, {value}") == [OfferedChallenge(challenge, None)] * 2
    assert decode_www_authenticate("") == []


def test_what_is_no_challenge(challenge, key):
    good = encode_base64url(encode_challenge(challenge))
    short = encode_base64url(encode_challenge(challenge)[:-1])
    own = encode_base64url(encode_token_key(key.public_key))
    for wrong in (
        f'PrivateToken challenge="{short}"',
        f'PrivateToken challenge="{good}", challenge="{good}"',
        f'PrivateToken challenge="{good}", token-key="{own[:-4]}"',
        f'PrivateToken challenge="{good}", token-key=""',
        f'PrivateToken challenge="{good}" token-key="{own}"',
        f'PrivateToken challenge="{good}", max-age=-1',
        f'PrivateToken challenge="{good}", max-age=1.5',
        f'PrivateToken challenge="{good}", max-age=""',
        f'PrivateToken challenge="{good}", max-age=2147483648',
        f'PrivateToken challenge="{good}", max-age="١"',
        f'PrivateToken challenge="{good}", max-age={"9" * 5000}',
        'PrivateToken challenge="not base64url"',
        f'PrivateToken challenge="{good}", "',
        f'"PrivateToken" challenge="{good}"',
        "PrivateToken ==",
        "@",
        "a" * (MOST_CHALLENGE_CHARACTERS + 1),
    ):
        with pytest.raises(TokenError):
            decode_www_authenticate(wrong)


@pytest.mark.parametrize(
    "text", ["A", "AA", "AAA", "AB==", "AAB=", "AA=A", "====", "AAAA====", "AA+/", "AA\n==", "AAé="]
)
def test_base64url_is_written_in_one_way(text):
    with pytest.raises(TokenError):
        decode_base64url(text)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=40))
def test_base64url_goes_and_comes(content):
    assert decode_base64url(encode_base64url(content)) == content


PIECES = st.sampled_from(
    [
        "PrivateToken",
        "Basic",
        " ",
        "\t",
        ",",
        "=",
        '"',
        "\\",
        "a",
        "token",
        "challenge",
        "max-age",
        "AAIA",
        "==",
        "é",
        "\0",
    ]
)


@pytest.mark.parametrize("decode", [decode_authorization, decode_www_authenticate], ids=lambda one: one.__name__)
@settings(max_examples=150, deadline=None)
@given(value=st.lists(PIECES, max_size=12).map("".join) | st.text(max_size=40))
@example("a " * 2000)
@example('a="' * 1000)
@example("a=" + '"\\' * 1000)
@example("a" + " " * 3000 + "=")
def test_any_text_is_refused_or_read(decode, value):
    try:
        decode(value)
    except TokenError:
        pass
