"""A response of indeterminate length (RFC 9292, section 3.2), read as it comes: how an answer is streamed."""

import dataclasses
from collections.abc import Callable

from pomona.private.sealing.binary_http import LATE_RESPONSE, Informational, Response
from pomona.private.sealing.binary_http_parts import (
    LIMITS,
    Fields,
    Limits,
    Section,
    check_content,
    check_informational,
    read_name,
    read_status,
    read_value,
)
from pomona.private.sealing.cursor import Cursor, MoreNeeded
from pomona.private.sealing.errors import SealingError


@dataclasses.dataclass(frozen=True)
class End:
    """The end of the content, and the trailers behind it. Only padding follows."""

    trailers: Fields = ()


Part = Informational | Response | bytes | End
"""Interim responses; status and headers of the final one; pieces of its content, none of them empty; the end."""


class ResponseReader:
    """Reads one response from bytes cut in any way; each part is given as soon as it is there.

    Only after `close` it is known to be whole. After an error nothing more is read.
    """

    def __init__(self, limits: Limits = LIMITS) -> None:
        self._limits = limits
        self._cursor = Cursor()
        self._step: Callable[[], Part | None] | None = self._framing
        self._section, self._name, self._in_trailers = Section(limits), b"", False
        self._status = self._interim = 0
        self._chunk_left = self._content_bytes = 0
        self._broken = False

    def feed(self, data: bytes) -> list[Part]:
        """The parts that these bytes complete, in order.

        Raises:
            SealingError: they cannot be of a response of indeterminate length, or one above the limits; or the response
                was refused or closed before.
        """
        if self._broken or self._step is None:
            raise SealingError("The response was refused or closed before: nothing more of it is read.")
        self._cursor.feed(data)
        return self._run()

    def close(self) -> list[Part]:
        """Says that the response ends here: the parts of it that may be left out where they are empty.

        Raises:
            SealingError: it is truncated elsewhere (RFC 9292, section 3.8), or was refused before.
        """
        if self._broken:
            raise SealingError("The response was refused before: nothing more of it is read.")
        self._cursor.end()
        return self._run()

    def _run(self) -> list[Part]:
        self._broken = True  # until this call returns
        parts: list[Part] = []
        while self._step is not None:
            start = self._cursor.position
            try:
                part = self._step()
            except MoreNeeded:
                self._cursor.position = start
                break
            if part is not None:
                parts.append(part)
        self._broken = False
        return parts

    # Each step reads one thing and says which is next. It changes nothing before all of that thing is there.

    def _framing(self) -> None:
        if self._cursor.varint("the framing indicator") != LATE_RESPONSE:
            raise SealingError("A framing indicator is not 3: that of a response of indeterminate length.")
        self._step = self._control

    def _control(self) -> None:
        self._status = read_status(self._cursor)
        if self._status < 200:
            check_informational(self._interim, self._limits)
            self._interim += 1
        self._step = self._fields

    def _fields(self) -> Part | None:
        ended = self._cursor.at_end()
        self._section = Section(self._limits, self._in_trailers)
        if ended:
            return self._end_of_fields()
        self._step = self._field_name
        return None

    def _field_name(self) -> Part | None:
        self._name = read_name(self._cursor, self._section)
        if not self._name:
            return self._end_of_fields()
        self._step = self._field_value
        return None

    def _field_value(self) -> None:
        read_value(self._cursor, self._section, self._name)
        self._step = self._field_name

    def _end_of_fields(self) -> Part:
        fields = self._section.fields()
        if self._in_trailers:
            self._step = self._padding
            return End(fields)
        if self._status < 200:
            self._step = self._control
            return Informational(self._status, fields)
        self._step = self._content
        return Response(self._status, fields)

    def _content(self) -> None:
        self._step = self._end_of_content if self._cursor.at_end() else self._length

    def _length(self) -> None:
        length = self._cursor.varint("the length of the content")
        check_content(self._content_bytes + length, self._limits)
        self._content_bytes += length
        self._chunk_left = length
        self._step = self._piece if length else self._end_of_content

    def _piece(self) -> bytes:
        piece = self._cursor.take(max(1, min(self._chunk_left, self._cursor.left)), "the content")
        self._chunk_left -= len(piece)
        if not self._chunk_left:
            self._step = self._length
        return piece

    def _end_of_content(self) -> None:
        self._in_trailers = True
        self._step = self._fields

    def _padding(self) -> None:
        if self._cursor.at_end():
            self._step = None
        else:
            self._cursor.skip_zeros()
