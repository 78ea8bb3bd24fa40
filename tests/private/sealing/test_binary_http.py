"""Binary HTTP against the examples of RFC 9292, its rules one by one, and any bytes at all."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
from pomona.private.sealing.binary_http_reader import End, ResponseReader
from pomona.private.sealing.errors import SealingError

GET = Request(
    b"GET",
    b"https",
    b"",
    b"/hello.txt",
    (
        (b"user-agent", b"curl/7.16.3 libcurl/7.16.3 OpenSSL/0.9.7l zlib/1.2.3"),
        (b"host", b"www.example.com"),
        (b"accept-language", b"en, mi"),
    ),
)
GET_KNOWN = bytes.fromhex(
    "0003474554056874747073000a2f68656c6c6f2e747874406c0a757365722d6167656e74346375726c2f372e31362e33206c696263"
    "75726c2f372e31362e33204f70656e53534c2f302e392e376c207a6c69622f312e322e3304686f73740f7777772e6578616d706c65"
    "2e636f6d0f6163636570742d6c616e677561676506656e2c206d690000"
)
GET_LATE = bytes.fromhex(
    "0203474554056874747073000a2f68656c6c6f2e7478740a757365722d6167656e74346375726c2f372e31362e33206c6962637572"
    "6c2f372e31362e33204f70656e53534c2f302e392e376c207a6c69622f312e322e3304686f73740f7777772e6578616d706c652e63"
    "6f6d0f6163636570742d6c616e677561676506656e2c206d6900000000000000000000000000"
)
HELLO = Response(
    200,
    (
        (b"date", b"Mon, 27 Jul 2009 12:28:53 GMT"),
        (b"server", b"Apache"),
        (b"last-modified", b"Wed, 22 Jul 2009 19:15:56 GMT"),
        (b"etag", b'"34aa387-d-1568eb00"'),
        (b"accept-ranges", b"bytes"),
        (b"content-length", b"51"),
        (b"vary", b"Accept-Encoding"),
        (b"content-type", b"text/plain"),
    ),
    b"Hello World! My content includes a trailing CRLF.\r\n",
    informational=(
        Informational(102, ((b"running", b'"sleep 15"'),)),
        Informational(
            103,
            (
                (b"link", b"</style.css>; rel=preload; as=style"),
                (b"link", b"</script.js>; rel=preload; as=script"),
            ),
        ),
    ),
)
HELLO_LATE = bytes.fromhex(
    "0340660772756e6e696e670a22736c656570203135220040 67046c696e6b233c2f7374796c652e6373733e3b2072656c3d7072656c"
    "6f61643b2061733d7374796c65046c696e6b243c2f7363726970742e6a733e3b2072656c3d7072656c6f61643b2061733d73637269"
    "70740040c804646174651d4d6f6e2c203237204a756c20323030392031323a32383a353320474d5406736572766572064170616368"
    "650d6c6173742d6d6f6469666965641d5765642c203232204a756c20323030392031393a31353a353620474d540465746167142233"
    "3461613338372d642d3135363865623030220d6163636570742d72616e6765730562797465730e636f6e74656e742d6c656e677468"
    "02353104766172790f4163636570742d456e636f64696e670c636f6e74656e742d747970650a746578742f706c61696e003348656c"
    "6c6f20576f726c6421204d7920636f6e74656e7420696e636c75646573206120747261696c696e672043524c462e0d0a0000"
)
CHUNKED = Response(200, (), b"This content contains CRLF.\r\n", ((b"trailer", b"text"),))
CHUNKED_KNOWN = bytes.fromhex(
    "0140c8001d5468697320636f6e74656e7420636f6e7461696e732043524c462e0d0a0d07747261696c65720474657874"
)


def test_the_examples_of_rfc_9292():
    assert encode(GET) == GET_KNOWN and decode(GET_KNOWN) == GET
    assert encode(GET, indeterminate=True) + bytes(10) == GET_LATE and decode(GET_LATE) == GET
    assert encode(HELLO, indeterminate=True) == HELLO_LATE and decode(HELLO_LATE) == HELLO
    assert encode(CHUNKED) == CHUNKED_KNOWN and decode(CHUNKED_KNOWN) == CHUNKED


def test_the_examples_truncated_as_far_as_rfc_9292_says():
    for cut in range(3):
        assert decode(GET_KNOWN[: len(GET_KNOWN) - cut]) == GET
    for cut in range(13):
        assert decode(GET_LATE[: len(GET_LATE) - cut]) == GET
    for message in (GET_KNOWN[:-3], GET_LATE[:-13], HELLO_LATE[:-3], CHUNKED_KNOWN[:-1]):
        with pytest.raises(SealingError, match="truncated"):
            decode(message)


def test_the_messages_of_rfc_9458_have_no_headers_at_all():
    request = bytes.fromhex("00034745540568747470730b6578616d706c652e636f6d012f")
    assert decode_request(request) == Request(b"GET", b"https", b"example.com", b"/")
    for framing in (b"\1", b"\3"):
        assert decode_response(framing + b"\x40\xc8") == Response(200)


EVERY_CUT = [encode(GET), encode(CHUNKED), encode(HELLO), encode(HELLO, True), encode(CHUNKED, True), encode(GET, True)]


@pytest.mark.parametrize("whole", EVERY_CUT)
def test_a_message_cut_anywhere_is_refused_or_has_empty_parts_less(whole):
    taken = 0
    for end in range(len(whole)):
        try:
            found = decode(whole[:end])
        except SealingError:
            continue
        taken += 1
        zeros = encode(found, whole[0] >= 2)[end:]
        assert encode(found, whole[0] >= 2) == whole[:end] + zeros and len(zeros) <= 3 and not any(zeros)
    assert 1 <= taken <= 3


FIELDS = st.tuples(
    st.from_regex(rb"[a-z0-9!#$%&'*+.^_`|~-]{1,12}", fullmatch=True),
    st.from_regex(rb"([!-\xff]([ \t!-\xff]{0,20}[!-\xff])?)?", fullmatch=True),
)
SECTIONS = st.lists(FIELDS, max_size=4).map(tuple)
REQUESTS = st.builds(
    Request,
    st.from_regex(rb"[A-Z]{1,8}", fullmatch=True),
    st.sampled_from([b"https", b"http", b"x-y"]),
    st.from_regex(rb"[a-z.:0-9]{0,20}", fullmatch=True),
    st.from_regex(rb"/[!-~]{0,30}", fullmatch=True),
    SECTIONS,
    st.binary(max_size=300),
    SECTIONS,
)
INTERIM = st.builds(Informational, st.integers(100, 199), SECTIONS)
RESPONSES = st.builds(
    Response,
    st.integers(200, 599),
    SECTIONS,
    st.binary(max_size=300),
    SECTIONS,
    st.lists(INTERIM, max_size=3).map(tuple),
)


@settings(max_examples=60, deadline=None)
@given(st.one_of(REQUESTS, RESPONSES), st.booleans(), st.integers(0, 40))
def test_what_is_written_is_read(message, indeterminate, padding):
    assert decode(encode(message, indeterminate) + bytes(padding)) == message


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_refused(data):
    for start in (b"", b"\0\1A\1a\0\1/", b"\1\x40\xc8", b"\2\1A\1a\0\1/", b"\3\x40\xc8"):
        try:
            decode(start + data)
        except SealingError:
            pass


@settings(max_examples=200, deadline=None)
@given(data=st.data(), whole=st.sampled_from(EVERY_CUT))
def test_a_changed_message_is_a_message_or_refused(data, whole, changed, changes):
    try:
        decode(changed(whole, *(data.draw(each) for each in changes)))
    except SealingError:
        pass


# Read as it comes


@settings(max_examples=60, deadline=None)
@given(RESPONSES, st.lists(st.integers(0, 2000), max_size=8), st.integers(0, 9))
def test_a_response_is_read_however_it_is_cut(read, cut, response, places, padding):
    data = encode(response, indeterminate=True) + bytes(padding)
    assert read(cut(data, places)) == response
    assert read([data[at : at + 1] for at in range(len(data))]) == response


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_the_reader_takes_what_the_decoder_takes(read, data, cut, changed, changes):
    whole = data.draw(st.sampled_from([HELLO_LATE, encode(CHUNKED, True), b"\3\x40\xc8\0\2ab\1c\0\0"]))
    whole = changed(whole, *(data.draw(each) for each in changes))
    try:
        wanted = decode(whole)
    except SealingError:
        wanted = None
    try:
        found = read(cut(whole, data.draw(st.lists(st.integers(0, 500), max_size=4))))
    except SealingError:
        found = None
    assert found == (wanted if whole[:1] == b"\3" else None)


def test_a_streamed_response_is_the_same_as_a_whole_one(joined):
    head = encode_response_head(200, [(b"content-type", b"text/event-stream")], [Informational(100)])
    pieces = [head, encode_content(b"one"), encode_content(b""), encode_content(b"two"), encode_end([(b"a", b"b")])]
    reader = ResponseReader()
    told = [reader.feed(piece) for piece in pieces]
    assert told == [
        [Informational(100), Response(200, ((b"content-type", b"text/event-stream"),))],
        [b"one"],
        [],
        [b"two"],
        [End(((b"a", b"b"),))],
    ]
    assert reader.feed(bytes(100)) == [] and reader.close() == []
    assert decode(b"".join(pieces)) == joined([part for parts in told for part in parts])


def test_content_is_given_before_its_chunk_is_whole():
    reader = ResponseReader()
    assert reader.feed(encode_response_head(200) + varint.encode(1000) + b"some") == [Response(200), b"some"]
    assert reader.feed(b"more") == [b"more"]
    with pytest.raises(SealingError, match="truncated"):
        reader.close()


def test_a_refused_response_stays_refused():
    reader = ResponseReader()
    with pytest.raises(SealingError, match="is not 3"):
        reader.feed(b"\1\x40\xc8")
    for call in (lambda: reader.feed(b""), reader.close):
        with pytest.raises(SealingError, match="before"):
            call()


def test_a_closed_response_takes_no_more():
    reader = ResponseReader()
    reader.feed(encode(CHUNKED, indeterminate=True))
    assert reader.close() == []
    with pytest.raises(SealingError, match="closed"):
        reader.feed(b"\0")


def test_wrong_padding_behind_a_streamed_response_is_refused():
    reader = ResponseReader()
    reader.feed(encode(CHUNKED, indeterminate=True))
    with pytest.raises(SealingError, match="padding"):
        reader.feed(b"\0\1")
