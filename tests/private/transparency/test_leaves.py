"""What leaves say: one form for each, and every field's limits."""

import dataclasses
import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.private.transparency import leaves
from pomona.private.transparency.errors import TransparencyError
from pomona.private.transparency.leaves import (
    Directory,
    GatewayKey,
    IssuerKey,
    Machine,
    NodeEntry,
    Release,
    Revocation,
)
from pomona.private.transparency.text import encode_base64

DIGEST = hashlib.sha256(b"digest").hexdigest()
DATES = {"not_before": 1_000, "expires": 2_000}
SPKI = b"\x30\x03abc"


def node(number, address="node-1.example.org:8443"):
    return NodeEntry(hashlib.sha256(b"%d" % number).hexdigest(), address, DIGEST)


ALL = {
    "release": Release(
        **DATES,
        name="server",
        version="1.0.2",
        image=DIGEST,
        model=DIGEST,
        adapters={"summary": DIGEST, "chat/en": DIGEST},
        measurements={"sha256/11": DIGEST, "sha384/0": "0a" * 48, "rtmr/3": "ff" * 64},
        profile="trusted-operator",
    ),
    "issuer-key": IssuerKey(
        **DATES, issuer="issuer-1", token_key=encode_base64(SPKI), token_key_id=hashlib.sha256(SPKI).hexdigest()
    ),
    "gateway-key": GatewayKey(**DATES, gateway="gateway-1", key_config=encode_base64(b"configuration")),
    "directory": Directory(**DATES, nodes=(node(1), node(2, "")), part=1, parts=1),
    "machine": Machine(**DATES, key_name="000b" + DIGEST, enrolled_by="operator@example.org"),
    "revocation": Revocation(**DATES, leaf=DIGEST, reason="The image had a flaw: größer als gedacht."),
}


def refused(call, *arguments, match=None):
    with pytest.raises(TransparencyError, match=match):
        call(*arguments)


@pytest.mark.parametrize("kind", ALL)
def test_every_kind_is_read_as_it_was_written(kind):
    data = leaves.encode(ALL[kind])
    assert leaves.decode(data) == ALL[kind]
    assert json.loads(data)["kind"] == kind and json.loads(data)["not_before"] == 1_000
    assert leaves.hash_of(ALL[kind]) == hashlib.sha256(b"\x00" + data).digest()


def test_the_bytes_are_sorted_short_and_utf_8():
    assert (
        leaves.encode(ALL["revocation"])
        == (
            f'{{"expires":2000,"kind":"revocation","leaf":"{DIGEST}","not_before":1000,'
            '"reason":"The image had a flaw: größer als gedacht."}'
        ).encode()
    )
    assert (
        leaves.encode(dataclasses.replace(ALL["directory"], nodes=(node(1),)))
        == (
            f'{{"expires":2000,"kind":"directory","nodes":[{{"address":"node-1.example.org:8443",'
            f'"identity":"{node(1).identity}","release":"{DIGEST}"}}],"not_before":1000,"part":1,"parts":1}}'
        ).encode()
    )


@pytest.mark.parametrize("kind", ALL)
def test_other_bytes_for_the_same_statement_are_refused(kind):
    data = leaves.encode(ALL[kind])
    value = json.loads(data)
    compact = {"separators": (",", ":"), "ensure_ascii": False}
    for other in [
        json.dumps(value, sort_keys=True, ensure_ascii=False),
        json.dumps(dict(reversed(value.items())), **compact),
        json.dumps(value | {"more": 1}, sort_keys=True, **compact),
        data.decode() + " ",
        " " + data.decode(),
        data.decode() + "\n",
        data.decode().replace("2000", "2000.0"),
        data.decode().replace("2000", "2e3"),
        data.decode().replace("2000", "02000"),
        data.decode().replace("2000", '"2000"'),
        data.decode().replace('"expires":2000', '"expires":2000,"expires":2000'),
        data.decode().replace('"expires":2000', '"expires":1999,"expires":2000'),
        data.decode().replace('"kind"', '"\\u006bind"'),
        "\ufeff" + data.decode(),
        data.decode() + data.decode(),
        "[" + data.decode() + "]",
    ]:
        assert other.encode() != data
        refused(leaves.decode, other.encode())
    escaped = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    if escaped != data:
        refused(leaves.decode, escaped)
    for name in value:
        without = {each: value[each] for each in value if each != name}
        refused(leaves.decode, json.dumps(without, sort_keys=True, **compact).encode())


