"""HPKE against the vectors of RFC 9180 and two independent implementations, and what it refuses."""

import dataclasses

import pytest
from cryptography.hazmat.primitives import hpke as library
from cryptography.hazmat.primitives.asymmetric import ec, x25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from pomona.private.sealing import aead, hpke, kem
from pomona.private.sealing.errors import SealingError

SUITES = [hpke.Suite(each, cipher) for each in (kem.P256, kem.X25519) for cipher in aead.AEADS.values()]
NAMES = [f"{suite.kem.curve}-{suite.aead.id}" for suite in SUITES]
PSK, PSK_ID = b"a secret of more than 32 bytes, shared before", b"its name"
suites = pytest.mark.parametrize("suite", SUITES, ids=NAMES)


def unhex(case):
    """A vector with bytes in the place of hexadecimal digits."""
    plain = {name: bytes.fromhex(value) for name, value in case.items() if isinstance(value, str)}
    lists = {
        name: [{k: bytes.fromhex(v) if isinstance(v, str) else v for k, v in each.items()} for each in case[name]]
        for name in ("encryptions", "exports")
    }
    return {**case, **plain, **lists}


@pytest.mark.parametrize("number", range(12))
def test_the_vectors_of_rfc_9180(vectors, monkeypatch, number):
    case = unhex(vectors("hpke.json")[number])
    suite = hpke.suite_of(case["kem_id"], case["kdf_id"], case["aead_id"])
    recipient_key = kem.private_key(suite.kem, case["skRm"])
    assert recipient_key.public_bytes == case["pkRm"]
    assert bool(case["psk"]) == (case["mode"] == 1)

    ephemeral = kem.private_key(suite.kem, case["skEm"])
    monkeypatch.setattr(kem, "generate_key", lambda asked: ephemeral)
    secret, enc = kem.encapsulate(suite.kem, case["pkRm"])
    assert (secret, enc) == (case["shared_secret"], case["enc"])
    assert kem.decapsulate(suite.kem, enc, recipient_key) == secret
    schedule = hpke.key_schedule(suite, secret, case["info"], case["psk"], case["psk_id"])
    assert (schedule.key, schedule.base_nonce) == (case["key"], case["base_nonce"])
    assert schedule.exporter_secret == case["exporter_secret"]

    enc, sender = hpke.setup_sender(suite, case["pkRm"], case["info"], case["psk"], case["psk_id"])
    recipient = hpke.setup_recipient(suite, enc, recipient_key, case["info"], case["psk"], case["psk_id"])
    told = {each["sequence"]: each for each in case["encryptions"]}
    for sequence in range(257):
        each = told.get(sequence, {"aad": b"", "pt": b"another", "ct": None})
        sealed = sender.seal(each["aad"], each["pt"])
        assert each["ct"] in (None, sealed)
        assert recipient.open(each["aad"], sealed) == each["pt"]
    for each in case["exports"]:
        for context in (sender, recipient):
            assert context.export(each["exporter_context"], each["L"]) == each["exported_value"]


def library_suite(suite):
    """The library's own HPKE, which has contexts of one message."""
    return library.Suite(
        library.KEM.P256 if suite.kem == kem.P256 else library.KEM.X25519,
        library.KDF.HKDF_SHA256,
        [library.AEAD.AES_128_GCM, library.AEAD.AES_256_GCM, library.AEAD.CHACHA20_POLY1305][suite.aead.id - 1],
    )


@suites
def test_the_library_opens_ours_and_we_open_its(suite):
    key, oracle = kem.generate_key(suite.kem), library_suite(suite)
    enc, sender = hpke.setup_sender(suite, key.public_bytes, b"info")
    assert oracle.decrypt(enc + sender.seal(b"", b"ours"), key.private, b"info") == b"ours"
    theirs = oracle.encrypt(b"theirs", key.private.public_key(), b"info")
    enc, sealed = theirs[: suite.kem.public_key_bytes], theirs[suite.kem.public_key_bytes :]
    assert hpke.setup_recipient(suite, enc, key, b"info").open(b"", sealed) == b"theirs"


