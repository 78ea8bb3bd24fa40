"""What a stranger can check, who trusts nobody: the log's history, and every node against every clause."""

import collections
import dataclasses

from pomona.private.attestation.case import Known, open_case
from pomona.private.attestation.clauses import Finding, findings
from pomona.private.client.asking import MOST_BUNDLES, Asker
from pomona.private.evidence.errors import AttestationError
from pomona.private.transparency.errors import TransparencyError
from pomona.private.transparency.leaves import KIND_OF, GatewayKey, IssuerKey, decode
from pomona.private.transparency.merkle import CompactRange, extend, range_root


@dataclasses.dataclass(frozen=True)
class Report:
    """What was found about one thing: the log, or a node by its identity."""

    about: str
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing refused."""
        return not any(each.refusal for each in self.findings)


def audit_log(known: Known) -> Report:
    """Replays the log: every entry is hashed again, and read. Signature, freshness, and consistency with what was seen
    before were checked when it was read; without them there is no `known`."""
    checkpoint = known.view.checkpoint
    root = range_root(extend(CompactRange(), known.hashes))
    replayed = "" if root == checkpoint.root and len(known.entries) == checkpoint.size else "the root is another."
    kinds: collections.Counter[str] = collections.Counter()
    unread = 0
    for entry in known.entries:
        try:
            kinds[KIND_OF[type(decode(entry))]] += 1
        except TransparencyError:
            unread += 1
    told = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "nothing yet"
    about = f"{checkpoint.size} entries ({told}) make the root that the log signed."
    readable = f"{unread} entries are of no kind that is known." if unread else ""
    return Report(
        f"log {checkpoint.origin}",
        (
            Finding("checkpoint", "The checkpoint is signed, fresh, and goes on from the last one that was seen."),
            Finding("replayed", about, replayed),
            Finding("readable", "Every entry says something that is known.", readable),
            Finding("one_key", "Issuer and gateway have one key for everybody at a time.", _crowded(known)),
        ),
    )


def _crowded(known: Known) -> str:
    """Which keys there are too many of: several that begin together could tell groups of clients apart."""
    begins = collections.Counter(
        (KIND_OF[type(leaf)], leaf.issuer if isinstance(leaf, IssuerKey) else leaf.gateway, leaf.not_before)
        for leaf in known.written
        if isinstance(leaf, IssuerKey | GatewayKey)
    )
    many = [f"{count} of {kind} {name} begin at {at}" for (kind, name, at), count in begins.items() if count > 1]
    return "; ".join(many)


def audit_bundle(content: bytes, known: Known, about: str) -> Report:
    """Every clause on one bundle."""
    try:
        return Report(about, tuple(findings(open_case(content, known))))
    except AttestationError as error:
        return Report(about, (Finding("readable", "The bundle has the form of one.", str(error)),))


async def audit_nodes(asker: Asker, known: Known) -> list[Report]:
    """Every clause on every node of the directory; a node whose bundle nobody gives out fails."""
    reports = []
    identities = list(known.nodes)
    for start in range(0, len(identities), MOST_BUNDLES):
        some = identities[start : start + MOST_BUNDLES]
        bundles = await asker.bundles(known, some)
        for identity in some:
            about = f"node {identity.hex()}"
            if identity in bundles:
                reports.append(audit_bundle(bundles[identity], known, about))
            else:
                reports.append(Report(about, (Finding("given_out", "Its bundle can be had.", "nobody has it."),)))
    return reports
