"""The lengths that messages are padded to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pomona.private.sealing.errors import SealingError
from pomona.private.sealing.padding import padded, padded_length


def test_the_lengths_up_to_8_kib():
    lengths = sorted({padded_length(length) for length in range(8193)})
    assert lengths == [1024, 1280, 1536, 1792, 2048, 2560, 3072, 3584, 4096, 5120, 6144, 7168, 8192]


def test_there_are_57_lengths_up_to_16_mib():
    length, count = 0, 0
    while length < 1 << 24:
        length = padded_length(length + 1)
        count += 1
    assert (length, count) == (1 << 24, 57)


@given(st.integers(1024, 1 << 40))
def test_less_than_a_quarter_is_added(length):
    padding = padded_length(length) - length
    assert 0 <= 4 * padding < length
    assert padded_length(padded_length(length)) == padded_length(length)


def test_the_worst_case():
    for power in range(10, 40):
        assert padded_length((1 << power) + 1) == 5 << (power - 2)


def test_zeros_are_added():
    assert padded(b"") == bytes(1024)
    assert padded(b"\1" * 1025) == b"\1" * 1025 + bytes(255)


def test_a_negative_length_is_refused():
    with pytest.raises(SealingError, match="negative"):
        padded_length(-1)
