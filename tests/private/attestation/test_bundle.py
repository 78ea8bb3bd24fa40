"""A bundle has one form, and no byte of it can be changed."""

import pytest
from bundles import made
from changes import GOOD, LAPTOP, replace

from pomona.private.attestation.bundle import MOST_BYTES, decode_bundle, encode_bundle
from pomona.private.attestation.case import open_case
from pomona.private.attestation.clauses import judge
from pomona.private.evidence.errors import AttestationError

FORMS = {
    "a space": lambda content: content.replace(b":", b": ", 1),
    "a newline at the end": lambda content: content + b"\n",
    "a field more": lambda content: b'{"a":1,' + content[1:],
    "a field of a part more": lambda content: content.replace(b'"claims":{', b'"claims":{"a":1,'),
    "a field twice": lambda content: content[:-1] + content[content.index(b',"proof"') :],
    "nothing for a TPM": lambda content: content[:-1] + b',"tpm":null}',
    "fields in another order": lambda content: b"{" + content[content.index(b'"proof"') : -1] + b"," + content[1:],
    "an escape": lambda content: content.replace(b'"path"', b'"\\u0070ath"'),
    "a number with a fraction": lambda content: content.replace(b'"index":2', b'"index":2.0'),
    "a number as text": lambda content: content.replace(b'"index":2', b'"index":"2"'),
    "no number": lambda content: content.replace(b'"index":2', b'"index":true'),
    "base64 without its end": lambda content: content.replace(b'="', b'"', 1),
    "half a character": lambda content: content[:-1] + b',"processor":{"kind":"\\ud800xxxxx","report":""}}',
    "not UTF-8": lambda content: content[:-1] + b"\xff}",
    "a list": lambda content: b"[" + content + b"]",
    "no fields": lambda content: b"{}",
    "nothing": lambda content: b"",
    "a bracket too few": lambda content: content[:-1],
    "a hundred thousand brackets": lambda content: b"[" * 100_000,
    "more than 256 KiB": lambda content: content.ljust(MOST_BYTES + 1),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_bundle_has_one_form(vendors, form):
    """Its identity stands for all that it says; other bytes for the same would be another node."""
    content, known = made(LAPTOP, vendors)
    changed = FORMS[form](content)
    assert changed != content
    with pytest.raises(AttestationError, match=r"not in its one form|not JSON of a bundle's form|bytes; 262144"):
        open_case(changed, known)


@pytest.mark.parametrize("change", [{"point": b"p" * 64}, {"mlkem": b""}, {"release": b"r" * 33}], ids=str)
def test_keys_and_digests_have_their_sizes(vendors, change):
    content, known = made(LAPTOP, vendors)
    bundle = decode_bundle(content)
    with pytest.raises(AttestationError, match="keys and release have"):
        open_case(encode_bundle(replace(bundle, claims=replace(bundle.claims, **change))), known)


@pytest.mark.parametrize("recipe", GOOD.values(), ids=GOOD)
def test_no_byte_of_a_bundle_can_be_changed(vendors, recipe):
    """Each byte is signed, or hashed into the node's identity: the directory has the node with these bytes alone."""
    content, known = made(recipe, vendors)
    for at in range(0, len(content), max(1, len(content) // 150)):
        changed = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        with pytest.raises(AttestationError):
            judge(open_case(changed, known))


def test_a_bundle_cannot_be_cut_off(vendors):
    content, known = made(LAPTOP, vendors)
    for length in range(0, len(content), 97):
        with pytest.raises(AttestationError):
            open_case(content[:length], known)
