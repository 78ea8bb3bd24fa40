"""Evidence by way of Linux's files, on a tree in a temporary folder that answers as the kernel does; the binding."""

import errno
import hashlib
import os
import struct
import uuid
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.private.evidence.binding import LABEL, report_data_of
from pomona.private.evidence.errors import AttestationError
from pomona.private.evidence.processors import configfs, snp_verify
from pomona.private.evidence.processors.configfs import ARK, ASK, ENTRY, VCEK, Evidence, collect, read_certificate_table

DATA = bytes(range(64))


class KernelPath(type(Path())):
    """A path below which directories are requests: reading `outblob` makes the evidence, as the kernel would.

    Its class is one test's own, so that each has its own answers.
    """

    outblob = staticmethod(lambda inblob: b"report over " + inblob)
    auxblob: bytes | None = b""
    provider = b"sev_guest\n"
    writes_by_others = 0
    fails: ClassVar[dict[str, int]] = {}

    def mkdir(self, *arguments, **named):
        super().mkdir(*arguments, **named)
        (self / "generation").keep(b"0\n")

    def keep(self, data):
        Path(str(self)).write_bytes(data)

    def write_bytes(self, data):
        assert self.name == "inblob", "the only file that is written"
        self.keep(data)
        self.count(1)
        return len(data)

    def count(self, writes):
        generation = Path(str(self.parent), "generation")
        generation.write_bytes(b"%d\n" % (int(generation.read_bytes()) + writes))

    def read_bytes(self):
        if self.name in self.fails:
            raise OSError(self.fails[self.name], os.strerror(self.fails[self.name]), str(self))
        if self.name == "outblob":
            answer = type(self).outblob(Path(str(self.parent), "inblob").read_bytes())
            self.count(self.writes_by_others)
            return answer
        if self.name == "auxblob" and self.auxblob is not None:
            return self.auxblob
        return self.provider if self.name == "provider" else super().read_bytes()

    def rmdir(self):
        for each in Path(str(self)).iterdir():  # The kernel's files go with their directory.
            each.unlink()
        super().rmdir()


def kernel(folder, **answers):
    return type("Kernel", (KernelPath,), answers)(folder)


def test_evidence_is_collected_and_the_request_removed(tmp_path):
    folder = kernel(tmp_path, auxblob=b"certificates")
    assert collect(DATA, "node", folder) == Evidence("sev_guest", b"report over " + DATA, b"certificates")
    assert list(tmp_path.iterdir()) == []
    assert collect(DATA[::-1], "node", folder).report == b"report over " + DATA[::-1]


def test_a_provider_without_certificates_gives_none(tmp_path):
    evidence = collect(DATA, "node", kernel(tmp_path, auxblob=None, provider=b"tdx_guest\n"))
    assert evidence == Evidence(configfs.TDX, b"report over " + DATA, b"")


@pytest.mark.parametrize("writes", [1, 2])
def test_writes_by_others_are_noticed(tmp_path, writes):
    with pytest.raises(AttestationError, match="Something else wrote to"):
        collect(DATA, "node", kernel(tmp_path, writes_by_others=writes))
    assert list(tmp_path.iterdir()) == []