@suites
@pytest.mark.parametrize("psk, psk_id", [(b"", b""), (PSK, PSK_ID)], ids=["base", "psk"])
def test_pyhpke_and_we_open_each_other(suite, psk, psk_id):
    pyhpke = pytest.importorskip("pyhpke")
    key = kem.generate_key(suite.kem)
    oracle = pyhpke.CipherSuite.new(pyhpke.KEMId(suite.kem.id), pyhpke.KDFId.HKDF_SHA256, pyhpke.AEADId(suite.aead.id))
    their_key = oracle.kem.deserialize_private_key(private_bytes(key))
    enc, sender = hpke.setup_sender(suite, key.public_bytes, b"info", psk, psk_id)
    recipient = oracle.create_recipient_context(enc, their_key, b"info", psk=psk, psk_id=psk_id)
    for text in (b"one", b"", b"three" * 1000):
        assert recipient.open(sender.seal(b"aad", text), b"aad") == text
    assert recipient.export(b"for", 50) == sender.export(b"for", 50)

    public = oracle.kem.deserialize_public_key(key.public_bytes)
    enc, theirs = oracle.create_sender_context(public, b"info", psk=psk, psk_id=psk_id)
    ours = hpke.setup_recipient(suite, enc, key, b"info", psk, psk_id)
    for text in (b"one", b"", b"three" * 1000):
        assert ours.open(b"aad", theirs.seal(text, b"aad")) == text
    assert ours.export(b"for", 50) == theirs.export(b"for", 50)


def private_bytes(key):
    """The 32 bytes of a private key in memory."""
    if isinstance(key.private, x25519.X25519PrivateKey):
        return key.private.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    return key.private.private_numbers().private_value.to_bytes(32, "big")


@dataclasses.dataclass
class Elsewhere:
    """A key that is not in memory: it only takes the Diffie-Hellman step."""

    inner: object
    public_bytes: bytes
    peers: list

    def diffie_hellman(self, peer_public_bytes):
        self.peers.append(peer_public_bytes)
        return self.inner.diffie_hellman(peer_public_bytes)


@suites
def test_a_key_elsewhere_takes_one_step_and_no_more(suite):
    inner = kem.generate_key(suite.kem)
    key = Elsewhere(inner, inner.public_bytes, [])
    enc, sender = hpke.setup_sender(suite, key.public_bytes, b"")
    assert hpke.setup_recipient(suite, enc, key, b"").open(b"", sender.seal(b"", b"text")) == b"text"
    assert key.peers == [enc]


def test_a_secret_of_p256_is_the_x_coordinate():
    ours, theirs = (ec.derive_private_key(number, ec.SECP256R1()) for number in (2, 3))
    key = kem.private_key(kem.P256, (2).to_bytes(32, "big"))
    six = ec.derive_private_key(6, ec.SECP256R1()).public_key().public_numbers()
    assert key.diffie_hellman(kem.private_key(kem.P256, (3).to_bytes(32, "big")).public_bytes) == six.x.to_bytes(
        32, "big"
    )
    assert ours.exchange(ec.ECDH(), theirs.public_key()) == six.x.to_bytes(32, "big")


# What is refused

TOO_LARGE = bytes.fromhex("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551")  # the order of P-256
ON_CURVE = kem.private_key(kem.P256, bytes(31) + b"\1").public_bytes
NO_POINTS = {
    "empty": b"",
    "short": ON_CURVE[:-1],
    "long": ON_CURVE + b"\0",
    "off the curve": ON_CURVE[:-1] + bytes([ON_CURVE[-1] ^ 1]),
    "compressed": bytes([2 + ON_CURVE[-1] % 2]) + ON_CURVE[1:33],
    "hybrid": bytes([6 + ON_CURVE[-1] % 2]) + ON_CURVE[1:],
    "infinity": b"\0" * 65,
    "beyond the field": b"\4" + b"\xff" * 64,
}


