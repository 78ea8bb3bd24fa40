"""Makers of whole bundles, and the vendors of their evidence."""

import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

sys.path.insert(0, str(Path(__file__).parent))  # bundles.py is a module of the tests here
import bundles


@pytest.fixture(scope="session")
def vendors():
    """An Intel and an AMD with roots of their own."""
    intel = bundles.vendors.Intel(*(ec.generate_private_key(ec.SECP256R1()) for _ in range(4)))
    rsa_keys = (rsa.generate_private_key(65537, 2048) for _ in range(2))
    return bundles.Vendors(intel, bundles.vendors.Amd(*rsa_keys, ec.generate_private_key(ec.SECP384R1())))
