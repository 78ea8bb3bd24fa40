"""What ties a processor's report to the TPM evidence beside it: 64 bytes of report data, made alike on both sides."""

import hashlib

from pomona.private.evidence.errors import AttestationError

LABEL = b"pomona private cloud report data v1\x00"
REPORT_DATA_BYTES = 64


def report_data_of(digest32: bytes, nonce32: bytes) -> bytes:
    """The 64 bytes that a node has signed in a TDX or SEV-SNP report: SHA-512(LABEL || digest32 || nonce32).

    `digest32`: SHA-256 over the TPM quote that the report vouches for. `nonce32`: 32 bytes that make it fresh, the ones
    in the TPM quote. The label keeps reports made for other uses from passing. `AttestationError` unless both have 32
    bytes, so that no two pairs give the same input.
    """
    if len(digest32) != 32 or len(nonce32) != 32:
        raise AttestationError(f"Report data is made of 32 and 32 bytes, not {len(digest32)} and {len(nonce32)}.")
    return hashlib.sha512(LABEL + digest32 + nonce32).digest()
