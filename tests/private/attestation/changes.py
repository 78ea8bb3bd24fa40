"""Changes to bundles by what they change; `test_clauses.py` puts them into the tamper matrix."""

import dataclasses
import hashlib

from bundles import DAY, NOW, Recipe, release_of, tpm_made
from cryptography.hazmat.primitives.asymmetric import ec

from pomona.private.transparency.leaves import Revocation, hash_of

replace = dataclasses.replace
LAPTOP, ON_TPM = Recipe("laptop"), Recipe("tpm", tpm=True)
ON_TDX = Recipe("confidential", tpm=True, processor="tdx")
ON_SNP = Recipe("confidential", tpm=True, processor="sev-snp")
GOOD = {"laptop": LAPTOP, "operator": Recipe("operator"), "tpm": ON_TPM, "tdx": ON_TDX, "sev-snp": ON_SNP}

OTHER = hashlib.sha256(b"other").digest()
OTHER_KEY = ec.derive_private_key(77, ec.SECP256R1())
OTHER_POINT = tpm_made.sec1(OTHER_KEY)
OTHER_RELEASE = release_of("laptop", "other")
DATES = {"not_before": NOW - DAY, "expires": NOW + DAY}
REGISTERS = {"tpm_quote_registers", "tpm_creation_registers", "tpm_key_policy"}
"""They all compare with the registers of the release."""
PROOF = {"proof_leads_to_root", "proof_is_of_this_log", "proof_is_fresh"}
"""They all need a checkpoint that the log signed."""


def to(**values):
    """A change of fields."""
    return lambda found: replace(found, **values)


def flags(on=0, off=0):
    return lambda key: replace(key, attributes=key.attributes & ~off | on)


def attested(**changes):
    return lambda attest: replace(attest, attested=replace(attest.attested, **changes))


def flipped(part, at):
    """A bit of an evidence's part, turned after it was signed."""

    def change(evidence):
        data = bytearray(getattr(evidence, part))
        data[at] ^= 1
        return replace(evidence, **{part: bytes(data)})

    return change


def swapped(*parts):
    """Two parts of an evidence in each other's place."""
    return lambda evidence: replace(evidence, **dict(zip(parts, (getattr(evidence, each) for each in parts[::-1]))))


def revoked(what):
    """A leaf at the end of the log that takes another back."""
    return lambda release: [Revocation(**DATES, leaf=hash_of(what or release).hex(), reason="broken")]


def td(**fields):
    return replace(ON_TDX, td=lambda intel: fields)


def enclave(**fields):
    return replace(ON_TDX, td=lambda intel: {"qe": intel.qe_report(**fields)})


def td_attributes(bits):
    return td(td_attributes=bits.to_bytes(8, "little"))


def guest(**fields):
    return replace(ON_SNP, guest=lambda amd: fields)


def without_registers(release):
    kept = {name: value for name, value in release.measurements.items() if not name.startswith("sha256/")}
    return replace(release, measurements=kept)


def measuring(**registers):
    """A release that says something else of registers."""
    wanted = {name.replace("_", "/"): value for name, value in registers.items()}
    return lambda release: replace(release, measurements=release.measurements | wanted)


CLOCK = 4 + 2 + 36 + 34 + 7
"""Where the last byte of a signed attestation's clock is, which no clause but the signature's looks at."""
