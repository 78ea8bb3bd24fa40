"""The rules of Binary HTTP (RFC 9292), one by one: what breaks one is neither read nor written."""

import pytest

from pomona.private.sealing import varint
from pomona.private.sealing.binary_http import (
    Informational,
    Request,
    Response,
    decode,
    decode_request,
    decode_response,
    encode,
    encode_content,
    encode_end,
    encode_response_head,
)
from pomona.private.sealing.binary_http_parts import Limits
from pomona.private.sealing.errors import SealingError

GET = Request(b"GET", b"https", b"example.com", b"/hello.txt", ((b"accept-language", b"en, mi"),))
HELLO = Response(
    200,
    ((b"server", b"a"), (b"etag", b"b"), (b"vary", b"c")),
    b"Hello World!",
    informational=(Informational(102), Informational(103, ((b"link", b"x"),))),
)
TRAILED = Response(200, (), b"", ((b"trailer", b"text"),))


def raw(framing, *parts):
    """A message from parts as they are, and lengths in front of those that have one."""
    return bytes([framing]) + b"".join(parts)


def v(data):
    """Bytes with their length in front."""
    return varint.encode(len(data)) + data


def fields_message(lines, framing=1, trailers=False):
    """A response with these bytes as its headers, or trailers, in either framing."""
    section = v(lines) if framing == 1 else lines + b"\0"
    return raw(framing, b"\x40\xc8", (b"\0\0" if trailers else b"") + section)


@pytest.mark.parametrize("framing", [4, 5, 63])
def test_another_framing_is_refused(framing):
    with pytest.raises(SealingError, match="0 to 3"):
        decode(raw(framing, b"\x40\xc8"))


@pytest.mark.parametrize("status", [0, 99, 600, 1 << 40])
@pytest.mark.parametrize("framing", [1, 3])
def test_another_status_is_refused(status, framing):
    with pytest.raises(SealingError, match="100 to 599"):
        decode(raw(framing, varint.encode(status)))
    with pytest.raises(SealingError, match="200 to 599"):
        encode(Response(status), framing == 3)


@pytest.mark.parametrize("status, interim", [(199, ()), (200, (Informational(200),)), (200, (Informational(99),))])
@pytest.mark.parametrize("late", [False, True])
def test_a_status_in_the_wrong_place_is_not_written(status, interim, late):
    with pytest.raises(SealingError, match="A status is"):
        encode(Response(status, informational=interim), late)


def test_a_response_needs_a_final_status():
    for framing in (1, 3):
        with pytest.raises(SealingError, match="truncated"):
            decode(raw(framing, b"\x40\x64", b"\0"))


CONTROL = {
    "no method": (b"", b"https", b"a", b"/"),
    "a space in the method": (b"G T", b"https", b"a", b"/"),
    "no scheme": (b"GET", b"", b"a", b"/"),
    "a digit first": (b"GET", b"1http", b"a", b"/"),
    "a colon in the scheme": (b"GET", b"https:", b"a", b"/"),
    "a space in the authority": (b"GET", b"https", b"a b", b"/"),
    "a user": (b"GET", b"https", b"me@a", b"/"),
    "a line end in the authority": (b"GET", b"https", b"a\n", b"/"),
    "no path": (b"GET", b"https", b"a", b""),
    "a path without a slash": (b"GET", b"https", b"a", b"x"),
    "a star without OPTIONS": (b"GET", b"https", b"a", b"*"),
    "a space in the path": (b"GET", b"https", b"a", b"/ HTTP/1.1"),
    "not ASCII": (b"GET", b"https", b"a", b"/\xc3\xa9"),
    "CONNECT": (b"CONNECT", b"", b"a:443", b""),
}


@pytest.mark.parametrize("control", CONTROL.values(), ids=CONTROL)
def test_wrong_control_data_is_refused(control):
    for framing in (0, 2):
        with pytest.raises(SealingError, match="A request has"):
            decode(raw(framing, *map(v, control)))
        with pytest.raises(SealingError, match="A request has"):
            encode(Request(*control), framing == 2)


def test_options_may_ask_for_everything():
    assert decode(raw(0, *map(v, (b"OPTIONS", b"https", b"a", b"*")))).path == b"*"


