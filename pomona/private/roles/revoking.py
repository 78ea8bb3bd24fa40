"""What is taken back: leaves in the log that no longer count. There is no way back from that."""

from pomona.private.attestation.case import Known
from pomona.private.transparency.leaves import KIND_OF, Leaf, Revocation, encode, hash_of

REVOCABLE = ("release", "machine", "issuer-key", "gateway-key")
DAY_SECONDS = 86400


def meant(known: Known, kind: str, text: str) -> list[Leaf]:
    """The leaves of a kind that have a text in them as they are written in the log: a machine's `key_name`, a release's
    version, the name of an issuer or a gateway. Not those that are taken back already, nor those that have expired."""
    return [
        leaf
        for leaf in known.written
        if KIND_OF[type(leaf)] == kind
        and text in encode(leaf).decode()
        and known.now < leaf.expires
        and not known.is_revoked(leaf)
    ]


def revocation_of(leaf: Leaf, reason: str, now: float) -> Revocation:
    """The leaf that takes another back, from now on."""
    return Revocation(not_before=int(now), expires=int(now) + DAY_SECONDS, leaf=hash_of(leaf).hex(), reason=reason)
