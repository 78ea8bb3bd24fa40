"""What a release promises, by the name of its profile, and whom one has to trust all the same."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Profile:
    """A kind of machine, and what follows from it."""

    about: str
    tpm: bool
    """Whether every node's keys are in a TPM that attests what was started."""
    processor: bool
    """Whether a processor that encrypts its memory, TDX or SEV-SNP, attests as well."""
    reads_requests: str
    """Who could read requests in spite of everything."""
    guarantees: tuple[str, ...]
    missing: tuple[str, ...]


_ALWAYS = (
    "the relay knows who asks and not what; the gateway what size and not who; the node what and not who",
    "tokens cannot be joined with accounts; each is spent once",
    "the client draws the nodes itself, from a directory that is the same for everybody",
    "releases, keys and nodes are in a public log; a log that shows two histories is found out",
    "a worker sees one request and is gone after it",
)
_NO_HARDWARE = "nothing proves that a node runs what its release says"
_MEMORY = "whoever holds the machine can read its memory"

PROFILES = {
    "laptop": Profile(
        "everything on one machine, to try it",
        tpm=False,
        processor=False,
        reads_requests="whoever has an account on this machine",
        guarantees=("the protocol and its refusals are the real ones",),
        missing=("all roles have one operator, who could join them", _NO_HARDWARE, _MEMORY),
    ),
    "operator": Profile(
        "machines whose operator is trusted: TPUs, or anything that does not attest",
        tpm=False,
        processor=False,
        reads_requests="the operator of the nodes",
        guarantees=_ALWAYS,
        missing=(_NO_HARDWARE, _MEMORY),
    ),
    "tpm": Profile(
        "machines with a TPM, whose start is measured",
        tpm=True,
        processor=False,
        reads_requests="whoever can open the machine, or reads its memory from outside",
        guarantees=(
            *_ALWAYS,
            "a node's key is in its TPM and works only while what was measured is what the release says",
        ),
        missing=(_MEMORY,),
    ),
    "confidential": Profile(
        "TDX or SEV-SNP beside the TPM, and a GPU in its confidential mode",
        tpm=True,
        processor=True,
        reads_requests="who breaks the processor's or the GPU's protection: physical attacks on both are known",
        guarantees=(
            *_ALWAYS,
            "a node's key is in its TPM and works only while what was measured is what the release says",
            "memory is encrypted to the outside by the processor, which attests it",
        ),
        missing=("the GPU's own attestation is the node's to check at its start; clients do not see it",),
    ),
}
