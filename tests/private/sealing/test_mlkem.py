"""ML-KEM-768: a published vector, and what is refused."""

import pytest

from pomona.private.sealing import mlkem
from pomona.private.sealing.errors import SealingError
from pomona.private.sealing.mlkem import MlKemKey


def test_the_vector_of_the_hpke_draft(vectors):
    case = {name: bytes.fromhex(value) for name, value in vectors("mlkem768.json").items()}
    key = MlKemKey.from_seed(case["seed"])
    assert key.public_bytes == case["public_key"]
    assert key.decapsulate(case["ciphertext"]) == case["shared_secret"]


def test_both_ends_get_the_same_secret():
    key = MlKemKey.generate()
    secret, ciphertext = mlkem.encapsulate(key.public_bytes)
    assert (len(secret), len(ciphertext)) == (32, 1088)
    assert key.decapsulate(ciphertext) == secret
    forged = ciphertext[:-1] + bytes([ciphertext[-1] ^ 1])
    assert key.decapsulate(forged) != secret  # FIPS 203: another secret, and no error


@pytest.mark.parametrize("seed", [b"", bytes(32), bytes(65)])
def test_a_seed_of_another_length_is_refused(seed):
    with pytest.raises(SealingError, match="64"):
        MlKemKey.from_seed(seed)


@pytest.mark.parametrize("public_key", [b"", bytes(1183), bytes(1185), b"\xff" * 1184])
def test_what_is_no_public_key_is_refused(public_key):
    with pytest.raises(SealingError, match="ML-KEM-768"):
        mlkem.encapsulate(public_key)


@pytest.mark.parametrize("length", [0, 1087, 1089])
def test_a_ciphertext_of_another_length_is_refused(length):
    with pytest.raises(SealingError, match="1088"):
        MlKemKey.generate().decapsulate(bytes(length))
