"""Evidence from Linux: TDX quotes and SEV-SNP reports as files (configfs-tsm), and the certificates beside the latter.

A directory made in `folder` is a request: 64 bytes go into `inblob`, the evidence comes out of `outblob`, certificates
that the host gave, if any, out of `auxblob`, and `generation` counts the writes. Source: Linux,
Documentation/ABI/testing/configfs-tsm-report and drivers/virt/coco/guest/report.c. The certificates' table: AMD,
"SEV-ES Guest-Hypervisor Communication Block Standardization", 56421, section 4.1.8.1, as that documentation says; its
GUIDs as google/go-sev-guest and virtee/sev have them.
"""

import dataclasses
import struct
import uuid
from pathlib import Path

from pomona.private.evidence.binding import REPORT_DATA_BYTES
from pomona.private.evidence.errors import AttestationError

FOLDER = Path("/sys/kernel/config/tsm/report")
TDX, SNP = "tdx_guest", "sev_guest"
"""Providers: what the evidence is."""

VCEK = "63da758d-e664-4564-adc5-f4b93be8accd"
VLEK = "a8074bc2-a25a-483e-aae6-39c045a0b8a1"
ASK = "4ab7b379-bbac-4fe4-a02f-05aef327c782"
"""Of the ASK or the ASVK, whichever signed the key beside it."""
ARK = "c0b406a4-a803-4952-9743-3fb6014cd0ae"
ENTRY = struct.Struct("<16sII")
MOST_CERTIFICATES = 16
"""Entries may point to the same bytes, so their number bounds what a table grows to."""


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What the kernel gave for one request."""

    provider: str
    report: bytes
    auxiliary: bytes
    """A table of certificates for `read_certificate_table`, or nothing."""


def collect(report_data: bytes, name: str, folder: Path = FOLDER) -> Evidence:
    """Evidence over 64 bytes of report data, by way of the directory `name`, which must not exist yet and is removed.

    Blocks while the firmware works, which can be seconds with TDX, whose driver gives up after 30.
    `AttestationError` where the machine has no such interface, the name is taken, the kernel or the firmware refuses,
    or something else wrote to the request meanwhile, in which case the evidence may be over other bytes.
    """
    if len(report_data) != REPORT_DATA_BYTES:
        raise AttestationError(f"Report data has {REPORT_DATA_BYTES} bytes, not {len(report_data)}.")
    request = folder / name
    try:
        request.mkdir()
        try:
            return _ask(request, report_data)
        finally:
            request.rmdir()
    except OSError as error:
        raise AttestationError(f"Linux gave no evidence by {request}: {error.strerror}.") from error


def _ask(request: Path, report_data: bytes) -> Evidence:
    before = _generation(request)
    (request / "inblob").write_bytes(report_data)
    report = (request / "outblob").read_bytes()
    provider = (request / "provider").read_bytes().decode("ascii", "replace").strip()
    try:
        auxiliary = (request / "auxblob").read_bytes()
    except FileNotFoundError:  # TDX has none.
        auxiliary = b""
    if _generation(request) != before + 1:
        raise AttestationError(f"Something else wrote to {request} while it was in use.")
    if not report:
        raise AttestationError(f"Linux gave an empty report by {request}.")
    return Evidence(provider, report, auxiliary)


def _generation(request: Path) -> int:
    text = (request / "generation").read_bytes().strip()
    if not text.isdigit() or len(text) > 20:
        raise AttestationError(f"The generation in {request} is not a number.")
    return int(text)


def read_certificate_table(data: bytes) -> dict[str, bytes]:
    """Certificates, in DER as the host gave them, by GUID: `VCEK`, `VLEK`, `ASK`, `ARK` and whatever else there is.

    No bytes at all are an empty table. `AttestationError` where the table does not end in an entry of zeros, names a
    GUID twice or more than 16, or has an entry that is empty or not wholly behind the table.
    """
    entries: dict[str, tuple[int, int]] = {}
    for start in range(0, len(data), ENTRY.size):
        if len(data) - start < ENTRY.size:
            break
        guid, offset, length = ENTRY.unpack_from(data, start)
        name = str(uuid.UUID(bytes=guid))
        if not any(data[start : start + ENTRY.size]):
            return {name: _blob(data, start + ENTRY.size, *place) for name, place in entries.items()}
        if name in entries or len(entries) == MOST_CERTIFICATES:
            raise AttestationError(f"A table of certificates names one twice, or more than {MOST_CERTIFICATES}.")
        entries[name] = (offset, length)
    if data:
        raise AttestationError("A table of certificates does not end in an entry of zeros.")
    return {}


def _blob(data: bytes, behind: int, offset: int, length: int) -> bytes:
    if length == 0 or offset < behind or offset + length > len(data):
        raise AttestationError("A table of certificates has an entry that is empty or not wholly behind the table.")
    return data[offset : offset + length]
