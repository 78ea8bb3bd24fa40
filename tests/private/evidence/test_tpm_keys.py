"""A node's keys in swtpm: the one that opens requests refuses what it has to, and enrolment proves what it has to."""

import asyncio
import concurrent.futures
import dataclasses
import hashlib
import os

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from registers import REGISTERS, in_software, register_key_of, sec1

from pomona.private.evidence.errors import AttestationError
from pomona.private.evidence.tpm.client import (
    Tpm,
    nothing,
    nv_read,
    nv_size,
    pcr_extend,
    pcr_read,
)
from pomona.private.evidence.tpm.commands import (
    Loaded,
    create_primary,
    ecdh_zgen,
    flush_context,
    policy_pcr,
    start_policy_session,
)
from pomona.private.evidence.tpm.credential import make_credential
from pomona.private.evidence.tpm.errors import TpmError
from pomona.private.evidence.tpm.keys import (
    RegisterKey,
    attestation_key,
    create_register_key,
    endorsement_certificate,
    endorsement_key,
    load_register_key,
    open_credential,
)
from pomona.private.evidence.tpm.registers import policy_pcr_digest
from pomona.private.evidence.tpm.templates import (
    ATTESTATION_KEY,
    ENDORSEMENT_KEY_ECC,
    ENDORSEMENT_KEY_RSA,
    STORAGE_KEY,
)
from pomona.private.evidence.tpm.transport import ReplayTransport
from pomona.private.evidence.tpm.wire import (
    RH_NULL,
    RH_OWNER,
    RS_PASSWORD,
    Command,
    number,
    sized,
)
from pomona.private.sealing import kem

DIGEST = hashlib.sha256(b"measured").digest()


# --- the key that opens requests -----------------------------------------------------------------------------------


def test_diffie_hellman_in_the_tpm_is_that_of_software(tpm):
    _, key = register_key_of(tpm)
    assert len(key.public_bytes) == 65
    for _ in range(20):
        peer = ec.generate_private_key(ec.SECP256R1())
        assert key.diffie_hellman(sec1(peer)) == in_software(peer, key.public_bytes)


def test_hpke_opens_with_the_tpms_key(tpm):
    """DHKEM of RFC 9180 with the Diffie-Hellman step in the TPM."""
    _, key = register_key_of(tpm)
    shared, encapsulated = kem.encapsulate(kem.P256, key.public_bytes)
    assert kem.decapsulate(kem.P256, encapsulated, key) == shared


def test_a_shared_secret_keeps_its_leading_zeros(tpm):
    """HPKE takes 32 bytes, and a TPM may give fewer."""
    _, key = register_key_of(tpm)
    peers = (ec.derive_private_key(number, ec.SECP256R1()) for number in range(1, 10000))
    peer = next(each for each in peers if in_software(each, key.public_bytes)[0] == 0)
    assert key.diffie_hellman(sec1(peer)) == in_software(peer, key.public_bytes)


def test_the_key_refuses_for_good_once_something_else_is_measured(emulator):
    tpm = emulator.connect()
    pcr_extend(tpm, 11, DIGEST)
    created, key = register_key_of(tpm)
    peer = ec.generate_private_key(ec.SECP256R1())
    shared = key.diffie_hellman(sec1(peer))
    pcr_extend(tpm, 12, DIGEST)  # not among the key's registers
    assert key.diffie_hellman(sec1(peer)) == shared
    pcr_extend(tpm, 11, DIGEST)
    for _ in range(3):
        with pytest.raises(TpmError, match="a policy check failed") as caught:
            key.diffie_hellman(sec1(peer))
        assert caught.value.code == 0x99D and caught.value.command == "TPM2_ECDH_ZGen"
    again = load_register_key(tpm, created, REGISTERS)
    with pytest.raises(TpmError, match="a policy check failed"):
        again.diffie_hellman(sec1(peer))

    tpm = emulator.restart()
    pcr_extend(tpm, 11, hashlib.sha256(b"something else").digest())
    key = load_register_key(tpm, created, REGISTERS)
    with pytest.raises(TpmError, match="a policy check failed"):
        key.diffie_hellman(sec1(peer))
    pcr_extend(tpm, 11, DIGEST)
    with pytest.raises(TpmError, match="a policy check failed"):
        key.diffie_hellman(sec1(peer))

    tpm = emulator.restart()  # and with what it was made for, it works again
    pcr_extend(tpm, 11, DIGEST)
    assert load_register_key(tpm, created, REGISTERS).diffie_hellman(sec1(peer)) == shared


