"""HTTP messages as bytes (RFC 9292, `message/bhttp`): what is inside an encrypted request and its answer.

    0 or 2   method, scheme, authority, path           headers  content  trailers  zeros
    1 or 3   (status 1xx, headers) ...  status         headers  content  trailers  zeros

0 and 1 have the lengths of their parts in front of them; 2 and 3 end their parts with a zero, so that they can be
written before their length is known. A message may end before its headers, content or trailers, where all that follows
is empty. Field names are in lower case: what is read is made so. The content is not compared with a content-length.
"""

import dataclasses
from collections.abc import Iterable

from pomona.private.sealing import varint
from pomona.private.sealing.binary_http_parts import (
    LIMITS,
    NO_LIMITS,
    Field,
    Fields,
    Limits,
    Section,
    check_content,
    check_control,
    check_informational,
    read_name,
    read_status,
    read_value,
)
from pomona.private.sealing.cursor import Cursor
from pomona.private.sealing.errors import SealingError

MEDIA_TYPE = "message/bhttp"
REQUEST, RESPONSE, LATE_REQUEST, LATE_RESPONSE = range(4)
"""Framing indicators (RFC 9292, section 3.3); the last two are of indeterminate length."""


@dataclasses.dataclass(frozen=True)
class Request:
    """A request. Of a scheme like https, the authority is empty where a `host` field tells it."""

    method: bytes
    scheme: bytes
    authority: bytes
    path: bytes
    headers: Fields = dataclasses.field(default=(), repr=False)
    content: bytes = dataclasses.field(default=b"", repr=False)
    trailers: Fields = dataclasses.field(default=(), repr=False)


@dataclasses.dataclass(frozen=True)
class Informational:
    """An interim response: its status is 100 to 199 (RFC 9292, section 3.5.1)."""

    status: int
    headers: Fields = dataclasses.field(default=(), repr=False)


@dataclasses.dataclass(frozen=True)
class Response:
    """A response: its status is 200 to 599."""

    status: int
    headers: Fields = dataclasses.field(default=(), repr=False)
    content: bytes = dataclasses.field(default=b"", repr=False)
    trailers: Fields = dataclasses.field(default=(), repr=False)
    informational: tuple[Informational, ...] = ()


def encode(message: Request | Response, indeterminate: bool = False) -> bytes:
    """A message with all of its parts and no padding, of known length or of indeterminate length.

    Raises:
        SealingError: a status, a name or a value is not one.
    """
    late = indeterminate
    if isinstance(message, Request):
        control = (message.method, message.scheme, message.authority, message.path)
        check_control(*control)
        head = varint.encode(LATE_REQUEST if late else REQUEST) + b"".join(map(_prefixed, control))
        head += _section(message.headers, late)
    elif late:
        head = encode_response_head(message.status, message.headers, message.informational)
    else:
        head = varint.encode(RESPONSE)
        head += b"".join(
            _status(each.status, 100, 199) + _section(each.headers, late) for each in message.informational
        )
        head += _status(message.status, 200, 599) + _section(message.headers, late)
    content = encode_content(message.content) + b"\0" if late else _prefixed(message.content)
    return head + content + _section(message.trailers, late, trailers=True)


def encode_response_head(
    status: int, headers: Iterable[Field] = (), informational: Iterable[Informational] = ()
) -> bytes:
    """The beginning of a response of indeterminate length, up to its headers: `encode_content` and `encode_end` follow.

    Raises:
        SealingError: a status, a name or a value is not one.
    """
    head = varint.encode(LATE_RESPONSE)
    head += b"".join(_status(each.status, 100, 199) + _section(each.headers, True) for each in informational)
    return head + _status(status, 200, 599) + _section(headers, True)


def encode_content(data: bytes) -> bytes:
    """A piece of the content of a message of indeterminate length (RFC 9292, section 3.2); nothing for nothing."""
    return _prefixed(data) if data else b""