REFUSED = {
    "the firmware refuses": ({"fails": {"outblob": errno.ENXIO}}, "No such device or address"),
    "the driver is busy": ({"fails": {"outblob": errno.EBUSY}}, "resource busy"),
    "certificates cannot be read": ({"fails": {"auxblob": errno.EIO}}, "Input/output error"),
    "no provider": ({"fails": {"provider": errno.ENXIO}}, "No such device or address"),
    "no generation": ({"fails": {"generation": errno.ENOENT}}, "No such file or directory"),
    "empty report": ({"outblob": lambda inblob: b""}, "empty report"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_fails_is_said_and_leaves_nothing_behind(tmp_path, case):
    answers, reason = REFUSED[case]
    with pytest.raises(AttestationError, match=reason):
        collect(DATA, "node", kernel(tmp_path, **answers))
    assert list(tmp_path.iterdir()) == []


def test_a_generation_that_is_no_number_is_refused(tmp_path):
    class Odd(KernelPath):
        def count(self, writes):
            Path(str(self.parent), "generation").write_bytes(b"-1\n")

    with pytest.raises(AttestationError, match="is not a number"):
        collect(DATA, "node", Odd(tmp_path))


def test_a_machine_without_the_interface_or_a_name_in_use_is_refused(tmp_path):
    with pytest.raises(AttestationError, match="No such file or directory"):
        collect(DATA, "node", kernel(tmp_path / "absent"))
    (tmp_path / "node").mkdir()
    with pytest.raises(AttestationError, match="File exists"):
        collect(DATA, "node", kernel(tmp_path))
    assert (tmp_path / "node").is_dir(), "another's request is left alone"
    for data in (b"", DATA[:63], DATA + b"\0"):
        with pytest.raises(AttestationError, match="64 bytes, not"):
            collect(data, "other", kernel(tmp_path))


def table(*entries, end=True, first=None):
    """A table of (GUID, bytes); `first` moves where the first entry points."""
    offset = ENTRY.size * (len(entries) + end)
    head, blobs = b"", b""
    for guid, blob in entries:
        at = offset + len(blobs)
        head += ENTRY.pack(uuid.UUID(guid).bytes, at if first is None or head else first, len(blob))
        blobs += blob
    return head + end * bytes(ENTRY.size) + blobs


def test_the_hosts_certificates_lead_from_a_report_to_amds_root(recorded, make, tmp_path):
    key, signer = recorded("snp_vcek_milan.der"), recorded("snp_ask_milan.der")
    report = recorded("snp_report_milan.bin")
    folder = kernel(tmp_path, outblob=lambda inblob: report, auxblob=table((VCEK, key), (ASK, signer)))
    evidence = collect(DATA, "node", folder)
    found = read_certificate_table(evidence.auxiliary)
    verified = snp_verify.verify_report(evidence.report, found[VCEK], found[ASK], make.now, allow_debug=True)
    assert verified.product == "Milan"


def test_a_table_gives_what_was_put_in():
    assert read_certificate_table(b"") == {}
    assert read_certificate_table(bytes(ENTRY.size)) == {}
    assert read_certificate_table(bytes(4096)) == {}
    other = "92f81bc3-5811-4d3d-97ff-d19f88dc67ea"
    entries = {VCEK: b"vcek", ASK: b"a", ARK: b"ark" * 1000, other: b"x"}
    assert read_certificate_table(table(*entries.items()) + bytes(100)) == entries
    assert len(read_certificate_table(table(*((str(uuid.UUID(int=number)), b"c") for number in range(1, 17))))) == 16
    assert table((VCEK, b"vcek"))[:4].hex() == "63da758d", "GUIDs are written in the order in which they are read"


TABLES = {
    "no end": (table((VCEK, b"vcek"), end=False)[: ENTRY.size], "does not end"),
    "half an entry": (bytes(23), "does not end"),
    "a GUID twice": (table((VCEK, b"a"), (VCEK, b"b")), "one twice"),
    "too many": (table(*((str(uuid.UUID(int=number)), b"c") for number in range(1, 18))), "more than 16"),
    "an empty entry": (table((VCEK, b"")), "empty or not wholly behind"),
    "an entry in the table": (table((VCEK, b"vcek"), first=ENTRY.size), "empty or not wholly behind"),
    "an entry beyond the end": (table((VCEK, b"vcek"))[:-1], "empty or not wholly behind"),
    "an entry far beyond the end": (
        struct.pack("<16sII", b"g" * 16, 48, 0xFFFFFFFF) + bytes(24) + b"blob",
        "empty or not wholly behind",
    ),
}


@pytest.mark.parametrize("case", TABLES)
def test_a_malformed_table_is_refused(case):
    data, reason = TABLES[case]
    with pytest.raises(AttestationError, match=reason):
        read_certificate_table(data)


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_read_as_a_table_or_raise_the_one_error(data):
    try:
        read_certificate_table(data)
    except AttestationError:
        pass


@settings(max_examples=50, deadline=None)
@given(
    entries=st.dictionaries(st.uuids().filter(lambda each: each.int), st.binary(min_size=1, max_size=50), max_size=5)
)
def test_tables_round_trip(entries):
    named = {str(guid): blob for guid, blob in entries.items()}
    assert read_certificate_table(table(*named.items())) == named


def test_report_data_binds_the_digest_and_the_nonce():
    digest, nonce = b"d" * 32, b"n" * 32
    bound = report_data_of(digest, nonce)
    assert bound == hashlib.sha512(b"pomona private cloud report data v1\0" + digest + nonce).digest()
    assert len(bound) == 64 and LABEL.endswith(b"\0")
    assert len({bound, report_data_of(nonce, digest), report_data_of(digest, digest)}) == 3
    for wrong in ((digest[1:], nonce + b"n"), (digest, b""), (b"", nonce), (digest + b"d", nonce)):
        with pytest.raises(AttestationError, match="made of 32 and 32 bytes"):
            report_data_of(*wrong)