def test_a_change_between_policy_and_use_is_seen(tpm):
    _, key = register_key_of(tpm)
    session = start_policy_session(tpm)
    policy_pcr(tpm, session, REGISTERS)
    pcr_extend(tpm, 0, DIGEST)
    with pytest.raises(TpmError, match="registers have changed"):
        ecdh_zgen(tpm, key.loaded.handle, session, key.public_bytes)


def test_fewer_registers_than_the_keys_do_not_open_it(tpm):
    _, key = register_key_of(tpm)
    peer = ec.generate_private_key(ec.SECP256R1())
    for registers in ((0,), (0, 4, 7), (0, 4, 7, 11, 12)):
        with pytest.raises(TpmError, match="a policy check failed"):
            dataclasses.replace(key, registers=registers).diffie_hellman(sec1(peer))


def test_no_password_opens_the_key(tpm):
    """Neither for its use, nor to give it a password, certify it as its administrator, or carry it away."""
    _, key = register_key_of(tpm)
    handle, parent = key.loaded.handle, create_primary(tpm, RH_OWNER, STORAGE_KEY).handle
    point = sized(sized(key.public_bytes[1:33]) + sized(key.public_bytes[33:]))
    uses = {
        "use": Command(0x154, (handle,), (RS_PASSWORD,), point),
        "new password": Command(0x150, (handle, parent), (RS_PASSWORD,), sized(b"mine")),
        "certify": Command(0x148, (handle, RH_NULL), (RS_PASSWORD, RS_PASSWORD), sized(b"") + number(0x0010, 2)),
        "carry away": Command(0x14B, (handle, RH_NULL), (RS_PASSWORD,), sized(b"") + number(0x0010, 2)),
    }
    for what, command in uses.items():
        with pytest.raises(TpmError) as caught:
            tpm.execute(command, nothing)
        assert caught.value.code in (0x12F, 0x124), what  # no such authorisation for this object; wrong kind of one
    for what in ("new password", "certify", "carry away"):
        session = start_policy_session(tpm)
        policy_pcr(tpm, session, REGISTERS)
        command = dataclasses.replace(uses[what], sessions=(session, *uses[what].sessions[1:]))
        with pytest.raises(TpmError) as caught:
            tpm.execute(command, nothing)
        assert caught.value.code == 0x99D, what
        flush_context(tpm, session)


def test_another_tpm_does_not_load_the_key(tpm, emulators):
    created, _ = register_key_of(tpm)
    with pytest.raises(TpmError, match="integrity"):
        load_register_key(emulators().connect(), created, REGISTERS)


def test_a_changed_key_does_not_load(tpm):
    """A weaker policy or attributes with the same private part: the parent's integrity covers the name."""
    values = pcr_read(tpm, REGISTERS)
    created = create_register_key(tpm, values)
    weaker = dataclasses.replace(created.public, auth_policy=policy_pcr_digest({0: values[0]}))
    with pytest.raises(TpmError, match="integrity"):
        load_register_key(tpm, dataclasses.replace(created, public=weaker), REGISTERS)


