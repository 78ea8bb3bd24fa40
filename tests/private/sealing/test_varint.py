"""Variable-length integers against RFC 9000, and the cursor that reads them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pomona.private.sealing import varint
from pomona.private.sealing.cursor import Cursor, MoreNeeded
from pomona.private.sealing.errors import SealingError


@pytest.mark.parametrize(
    "encoded, value",
    [("c2197c5eff14e88c", 151288809941952652), ("9d7f3e7d", 494878333), ("7bbd", 15293), ("25", 37), ("4025", 37)],
)
def test_the_examples_of_rfc_9000(encoded, value):
    assert varint.decode(bytes.fromhex(encoded)) == value
    assert Cursor(bytes.fromhex(encoded) + b"rest").varint("it") == value
    if encoded != "4025":  # 37 on more bytes than it takes
        assert varint.encode(value).hex() == encoded


@pytest.mark.parametrize("bits, size", [(6, 1), (14, 2), (30, 4), (62, 8)])
def test_each_size_up_to_its_last_value(bits, size):
    assert len(varint.encode((1 << bits) - 1)) == size
    assert varint.decode(varint.encode((1 << bits) - 1)) == (1 << bits) - 1
    if bits < 62:
        assert len(varint.encode(1 << bits)) == 2 * size


@given(st.integers(0, varint.LARGEST))
def test_what_is_written_is_read(value):
    assert varint.decode(varint.encode(value)) == value


@pytest.mark.parametrize("value", [-1, varint.LARGEST + 1, 1 << 100])
def test_an_integer_out_of_range_is_refused(value):
    with pytest.raises(SealingError, match="2\\^62 - 1"):
        varint.encode(value)


@given(st.binary(max_size=9))
def test_bytes_are_an_integer_only_at_their_length(data):
    if data and len(data) == 1 << (data[0] >> 6):
        assert 0 <= varint.decode(data) <= varint.LARGEST
    else:
        with pytest.raises(SealingError):
            varint.decode(data)


def test_a_cursor_tells_truncation_from_bytes_to_come():
    whole, fed = Cursor(b"\x40"), Cursor()
    with pytest.raises(SealingError, match="truncated: it ends within the number"):
        whole.varint("the number")
    fed.feed(b"\x40")
    with pytest.raises(MoreNeeded):
        fed.varint("the number")
    fed.feed(b"\x25")
    assert fed.varint("the number") == 37
    with pytest.raises(MoreNeeded):
        fed.at_end()
    fed.end()
    assert fed.at_end()
