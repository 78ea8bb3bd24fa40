"""The client against swtpm: what the TPM computes equals what we compute, and it refuses what it has to."""

import concurrent.futures
import dataclasses
import hashlib
import os
from pathlib import Path

import pytest
from registers import REGISTERS, in_software, register_key_of

from pomona.private.evidence.errors import AttestationError
from pomona.private.evidence.tpm.client import (
    Tpm,
    get_random,
    pcr_extend,
    pcr_read,
    startup,
)
from pomona.private.evidence.tpm.commands import (
    certify_creation,
    create_primary,
    flush_context,
    policy_get_digest,
    policy_pcr,
    policy_secret,
    quote,
    read_loaded,
    start_policy_session,
)
from pomona.private.evidence.tpm.errors import TpmError
from pomona.private.evidence.tpm.keys import (
    attestation_key,
)
from pomona.private.evidence.tpm.registers import extended, policy_pcr_digest, registers_digest, selection_of
from pomona.private.evidence.tpm.structures import (
    CertifyInfo,
    name_of,
    pack_public,
    qualified_name,
    read_attest,
)
from pomona.private.evidence.tpm.templates import (
    ENDORSEMENT_KEY_ECC,
    ENDORSEMENT_KEY_RSA,
    ENDORSEMENT_POLICY,
    STORAGE_KEY,
)
from pomona.private.evidence.tpm.transport import RecordingTransport, ReplayTransport, open_unix
from pomona.private.evidence.tpm.verify import verify
from pomona.private.evidence.tpm.wire import (
    MOST_BYTES,
    RH_ENDORSEMENT,
    RH_OWNER,
    RS_PASSWORD,
    Command,
    number,
    pack_selection,
    sized,
    whole,
)

DIGEST = hashlib.sha256(b"measured").digest()


# --- a node's life -------------------------------------------------------------------------------------------------


def judge(found, peer):
    """What must have come of a node's life, on any TPM."""
    facts = verify(found.evidence, found.expected)
    assert facts.hierarchy == RH_ENDORSEMENT
    assert facts.quoted.clock.clock_milliseconds >= facts.certified.clock.clock_milliseconds
    assert facts.quoted.clock.reset_count == facts.certified.clock.reset_count >= 1
    assert facts.quoted.firmware_version == facts.certified.firmware_version != 0
    assert found.qualified == qualified_name(RH_ENDORSEMENT, found.expected.attestation_key_name)
    assert found.shared == in_software(peer, facts.key_public_bytes)
    assert found.credential == b"enrolled"
    assert found.refusals == [0x99D, 0x99D]
    assert found.expected.registers[11] == extended(bytes(32), hashlib.sha256(b"model").digest())
    assert found.expected.registers[0] == bytes(32)


def test_a_node_lives(emulator, life, tmp_path):
    """On swtpm; and its recording, replayed, is the same life. To record it anew, say where in POMONA_RECORD_TPM."""
    run, peer = life
    recorder = RecordingTransport(emulator.waited(lambda: open_unix(emulator.folder / "tpm")))
    with Tpm(recorder, lambda count: bytes(range(count))) as tpm:
        found = run(tpm)
    judge(found, peer)
    path = Path(os.environ.get("POMONA_RECORD_TPM", tmp_path / "life.jsonl"))
    path.write_text("".join(line + "\n" for line in recorder.lines))
    again = run(Tpm(ReplayTransport(path.read_text().splitlines()), lambda count: bytes(range(count))))
    assert again == found


def test_a_recorded_node_lives(life, recording):
    """Where there is no swtpm, this is what tests the client."""
    run, peer = life
    replay = ReplayTransport(recording)
    judge(run(Tpm(replay, lambda count: bytes(range(count)))), peer)
    assert replay.position == len(recording) > 20


# --- the TPM itself ------------------------------------------------------------------------------------------------


def test_starting_twice_is_no_mistake(tpm):
    startup(tpm)
    startup(tpm)


def test_random_bytes(tpm):
    assert len({get_random(tpm, 32) for _ in range(10)}) == 10
    assert len(get_random(tpm, 1)) == 1
    for count in (0, 33):
        with pytest.raises(AttestationError, match="1 to 32"):
            get_random(tpm, count)