@pytest.mark.parametrize(
    "peer",
    [
        b"",
        b"\x04" + bytes(64),
        b"\x04" + b"\x01" * 64,
        sec1(ec.derive_private_key(5, ec.SECP256R1()))[:-1],
        sec1(ec.derive_private_key(5, ec.SECP256R1())) + b"\0",
        b"\x02" + sec1(ec.derive_private_key(5, ec.SECP256R1()))[1:],
        b"\x02" + sec1(ec.derive_private_key(5, ec.SECP256R1()))[1:33],
        b"\x06" + sec1(ec.derive_private_key(5, ec.SECP256R1()))[1:],
        b"\x00",
        b"\x04" + b"\xff" * 64,
    ],
)
def test_what_is_no_point_never_reaches_the_tpm(recording, peer):
    replay = ReplayTransport(recording)
    key = RegisterKey(Tpm(replay), Loaded(0x80000000, STORAGE_KEY, b""), REGISTERS)
    with pytest.raises(AttestationError, match="point of P-256"):
        key.diffie_hellman(peer)
    assert replay.position == 0


def test_the_tpm_refuses_a_point_off_the_curve_too(tpm):
    _, key = register_key_of(tpm)
    session = start_policy_session(tpm)
    policy_pcr(tpm, session, REGISTERS)
    with pytest.raises(TpmError, match="not on the curve"):
        ecdh_zgen(tpm, key.loaded.handle, session, b"\4" + b"\1" * 64)


def test_no_session_or_key_is_left_behind(tpm):
    """swtpm has room for three of each."""
    created, key = register_key_of(tpm)
    peer = sec1(ec.derive_private_key(5, ec.SECP256R1()))
    for _ in range(10):
        key.diffie_hellman(peer)
        load_register_key(tpm, created, REGISTERS).close()
        with pytest.raises(TpmError):
            load_register_key(tpm, dataclasses.replace(created, private=bytes(20)), REGISTERS)
        with pytest.raises(AttestationError, match="32"):
            create_register_key(tpm, {0: b"short"})
        with pytest.raises(AttestationError, match="from 0 to 15"):
            dataclasses.replace(key, registers=(16,)).diffie_hellman(peer)
    pcr_extend(tpm, 0, DIGEST)
    for _ in range(10):
        with pytest.raises(TpmError, match="a policy check failed"):
            key.diffie_hellman(peer)
    assert [start_policy_session(tpm) for _ in range(3)]
    assert [attestation_key(tpm) for _ in range(2)], "with the node's key, three are loaded"
    with pytest.raises(TpmError, match="flush one") as caught:
        attestation_key(tpm)
    assert caught.value.code == 0x902
    key.close()
    with pytest.raises(TpmError):
        key.close()


