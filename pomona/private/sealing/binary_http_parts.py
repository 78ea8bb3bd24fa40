"""The parts that Binary HTTP messages are made of, each checked as it is read (RFC 9292, section 3)."""

import dataclasses
import re

from pomona.private.sealing import varint
from pomona.private.sealing.cursor import Cursor
from pomona.private.sealing.errors import SealingError

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110, section 5.6.2
_SCHEME = re.compile(rb"[A-Za-z][A-Za-z0-9+\-.]*")  # RFC 3986, section 3.1
_VISIBLE = re.compile(rb"[!-~]*")
_NOT_IN_VALUES = re.compile(rb"[\0\r\n]|^[ \t]|[ \t]\Z")  # RFC 9113, section 8.2.1
_CONTROL_NAMES = frozenset((b":method", b":scheme", b":authority", b":path", b":status"))

Field = tuple[bytes, bytes]
"""A name and a value."""
Fields = tuple[Field, ...]


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a parser takes at most; RFC 9292 sets no bounds below 2^62."""

    control_bytes: int = 8192
    """Of each of method, scheme, authority and path."""
    fields: int = 128
    """Lines of one section."""
    field_bytes: int = 1 << 16
    """Names and values of one section, together."""
    informational: int = 8
    content_bytes: int = 1 << 26


LIMITS = Limits()
NO_LIMITS = Limits(fields=varint.LARGEST, field_bytes=varint.LARGEST)
"""For what is written."""


class Section:
    """Field lines as they come, each checked (RFC 9292, section 3.6)."""

    def __init__(self, limits: Limits = LIMITS, trailers: bool = False) -> None:
        self._limits, self._trailers = limits, trailers
        self._bytes, self._ordinary = 0, False
        self._lines: list[Field] = []

    def check_room(self, length: int) -> None:
        """Checks the length of what comes next before it is read.

        Raises:
            SealingError: the section would be above its limit.
        """
        if self._bytes + length > self._limits.field_bytes:
            raise SealingError(f"A field section is too long: {self._limits.field_bytes} bytes at most.")

    def add(self, name: bytes, value: bytes) -> None:
        """Takes one line.

        Raises:
            SealingError: there are too many; or the name is no token, or one of the control data; or a pseudo-field
                stands behind others or in trailers; or the value has a zero, a line end, or white space at an end.
        """
        name = name.lower()
        pseudo = name.startswith(b":")
        if len(self._lines) >= self._limits.fields:
            raise SealingError(f"A field section has too many lines: {self._limits.fields} at most.")
        if not _TOKEN.fullmatch(name[1:] if pseudo else name) or name in _CONTROL_NAMES:
            raise SealingError("A field has a name that it cannot have: it is a token (RFC 9110, 5.1; RFC 9292, 3.6).")
        if pseudo and (self._ordinary or self._trailers):
            raise SealingError("A pseudo-field is out of place: they come first, and not in trailers (RFC 9292, 3.6).")
        if _NOT_IN_VALUES.search(value):
            raise SealingError(
                "A field has a value that it cannot have: no NUL, CR, LF or outer space (RFC 9113, 8.2.1)."
            )
        self._ordinary |= not pseudo
        self._bytes += len(name) + len(value)
        self._lines.append((name, value))

    def fields(self) -> Fields:
        """All of them."""
        return tuple(self._lines)


def check_control(method: bytes, scheme: bytes, authority: bytes, path: bytes) -> None:
    """Checks the control data of a request (RFC 9292, section 3.4; RFC 9113, section 8.3.1).

    CONNECT, which has neither scheme nor path, is refused: it serves no purpose here (RFC 9292, section 6).

    Raises:
        SealingError: a part is not what it can be.
    """
    if not _TOKEN.fullmatch(method) or not _SCHEME.fullmatch(scheme):
        raise SealingError("A request has no method or no scheme: each has to be there, as a token (RFC 9113, 8.3.1).")
    if not _VISIBLE.fullmatch(authority) or b"@" in authority:
        raise SealingError("A request has an authority that is none: visible ASCII without @ (RFC 9113, 8.3.1).")
    if not _VISIBLE.fullmatch(path) or not (path.startswith(b"/") or (path == b"*" and method == b"OPTIONS")):
        raise SealingError("A request has a path that is none: it begins with a slash (RFC 9113, 8.3.1).")


def check_informational(count: int, limits: Limits) -> None:
    """Checks that one more interim response may come.

    Raises:
        SealingError: it would be one too many.
    """
    if count >= limits.informational:
        raise SealingError(f"A response has too many interim responses: {limits.informational} at most.")


def check_content(length: int, limits: Limits) -> None:
    """Checks the length of content before it is read.

    Raises:
        SealingError: it is above the limit.
    """
    if length > limits.content_bytes:
        raise SealingError(f"The content is too long: {limits.content_bytes} bytes at most.")


def read_status(cursor: Cursor) -> int:
    """A status, 100 to 599.

    Raises:
        SealingError: it is another number, or the message ends.
        MoreNeeded: it may still come.
    """
    status = cursor.varint("a status")
    if not 100 <= status <= 599:
        raise SealingError("A status is none of 100 to 599 (RFC 9292, 3.5).")
    return status


def read_name(cursor: Cursor, section: Section) -> bytes:
    """A field's name, unchecked; empty at the zero that ends a section of indeterminate length.

    Raises:
        SealingError: the section is too long, or the message ends.
        MoreNeeded: the rest may still come.
    """
    length = cursor.varint("the length of a field name")
    section.check_room(length)
    return cursor.take(length, "a field name")


def read_value(cursor: Cursor, section: Section, name: bytes) -> None:
    """Reads the value that belongs to a name, and adds both to their section.

    Raises:
        SealingError: they are no field that may stand there, the section is too long, or the message ends.
        MoreNeeded: the rest may still come.
    """
    length = cursor.varint("the length of a field value")
    section.check_room(len(name) + length)
    section.add(name, cursor.take(length, "a field value"))