def test_threads_send_one_command_at_a_time(tpm):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: get_random(tpm, 32), range(400)))
    assert len(set(found)) == 400


def test_registers_grow_as_computed(tpm):
    value = bytes(32)
    for text in (b"firmware", b"kernel", b"model"):
        digest = hashlib.sha256(text).digest()
        pcr_extend(tpm, 9, digest)
        value = extended(value, digest)
    assert pcr_read(tpm, [9]) == {9: value}


def test_all_registers_are_read_in_pieces(tpm):
    """A TPM gives eight at once."""
    for register in range(16):
        pcr_extend(tpm, register, bytes([register]) * 32)
    assert pcr_read(tpm, range(16)) == {r: extended(bytes(32), bytes([r]) * 32) for r in range(16)}


@pytest.mark.parametrize("registers", [(), (16,), (-1,), (0, 23), (1, 1)])
def test_only_what_software_cannot_reset_is_measured(registers):
    with pytest.raises(AttestationError, match="from 0 to 15"):
        selection_of(registers)


def test_the_order_of_registers_does_not_matter():
    values = {0: bytes(32), 3: DIGEST, 14: DIGEST[::-1]}
    turned = dict(reversed(values.items()))
    assert registers_digest(turned) == registers_digest(values) == hashlib.sha256(b"".join(values.values())).digest()
    assert policy_pcr_digest(turned) == policy_pcr_digest(values)


def test_a_measurement_has_32_bytes():
    for previous, digest in ((bytes(31), DIGEST), (bytes(32), b"")):
        with pytest.raises(AttestationError, match="32"):
            extended(previous, digest)
    with pytest.raises(AttestationError, match="32"):
        registers_digest({0: bytes(20)})
    with pytest.raises(AttestationError, match="32"):
        pcr_extend(Tpm(ReplayTransport([])), 0, b"")


# --- what the TPM computes and what we compute ---------------------------------------------------------------------


def test_names_are_the_tpms(tpm):
    for hierarchy, template in (
        (RH_OWNER, STORAGE_KEY),
        (RH_ENDORSEMENT, ENDORSEMENT_KEY_ECC),
        (RH_ENDORSEMENT, ENDORSEMENT_KEY_RSA),
    ):
        loaded = create_primary(tpm, hierarchy, template)
        again, qualified = read_loaded(tpm, loaded.handle)
        assert again == loaded and loaded.name == name_of(loaded.public)
        assert qualified == qualified_name(hierarchy, loaded.name)
        flush_context(tpm, loaded.handle)


@pytest.mark.parametrize("registers", [(0,), (15,), REGISTERS, tuple(range(16))])
def test_policies_over_registers_are_the_tpms(tpm, registers):
    pcr_extend(tpm, 7, DIGEST)
    session = start_policy_session(tpm)
    assert policy_get_digest(tpm, session) == bytes(32)
    policy_pcr(tpm, session, registers)
    assert policy_get_digest(tpm, session) == policy_pcr_digest(pcr_read(tpm, registers))
    flush_context(tpm, session)


def test_the_endorsement_policy_is_the_tpms(tpm):
    session = start_policy_session(tpm)
    policy_secret(tpm, session)
    assert policy_get_digest(tpm, session) == ENDORSEMENT_POLICY


def test_a_certification_reads(tpm):
    """TPM2_Certify, which nothing here sends: its attestation is of the third type."""
    attester = attestation_key(tpm)
    storage = create_primary(tpm, RH_OWNER, STORAGE_KEY)
    parameters = sized(b"for us") + number(0x0010, 2)
    command = Command(0x148, (storage.handle, attester.handle), (RS_PASSWORD, RS_PASSWORD), parameters)
    packed = tpm.execute(command, lambda reader: (reader.sized(MOST_BYTES), reader.take(72))[0])
    attest = whole(packed, read_attest, "it")
    assert attest.attested == CertifyInfo(storage.name, qualified_name(RH_OWNER, storage.name))
    assert attest.extra_data == b"for us"