@pytest.mark.parametrize("point", NO_POINTS.values(), ids=NO_POINTS)
def test_what_is_no_point_is_refused_before_the_key_sees_it(point):
    suite, inner = SUITES[0], kem.generate_key(kem.P256)
    key = Elsewhere(inner, inner.public_bytes, [])
    for call in (
        lambda: hpke.setup_sender(suite, point, b""),
        lambda: hpke.setup_recipient(suite, point, key, b""),
        lambda: inner.diffie_hellman(point),
    ):
        with pytest.raises(SealingError, match="P-256"):
            call()
    assert not key.peers


SMALL_ORDER = [
    bytes(32),
    (1).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    (2**255 - 20).to_bytes(32, "little"),
]


@pytest.mark.parametrize("point", SMALL_ORDER)
def test_a_point_of_small_order_is_refused(point):
    suite, key = SUITES[3], kem.generate_key(kem.X25519)
    for call in (
        lambda: hpke.setup_sender(suite, point, b""),
        lambda: hpke.setup_recipient(suite, point, key, b""),
        lambda: key.diffie_hellman(point),
    ):
        with pytest.raises(SealingError, match="small order"):
            call()


@dataclasses.dataclass
class Says:
    """A key that answers every step with the same bytes."""

    public_bytes: bytes
    secret: bytes

    def diffie_hellman(self, peer_public_bytes):
        return self.secret


def test_a_zero_secret_of_any_key_is_refused():
    enc = kem.generate_key(kem.X25519).public_bytes
    with pytest.raises(SealingError, match="small order"):
        kem.decapsulate(kem.X25519, enc, Says(bytes(32), bytes(32)))


@pytest.mark.parametrize("each", [kem.P256, kem.X25519], ids=["P-256", "X25519"])
@pytest.mark.parametrize("length", [0, 31, 33, 65])
def test_a_secret_of_another_length_is_refused(each, length):
    key = kem.generate_key(each)
    with pytest.raises(SealingError, match="it has 32"):
        kem.decapsulate(each, key.public_bytes, Says(key.public_bytes, b"\1" * length))


@pytest.mark.parametrize("each, other", [(kem.P256, kem.X25519), (kem.X25519, kem.P256)], ids=["P-256", "X25519"])
def test_a_key_of_the_other_curve_is_refused(each, other):
    enc = kem.generate_key(each).public_bytes
    with pytest.raises(SealingError, match="another curve"):
        kem.decapsulate(each, enc, kem.generate_key(other))
    with pytest.raises(SealingError, match="bytes"):
        kem.decapsulate(other, enc, kem.generate_key(other))


@pytest.mark.parametrize("each", [kem.P256, kem.X25519], ids=["P-256", "X25519"])
@pytest.mark.parametrize("private", [b"", b"\1" * 31, b"\1" * 33])
def test_a_private_key_of_another_length_is_refused(each, private):
    with pytest.raises(SealingError, match="32 bytes"):
        kem.private_key(each, private)


@pytest.mark.parametrize("private", [bytes(32), TOO_LARGE, b"\xff" * 32])
def test_a_private_key_out_of_range_is_refused(private):
    with pytest.raises(SealingError, match="range"):
        kem.private_key(kem.P256, private)


@pytest.mark.parametrize("ids", [(0x0011, 1, 1), (0x0020, 2, 1), (0x0020, 1, 0), (0x0010, 1, 0xFFFF), (0, 0, 0)])
def test_another_suite_is_refused(ids):
    with pytest.raises(SealingError, match="not supported"):
        hpke.suite_of(*ids)


@pytest.mark.parametrize("psk, psk_id", [(PSK, b""), (b"", PSK_ID), (PSK[:31], PSK_ID)])
def test_a_short_or_half_given_pre_shared_key_is_refused(psk, psk_id):
    key = kem.generate_key(kem.P256)
    with pytest.raises(SealingError, match="pre-shared"):
        hpke.setup_sender(SUITES[0], key.public_bytes, b"", psk, psk_id)
    with pytest.raises(SealingError, match="pre-shared"):
        hpke.setup_recipient(SUITES[0], key.public_bytes, key, b"", psk, psk_id)