LINES = {
    "no name": (b"", b"v"),
    "a space in the name": (b"a b", b"v"),
    "a colon in the name": (b"a:b", b"v"),
    "a byte above ASCII in the name": (b"a\xff", b"v"),
    "a zero in the name": (b"a\0", b"v"),
    "a colon alone": (b":", b"v"),
    "two colons": (b"::a", b"v"),
    "a zero in the value": (b"a", b"v\0v"),
    "LF in the value": (b"a", b"v\nb: c"),
    "CR at the end": (b"a", b"v\r"),
    "a space first": (b"a", b" v"),
    "a tab last": (b"a", b"v\t"),
    "a space alone": (b"a", b" "),
    **{
        name.decode(): (name, b"v")
        for name in (b":method", b":scheme", b":authority", b":path", b":status", b":Status")
    },
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
@pytest.mark.parametrize("trailers", [False, True], ids=["headers", "trailers"])
def test_a_wrong_field_is_refused(line, trailers):
    framings = (1,) if not line[0] else (1, 3)  # without a name it would be the end of a section of framing 3
    for framing in framings:
        with pytest.raises(SealingError, match=r"A (pseudo-)?field"):
            decode(fields_message(v(line[0]) + v(line[1]), framing, trailers))
        with pytest.raises(SealingError, match=r"A (pseudo-)?field"):
            encode(Response(200, **{"trailers" if trailers else "headers": (line,)}), framing == 3)


@pytest.mark.parametrize("framing", [1, 3])
def test_pseudo_fields_come_first_and_not_in_trailers(framing):
    pseudo, ordinary = v(b":x") + v(b"1"), v(b"a") + v(b"b")
    assert decode(fields_message(pseudo + ordinary, framing)).headers == ((b":x", b"1"), (b"a", b"b"))
    for message in (fields_message(ordinary + pseudo, framing), fields_message(pseudo, framing, trailers=True)):
        with pytest.raises(SealingError, match="pseudo-field is out of place"):
            decode(message)


@pytest.mark.parametrize("framing", [1, 3])
def test_names_are_in_lower_case_and_repeat(framing):
    lines = v(b"X-A") + v(b"1") + v(b"x-a") + v(b"2")
    assert decode(fields_message(lines, framing)).headers == ((b"x-a", b"1"), (b"x-a", b"2"))


def test_integers_may_take_more_bytes_than_they_need():
    message = bytes.fromhex("4001 c0000000000000c8 4000 4003 616263 80000000")
    assert decode(message) == Response(200, content=b"abc")


def test_lengths_have_to_fit():
    long = bytes.fromhex("ffffffffffffffff")
    for message in (
        raw(0, long),
        raw(1, b"\x40\xc8", long, b"a"),
        raw(1, b"\x40\xc8", b"\0", b"\5abcd"),
        raw(1, b"\x40\xc8", v(b"\5ab")),
        raw(1, b"\x40\xc8", v(v(b"name") + b"\5ab"), b"ccccc"),
        raw(3, b"\x40\xc8", long, b"a"),
        raw(3, b"\x40\xc8", b"\0", long),
    ):
        with pytest.raises(SealingError, match=r"truncated|too long"):
            decode(message)


@pytest.mark.parametrize("framing", [0, 1, 2, 3])
def test_padding_is_zeros_alone(framing):
    message = encode(GET if framing in (0, 2) else HELLO, framing >= 2)
    assert decode(message + bytes(5000)) == decode(message)
    for padding in (b"\1", bytes(100) + b"\1", b"\1" + bytes(100)):
        with pytest.raises(SealingError, match="padding"):
            decode(message + padding)


FIELD_BYTES = len("accept-languageen, mi")  # the longest section of the three
LIMITS = {
    "control": (Limits(control_bytes=10), GET),
    "lines": (Limits(fields=2), HELLO),
    "field bytes": (Limits(field_bytes=FIELD_BYTES - 1), GET),
    "interim": (Limits(informational=1), HELLO),
    "content": (Limits(content_bytes=11), HELLO),
    "trailers": (Limits(field_bytes=10), TRAILED),
}
ENOUGH = Limits(control_bytes=11, fields=3, field_bytes=FIELD_BYTES, informational=2, content_bytes=12)


@pytest.mark.parametrize("limits, message", LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize("late", [False, True])
def test_limits(read, limits, message, late):
    data = encode(message, late)
    assert decode(data, ENOUGH) == message
    with pytest.raises(SealingError, match=r"too (long|many)"):
        decode(data, limits)
    if late and isinstance(message, Response):
        for pieces in ([data], [data[at : at + 1] for at in range(len(data))]):
            with pytest.raises(SealingError, match=r"too (long|many)"):
                read(pieces, limits)


def test_the_limit_of_content_is_of_all_its_chunks(read):
    data = encode_response_head(200) + encode_content(b"a" * 30) * 2 + encode_end()
    assert decode(data, Limits(content_bytes=60)) == read([data], Limits(content_bytes=60))
    for call in (decode, lambda whole, limits: read([whole], limits)):
        with pytest.raises(SealingError, match="content is too long"):
            call(data, Limits(content_bytes=59))


def test_a_request_is_no_response():
    with pytest.raises(SealingError, match="0 or 2"):
        decode_request(encode(HELLO))
    with pytest.raises(SealingError, match="1 or 3"):
        decode_response(encode(GET))


def test_what_was_said_is_not_in_what_is_printed():
    request = Request(b"POST", b"https", b"a", b"/", ((b"authorization", b"hidden"),), b"hidden", ((b"a", b"hidden"),))
    response = Response(
        200, ((b"a", b"hidden"),), b"hidden", ((b"a", b"hidden"),), (Informational(100, ((b"a", b"hidden"),)),)
    )
    assert "hidden" not in repr(request) and "hidden" not in repr(response)
