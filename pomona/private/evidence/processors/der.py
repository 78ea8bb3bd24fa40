"""Strict DER (ITU-T X.690, section 10) as far as vendors' certificate extensions need it.

Definite lengths in their shortest form and one-byte tags only: whatever else there is gets refused.
"""

import dataclasses

from pomona.private.evidence.errors import AttestationError

INTEGER, BIT_STRING, OCTET_STRING, OBJECT_IDENTIFIER, ENUMERATED, IA5_STRING, SEQUENCE = 2, 3, 4, 6, 10, 22, 0x30


@dataclasses.dataclass(frozen=True)
class Element:
    """One tag with its value, and where the value starts in the bytes it was read from."""

    tag: int
    value: bytes
    start: int


def read_element(data: bytes, offset: int = 0) -> Element:
    """The element at `offset`; `AttestationError` unless its header is strict DER and its value lies within `data`."""
    header = data[offset : offset + 2]
    if len(header) != 2 or header[0] & 0x1F == 0x1F:
        raise AttestationError("A DER element is cut off or has a tag of several bytes.")
    tag, length, start = header[0], header[1], offset + 2
    if length >= 0x80:
        octets = data[start : start + length - 0x80]
        length, start = int.from_bytes(octets, "big"), start + length - 0x80
        if not 1 <= len(octets) <= 4 or octets[0] == 0 or length < 0x80:
            raise AttestationError("A DER length has to be definite, in its shortest form and of 4 bytes at most.")
    if start + length > len(data):
        raise AttestationError(f"A DER element of {length} bytes reaches beyond its {len(data)} bytes.")
    return Element(tag, data[start : start + length], start)


def read_only(data: bytes, tag: int) -> bytes:
    """The value of the one element that `data` holds, which has to have this tag; else `AttestationError`."""
    element = read_element(data)
    if element.tag != tag or element.start + len(element.value) != len(data):
        raise AttestationError(f"A DER value is not one element with the tag {tag:#04x}.")
    return element.value


def read_sequence(data: bytes) -> list[Element]:
    """The elements in the value of a SEQUENCE, one after the other to its end; else `AttestationError`."""
    elements, offset = [], 0
    while offset < len(data):
        elements.append(read_element(data, offset))
        offset = elements[-1].start + len(elements[-1].value)
    return elements


def integer_of(value: bytes, maximum: int) -> int:
    """The number from 0 to `maximum` in an INTEGER's or ENUMERATED's value (section 8.3); else `AttestationError`."""
    if not value or len(value) > 9 or value[0] >= 0x80 or (len(value) > 1 and value[0] == 0 and value[1] < 0x80):
        raise AttestationError("A DER integer has to be in its shortest form and not negative.")
    number = int.from_bytes(value, "big")
    if number > maximum:
        raise AttestationError(f"A DER integer is above {maximum}.")
    return number


def ia5_of(value: bytes) -> str:
    """The text in the value of an IA5String or another string, printable ASCII alone; else `AttestationError`."""
    if not all(0x20 <= octet < 0x7F for octet in value):
        raise AttestationError("A DER string has characters that are not printable ASCII.")
    return value.decode("ascii")


def identifier_of(value: bytes) -> str:
    """An OBJECT IDENTIFIER in dots (section 8.19), arcs of up to 32 bits; else `AttestationError`."""
    arcs, arc = [], 0
    for position, octet in enumerate(value):
        if arc == 0 and octet == 0x80:
            raise AttestationError("A DER object identifier is not in its shortest form.")
        arc = arc << 7 | octet & 0x7F
        if arc >> 32 or (octet & 0x80 and position == len(value) - 1):
            raise AttestationError("A DER object identifier is cut off or has an arc of more than 32 bits.")
        if not octet & 0x80:
            arcs.append(arc)
            arc = 0
    if not arcs:
        raise AttestationError("A DER object identifier is empty.")
    first = min(arcs[0] // 40, 2)
    return ".".join(str(arc) for arc in (first, arcs[0] - 40 * first, *arcs[1:]))