def test_unknown_kinds_are_refused():
    for kind in ["", "Release", "other", 5, None, ["release"]]:
        refused(leaves.decode, json.dumps({"expires": 2, "kind": kind, "not_before": 1}).encode())


def changes():
    """(leaf, field, values that it cannot have)."""
    digests = ["", DIGEST[:-1], DIGEST.upper(), DIGEST + "00", "g" * 64]
    names = ["", "a b", "-a", "a" * 129, "a\n", "é", "a\u200b"]
    for kind in ALL:
        yield kind, "expires", [1_000, 999, 1 << 53, -1]
        yield kind, "not_before", [2_000, -1]
    for field in ("name", "version", "profile"):
        yield "release", field, names
    for field in ("image", "model"):
        yield "release", field, digests
    yield "release", "adapters", [{name: DIGEST} for name in names] + [{"a": digest} for digest in digests]
    registers = [
        "sha256",
        "sha256/",
        "sha256/011",
        "sha256/1000",
        "SHA256/1",
        "/1",
        "sha256/1/2",
        "sha256/-1",
        "a" * 17 + "/1",
    ]
    yield "release", "measurements", [{register: DIGEST} for register in registers]
    yield "release", "measurements", [{"sha256/1": digest} for digest in [*digests, "00" * 20, "00" * 33]]
    yield "issuer-key", "issuer", names
    yield "issuer-key", "token_key", ["", "!", encode_base64(SPKI)[:-1], encode_base64(SPKI + b"\x00")]
    yield "issuer-key", "token_key_id", [*digests, DIGEST]
    yield "gateway-key", "gateway", names
    yield "gateway-key", "key_config", ["", "!", "YQ", "YR=="]
    yield "directory", "part", [0, 2, -1]
    yield "directory", "parts", [0, 129, -1]
    yield "directory", "nodes", [(node(1), node(1, "elsewhere"))]
    yield "directory", "nodes", [(dataclasses.replace(node(1), identity=digest),) for digest in digests]
    yield "directory", "nodes", [(dataclasses.replace(node(1), release=digest),) for digest in digests]
    yield "directory", "nodes", [(node(1, address),) for address in ["a b", "a" * 256, "é", "a\n"]]
    yield "machine", "enrolled_by", names
    yield "machine", "key_name", ["", "000b", DIGEST, "0004" + "00" * 20, "000c" + DIGEST, "000b" + DIGEST.upper()]
    yield "revocation", "leaf", digests
    yield "revocation", "reason", ["", "a\n", "a\x7f", "a" * 1001, "\ud800"]


def test_values_that_a_field_cannot_have_are_refused_on_both_sides():
    for kind, field, values in changes():
        for value in values:
            wrong = dataclasses.replace(ALL[kind], **{field: value})
            refused(leaves.encode, wrong)
            written = json.dumps(dataclasses.asdict(wrong) | {"kind": kind}, sort_keys=True, separators=(",", ":"))
            refused(leaves.decode, written.encode())


def test_values_of_another_type_are_not_written():
    for kind, field, value in [
        ("machine", "not_before", 1000.5),
        ("machine", "not_before", True),
        ("directory", "nodes", [node(1)]),
        ("directory", "part", 1.0),
    ]:
        refused(leaves.encode, dataclasses.replace(ALL[kind], **{field: value}))


def test_no_key_is_no_token_key():
    refused(
        leaves.encode, dataclasses.replace(ALL["issuer-key"], token_key="", token_key_id=hashlib.sha256().hexdigest())
    )


def test_keys_of_all_three_hashes_name_machines():
    for name in ["000b" + "11" * 32, "000c" + "22" * 48, "000d" + "33" * 64]:
        leaf = dataclasses.replace(ALL["machine"], key_name=name)
        assert leaves.decode(leaves.encode(leaf)) == leaf


def test_an_entry_that_is_too_long_is_refused():
    long = dataclasses.replace(ALL["release"], adapters={f"adapter-{number}": DIGEST for number in range(900)})
    refused(leaves.encode, long, match="65535")
    refused(leaves.decode, b" " * 65_536, match="65535")


def test_a_leaf_is_valid_from_not_before_to_before_expires():
    times = [999.9, 1_000, 1_999.9, 2_000]
    assert [leaves.valid_at(ALL["machine"], now) for now in times] == [False, True, True, False]