# --- the attestation key -------------------------------------------------------------------------------------------


def test_the_attestation_key_outlives_a_restart(emulator, emulators):
    first = attestation_key(emulator.connect())
    assert attestation_key(emulator.restart()).name == first.name
    assert attestation_key(emulators().connect()).name != first.name


def test_in_the_owners_hierarchy_the_counters_are_disguised(tpm):
    plain, owners = attestation_key(tpm), attestation_key(tpm, RH_OWNER)
    assert plain.name != owners.name
    of = [whole(quote(tpm, key.handle, REGISTERS, b"").attest, read_attest, "it") for key in (plain, owners)]
    assert of[0].clock.reset_count == 1 and of[0].clock.restart_count == 0
    assert (of[1].clock.reset_count, of[1].clock.restart_count) != (1, 0)
    assert of[0].firmware_version != of[1].firmware_version
    assert [each.qualified_signer for each in of] == [
        qualified_name(RH_ENDORSEMENT, plain.name),
        qualified_name(RH_OWNER, owners.name),
    ]


def test_a_quote_takes_64_bytes_along(tpm):
    attester = attestation_key(tpm)
    assert whole(quote(tpm, attester.handle, (0,), b"q" * 64).attest, read_attest, "it").extra_data == b"q" * 64
    with pytest.raises(TpmError):
        quote(tpm, attester.handle, (0,), bytes(67))
    with pytest.raises(AttestationError):
        quote(tpm, attester.handle, (0,), bytes(70000))
    assert get_random(tpm, 8), "the connection is still in use"


def test_the_tpm_certifies_only_what_it_made(tpm):
    attester = attestation_key(tpm)
    created, key = register_key_of(tpm)
    for changed in (
        dataclasses.replace(created, creation_hash=bytes(32)),
        dataclasses.replace(created, ticket=dataclasses.replace(created.ticket, digest=bytes(32))),
    ):
        with pytest.raises(TpmError, match="ticket"):
            certify_creation(tpm, attester.handle, key.loaded, changed, b"")


# --- a TPM that says something else --------------------------------------------------------------------------------


class Answering:
    """A transport with one response to everything."""

    def __init__(self, *responses):
        self.responses = list(responses)

    def exchange(self, command):
        return self.responses.pop(0)

    def close(self):
        pass


def plain(body):
    return b"\x80\x01" + number(10 + len(body), 4) + bytes(4) + body


def registers(counter, found, values):
    return plain(number(counter, 4) + pack_selection(found) + number(len(values), 4) + b"".join(map(sized, values)))


@pytest.mark.parametrize(
    "responses, said",
    [
        ([registers(1, (), [])], "no value of register 0"),
        ([registers(1, selection_of([1]), [DIGEST])], "no value of register 0"),
        ([registers(1, selection_of([0, 4]), [DIGEST] * 2), registers(2, selection_of([7]), [DIGEST])], "changed"),
        ([registers(1, selection_of([0, 4]), [DIGEST])], "1 values for 2"),
        ([registers(1, selection_of([0]), [b"short"])], "5 bytes"),
        ([registers(1, selection_of([0]), [DIGEST] * 3)], "3 values for 1"),
    ],
)
def test_registers_that_do_not_add_up(responses, said):
    with pytest.raises(TpmError, match=said):
        pcr_read(Tpm(Answering(*responses)), (0, 4, 7))


def test_a_name_that_is_not_the_keys_is_refused(tpm):
    """A TPM, or who sits before it, that hands out one key and the name of another."""
    loaded, _ = read_loaded(tpm, create_primary(tpm, RH_OWNER, STORAGE_KEY).handle)
    for name, refuses in ((loaded.name, False), (loaded.name[:-1] + b"\0", True)):
        response = plain(sized(pack_public(loaded.public)) + sized(name) + sized(name))
        if refuses:
            with pytest.raises(TpmError, match="not the hash of the public area"):
                read_loaded(Tpm(Answering(response)), loaded.handle)
        else:
            assert read_loaded(Tpm(Answering(response)), loaded.handle)[0] == loaded