def test_threads_share_a_connection(tpm):
    _, key = register_key_of(tpm)
    peers = [ec.generate_private_key(ec.SECP256R1()) for _ in range(40)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        shared = list(pool.map(key.diffie_hellman, map(sec1, peers)))
    assert shared == [in_software(each, key.public_bytes) for each in peers]


def test_tasks_share_a_connection(tpm):
    _, key = register_key_of(tpm)
    peers = [ec.generate_private_key(ec.SECP256R1()) for _ in range(20)]

    async def all_of_them():
        return await asyncio.gather(*(asyncio.to_thread(key.diffie_hellman, sec1(each)) for each in peers))

    assert asyncio.run(all_of_them()) == [in_software(each, key.public_bytes) for each in peers]


# --- enrolment -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [ENDORSEMENT_KEY_ECC, ENDORSEMENT_KEY_RSA], ids=["ecc", "rsa"])
def test_a_credential_opens_only_where_both_keys_are(tpm, emulators, template):
    attester, endorsement = attestation_key(tpm), endorsement_key(tpm, template)
    for secret in (b"s", b"s" * 32):
        made = make_credential(endorsement.public, attester.name, secret, os.urandom(32))
        assert open_credential(tpm, endorsement, attester, made) == secret
    made = make_credential(endorsement.public, attester.name, b"secret", os.urandom(32))
    another = make_credential(endorsement.public, b"\0\x0b" + bytes(32), b"secret", os.urandom(32))
    for changed in (
        another,
        dataclasses.replace(made, blob=made.blob[:-1] + bytes([made.blob[-1] ^ 1])),
        dataclasses.replace(made, encrypted_seed=another.encrypted_seed),
    ):
        with pytest.raises(TpmError):
            open_credential(tpm, endorsement, attester, changed)
    other = emulators().connect()
    with pytest.raises(TpmError):
        open_credential(other, endorsement_key(other, template), attestation_key(other), made)
    assert open_credential(tpm, endorsement, attester, made) == b"secret"


def test_a_credential_is_made_for_an_endorsement_key_alone():
    point = sec1(ec.derive_private_key(5, ec.SECP256R1()))
    good = dataclasses.replace(ENDORSEMENT_KEY_ECC, x=point[1:33], y=point[33:])
    name, seed = b"\0\x0b" + bytes(32), hashlib.sha256(b"").digest()
    made = make_credential(good, name, b"secret", seed)
    assert make_credential(good, name, b"secret", seed) == made
    for key, rule in (
        (dataclasses.replace(ATTESTATION_KEY, x=good.x, y=good.y), "restricted decryption key"),
        (dataclasses.replace(good, attributes=good.attributes | 1 << 18), "restricted decryption key"),
        (dataclasses.replace(good, attributes=good.attributes & ~(1 << 1)), "restricted decryption key"),
        (dataclasses.replace(good, attributes=good.attributes & ~(1 << 16)), "restricted decryption key"),
        (dataclasses.replace(good, aes_bits=0), "restricted decryption key"),
        (dataclasses.replace(good, x=bytes(32)), "no key of P-256"),
        (dataclasses.replace(ENDORSEMENT_KEY_RSA, modulus=b"\1"), "256"),
        (ENDORSEMENT_KEY_RSA, "modulus"),
    ):
        with pytest.raises(AttestationError, match=rule):
            make_credential(key, name, b"secret", seed)
    for arguments in ((name[:-1], b"s", seed), (name, b"", seed), (name, bytes(33), seed), (name, b"s", seed[:-1])):
        with pytest.raises(AttestationError, match="must have 34"):
            make_credential(good, *arguments)
    with pytest.raises(AttestationError, match="no key of P-256"):
        make_credential(good, name, b"secret", bytes(32))


INDEX = 0x01C0000A


def define(tpm, content, size):
    """TPM2_NV_DefineSpace as the owner, readable with the index's own empty password; TPM2_NV_Write of the content."""
    attributes = number(1 << 1 | 1 << 17 | 1 << 18 | 1 << 25, 4)  # ownerwrite, ownerread, authread, no_da
    public = number(INDEX, 4) + number(0x000B, 2) + attributes + sized(b"") + number(size, 2)
    tpm.execute(Command(0x12A, (RH_OWNER,), (RS_PASSWORD,), sized(b"") + sized(public)), nothing)
    for at in range(0, len(content), 512):
        piece = sized(content[at : at + 512]) + number(at, 2)
        tpm.execute(Command(0x137, (RH_OWNER, INDEX), (RS_PASSWORD,), piece), nothing)


def test_an_endorsement_certificate_may_be_there(tpm):
    assert endorsement_certificate(tpm, INDEX) is None
    with pytest.raises(TpmError, match="handle 1"):
        nv_size(tpm, INDEX)
    certificate = b"\x30\x82" + number(1100, 2) + os.urandom(1100)
    define(tpm, certificate + bytes(96), 1200)
    assert nv_size(tpm, INDEX) == 1200
    assert nv_read(tpm, INDEX) == certificate + bytes(96)
    assert endorsement_certificate(tpm, INDEX) == certificate


@pytest.mark.parametrize("content", [b"\x30\x82", b"\x30\x82\x01\x00" + bytes(255), b"\xff" * 64, b"\x30\x80\0\0\0\0"])
def test_an_index_without_a_certificate(tpm, content):
    define(tpm, content, len(content))
    with pytest.raises(AttestationError, match="no DER certificate"):
        endorsement_certificate(tpm, INDEX)


def test_an_index_that_was_never_written(tpm):
    define(tpm, b"", 64)
    with pytest.raises(TpmError, match="never written"):
        endorsement_certificate(tpm, INDEX)