def test_what_is_revoked_does_not_count_and_does_not_come_back():
    machine, release = ALL["machine"], ALL["release"]
    revocation = Revocation(not_before=1_200, expires=1_300, leaf=leaves.hash_of(machine).hex(), reason="stolen")
    everything = [machine, release, revocation, machine]
    assert leaves.in_force(everything, 1_100) == [machine, release, machine]
    assert leaves.in_force(everything, 1_250) == [release, revocation]
    assert leaves.in_force(everything, 1_500) == [release]
    assert leaves.in_force(everything, 2_500) == []


def test_ten_thousand_nodes_are_split_and_found_again():
    nodes = tuple(node(number, f"node-{number}.example.org:8443") for number in range(10_000))
    parts = leaves.split_directory(nodes, 1_000, 2_000)
    assert len(parts) > 20 and [part.part for part in parts] == list(range(1, len(parts) + 1))
    encoded = [leaves.encode(part) for part in parts]
    assert all(len(each) > 65_000 for each in encoded[:-1])
    assert leaves.newest_directory([leaves.decode(each) for each in encoded], 1_500) == nodes
    refused(leaves.split_directory, [*nodes, node(10_000)], 1_000, 2_000, match="10000")
    refused(leaves.split_directory, [node(1), node(1)], 1_000, 2_000, match="twice")


def test_the_longest_addresses_fit_the_parts():
    nodes = tuple(node(number, "\\" * 255) for number in range(10_000))
    parts = leaves.split_directory(nodes, 1_000, 2_000)
    assert 100 < len(parts) <= leaves.MOST_PARTS
    assert leaves.newest_directory(parts, 1_500) == nodes
    assert all(len(leaves.encode(part)) > 65_000 for part in (parts[0], parts[-2]))


def test_no_nodes_are_a_directory_too():
    (part,) = leaves.split_directory([], 1_000, 2_000)
    assert leaves.newest_directory([part], 1_500) == ()


def test_the_newest_directory_is_the_last_that_is_whole_and_valid():
    def parts(count, not_before=1_000, first=0):
        return [
            Directory(not_before=not_before, expires=2_000, nodes=(node(first + at),), part=at + 1, parts=count)
            for at in range(count)
        ]

    old, new = parts(3), parts(2, first=10)
    whole_new = (node(10), node(11))
    assert leaves.newest_directory([*old, *new], 1_500) == whole_new
    assert leaves.newest_directory([*new, *old], 1_500) == (node(0), node(1), node(2))
    assert leaves.newest_directory([old[0], ALL["machine"], *old[1:]], 1_500) == (node(0), node(1), node(2))
    later = parts(2, not_before=1_600, first=20)
    assert leaves.newest_directory([*new, *later], 1_500) == whole_new
    assert leaves.newest_directory([*new, *later], 1_700) == (node(20), node(21))
    # Parts that are missing, of two directories, or out of order make none.
    for torn in [new[:1], new[1:], new[::-1], [new[0], later[1]], [old[0], old[2], old[1]], [old[0], new[1]]]:
        assert leaves.newest_directory([*new, *torn], 1_700) == whole_new
        refused(leaves.newest_directory, torn, 1_700, match="no directory")
    refused(leaves.newest_directory, [*new], 2_000, match="no directory")
    refused(leaves.newest_directory, [new[0], dataclasses.replace(new[1], nodes=new[0].nodes)], 1_500, match="twice")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(ALL)), st.data())
def test_arbitrary_fields_are_refused_in_one_way(kind, data):
    value = json.loads(leaves.encode(ALL[kind]))
    name = data.draw(st.sampled_from(sorted(value)))
    value[name] = data.draw(JSON)
    written = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    try:
        leaf = leaves.decode(written)
    except TransparencyError:
        return
    assert leaves.encode(leaf) == written


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(ALL)), st.data())
def test_arbitrary_bytes_are_refused_in_one_way(kind, data):
    whole = bytearray(leaves.encode(ALL[kind]))
    at = data.draw(st.integers(0, len(whole)))
    whole[at : at + data.draw(st.integers(0, 5))] = data.draw(st.binary(max_size=5))
    for written in [bytes(whole), data.draw(st.binary(max_size=50))]:
        try:
            leaf = leaves.decode(written)
        except TransparencyError:
            continue
        assert leaves.encode(leaf) == written


def test_deep_and_huge_json_is_refused_in_one_way():
    for data in [
        b"[" * 65_000,
        b'{"kind":' * 8_000,
        b'{"kind":"machine","expires":' + b"9" * 60_000 + b"}",
        b"1" * 5_000,
    ]:
        refused(leaves.decode, data)
    refused(leaves.decode, b'{"kind":"machine","x":' + b"[" * 60_000 + b"]" * 4_000 + b"}")