def encode_end(trailers: Iterable[Field] = ()) -> bytes:
    """The end of a response of indeterminate length, behind its content.

    Raises:
        SealingError: a name or a value is not one.
    """
    return b"\0" + _section(trailers, True, trailers=True)


def decode(data: bytes, limits: Limits = LIMITS) -> Request | Response:
    """A whole message of any of the four kinds.

    Raises:
        SealingError: it is not one, or is truncated, or is above a limit, or its padding is not zeros.
    """
    cursor = Cursor(data)
    framing = cursor.varint("the framing indicator")
    if framing > LATE_RESPONSE:
        raise SealingError("A framing indicator is none of 0 to 3 (RFC 9292, 3.3).")
    late = framing >= LATE_REQUEST
    if framing in (REQUEST, LATE_REQUEST):
        method, scheme, authority, path = (_read_control(cursor, limits) for _ in range(4))
        check_control(method, scheme, authority, path)
        message: Request | Response = Request(method, scheme, authority, path)
    else:
        interim: list[Informational] = []
        while (status := read_status(cursor)) < 200:
            check_informational(len(interim), limits)
            interim.append(Informational(status, _read_section(cursor, late, limits)))
        message = Response(status, informational=tuple(interim))
    headers = _read_section(cursor, late, limits)
    content = _read_content(cursor, late, limits)
    trailers = _read_section(cursor, late, limits, trailers=True)
    cursor.skip_zeros()
    return dataclasses.replace(message, headers=headers, content=content, trailers=trailers)


def decode_request(data: bytes, limits: Limits = LIMITS) -> Request:
    """A whole request.

    Raises:
        SealingError: it is not one; see `decode`.
    """
    message = decode(data, limits)
    if not isinstance(message, Request):
        raise SealingError("A response came where a request has to be: its framing indicator is 0 or 2.")
    return message


def decode_response(data: bytes, limits: Limits = LIMITS) -> Response:
    """A whole response.

    Raises:
        SealingError: it is not one; see `decode`.
    """
    message = decode(data, limits)
    if not isinstance(message, Response):
        raise SealingError("A request came where a response has to be: its framing indicator is 1 or 3.")
    return message


def _read_section(cursor: Cursor, late: bool, limits: Limits, trailers: bool = False) -> Fields:
    section = Section(limits, trailers)
    if cursor.at_end():
        return ()
    if late:
        while name := read_name(cursor, section):
            read_value(cursor, section, name)
        return section.fields()
    lines = Cursor(cursor.take(cursor.varint("the length of a field section"), "a field section"))
    while not lines.at_end():
        name = read_name(lines, section)
        read_value(lines, section, name)  # an empty name is refused there
    return section.fields()


def _read_content(cursor: Cursor, late: bool, limits: Limits) -> bytes:
    if cursor.at_end():
        return b""
    pieces: list[bytes] = []
    length = 0
    while piece := cursor.varint("the length of the content"):
        length += piece
        check_content(length, limits)
        pieces.append(cursor.take(piece, "the content"))
        if not late:
            break
    return b"".join(pieces)


def _read_control(cursor: Cursor, limits: Limits) -> bytes:
    length = cursor.varint("the control data")
    if length > limits.control_bytes:
        raise SealingError(f"A part of the control data is too long: {limits.control_bytes} bytes at most.")
    return cursor.take(length, "the control data")


def _section(fields: Iterable[Field], late: bool, trailers: bool = False) -> bytes:
    section = Section(NO_LIMITS, trailers)
    for name, value in fields:
        section.add(name, value)
    lines = b"".join(_prefixed(name) + _prefixed(value) for name, value in section.fields())
    return lines + b"\0" if late else _prefixed(lines)


def _status(status: int, least: int, most: int) -> bytes:
    if not least <= status <= most:
        raise SealingError(f"A status is {status}: it is {least} to {most} there (RFC 9292, 3.5).")
    return varint.encode(status)


def _prefixed(data: bytes) -> bytes:
    return varint.encode(len(data)) + data
