"""HKDF-SHA256 against RFC 5869 and against the implementation of the library."""

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.private.sealing import hkdf
from pomona.private.sealing.errors import SealingError


def test_the_first_case_of_rfc_5869():
    key = hkdf.extract(bytes(range(13)), b"\x0b" * 22)
    assert key.hex() == "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5"
    assert hkdf.expand(key, bytes(range(0xF0, 0xFA)), 42).hex() == (
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=100), st.binary(max_size=100), st.binary(max_size=100), st.integers(1, hkdf.MOST_BYTES))
def test_it_is_the_librarys(salt, key, info, length):
    assert hkdf.expand(hkdf.extract(salt, key), info, length) == HKDF(SHA256(), length, salt, info).derive(key)


@pytest.mark.parametrize("length", [-1, hkdf.MOST_BYTES + 1, 1 << 20])
def test_a_length_out_of_range_is_refused(length):
    for call in (lambda: hkdf.expand(bytes(32), b"", length), lambda: hkdf.labeled_expand(b"", b"", b"", b"", length)):
        with pytest.raises(SealingError, match="8160"):
            call()