OTHERS = {"info": (b"other", PSK, PSK_ID), "psk": (b"info", PSK + b".", PSK_ID), "psk_id": (b"info", PSK, b"other")}


@suites
@pytest.mark.parametrize("other", [*OTHERS.values(), (b"info", b"", b"")], ids=[*OTHERS, "mode"])
def test_nothing_opens_where_the_contexts_differ(suite, other):
    key = kem.generate_key(suite.kem)
    enc, sender = hpke.setup_sender(suite, key.public_bytes, b"info", PSK, PSK_ID)
    sealed = sender.seal(b"", b"text")
    recipient = hpke.setup_recipient(suite, enc, key, *other)
    with pytest.raises(SealingError, match="does not open"):
        recipient.open(b"", sealed)
    assert recipient.export(b"", 32) != sender.export(b"", 32)


@suites
def test_messages_open_once_in_order_and_unchanged(suite):
    key = kem.generate_key(suite.kem)
    enc, sender = hpke.setup_sender(suite, key.public_bytes, b"")
    first, second = sender.seal(b"aad", b"first"), sender.seal(b"aad", b"second")
    recipient = hpke.setup_recipient(suite, enc, key, b"")
    refused = [(b"aad", second), (b"", first), (b"aad", first[:-1]), (b"aad", b""), (b"aad", bytes(15))]
    refused += [(b"aad", first[:at] + bytes([first[at] ^ 1]) + first[at + 1 :]) for at in range(len(first))]
    for aad, sealed in refused:
        with pytest.raises(SealingError, match="does not open"):
            recipient.open(aad, sealed)
    assert recipient.open(b"aad", first) == b"first"  # what did not open was not counted
    with pytest.raises(SealingError):
        recipient.open(b"aad", first)
    assert recipient.open(b"aad", second) == b"second"


@pytest.mark.parametrize("cipher", aead.AEADS.values(), ids=["aes-128", "aes-256", "chacha20"])
def test_a_key_is_used_up(cipher):
    sealer, opener = (kind(cipher, bytes(cipher.key_bytes), b"\5" * 12) for kind in (aead.Sealer, aead.Opener))
    for each in (sealer, opener):
        each._numbered.sequence = (1 << 96) - 2
    last = sealer.seal(b"", b"the last")
    assert opener.open(b"", last) == b"the last"
    with pytest.raises(SealingError, match="used up"):
        sealer.seal(b"", b"one more")
    with pytest.raises(SealingError, match="used up"):
        opener.open(b"", last)


def test_a_message_is_too_long_for_the_library(monkeypatch):
    sealer, opener = (kind(aead.AES_128_GCM, bytes(16), bytes(12)) for kind in (aead.Sealer, aead.Opener))
    monkeypatch.setattr(aead, "MOST_BYTES", 100)
    sealed = sealer.seal(b"", bytes(84))
    for call in (
        lambda: sealer.seal(b"", bytes(85)),
        lambda: sealer.seal(bytes(101), b""),
        lambda: opener.open(b"", bytes(101)),
        lambda: opener.open(bytes(101), sealed),
    ):
        with pytest.raises(SealingError, match="too long"):
            call()
    assert opener.open(b"", sealed) == bytes(84)


def test_an_export_is_too_long():
    key = kem.generate_key(kem.X25519)
    enc, sender = hpke.setup_sender(SUITES[3], key.public_bytes, b"")
    recipient = hpke.setup_recipient(SUITES[3], enc, key, b"")
    assert sender.export(b"", 8160) == recipient.export(b"", 8160)
    for context in (sender, recipient):
        with pytest.raises(SealingError, match="8160"):
            context.export(b"", 8161)


def test_keys_are_not_in_what_is_printed():
    key = kem.private_key(kem.P256, bytes(31) + b"\7")
    schedule = hpke.key_schedule(SUITES[0], b"\xee" * 32, b"", b"", b"")
    assert "private" not in repr(key) and "key=" not in repr(schedule) and "secret" not in repr(schedule)
