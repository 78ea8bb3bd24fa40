"""Blind RSA signatures: RFC 9474, in its four variants with SHA-384.

A client prepares a message, blinds it and has it signed; it unblinds what comes back and holds an ordinary RSASSA-PSS
signature that the signer has never seen and cannot recognize.

What takes the same time whatever the secrets are, and what does not: nothing here does by itself, because `pow` of
Python's integers branches on its numbers, and `cryptography` offers no RSA operation without padding. The signer
therefore hides both inputs of `pow`: the base is multiplied by a fresh random number's power (Kocher, CRYPTO 1996,
section 10), and each CRT exponent is increased by a fresh random multiple of its group's order, so that times of
many signatures do not add up to the key. What a client sends was besides blinded by the client, but a malicious client
knows its own input, so that blinding is no protection of the key. Memory is not erased: Python cannot.
The client's arithmetic works on numbers that are used once.
"""

import dataclasses
import hashlib
import math
import secrets

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from pomona.private.tokens.errors import SigningFailure, TokenError

HASH_BYTES = 48
"""Of SHA-384."""
PREFIX_BYTES = 32
"""What the randomized variants put before a message (RFC 9474, section 4.1)."""
EXPONENT_BLIND_BITS = 64
"""Of the random factor that hides a CRT exponent: it makes the exponents, and so the signing, 6 % longer."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """A named variant of RSABSSA (RFC 9474, section 5). Signer and verifier must mean the same one."""

    name: str
    salt_bytes: int
    """Of the PSS encoding."""
    randomized: bool
    """Whether `prepare` puts 32 random bytes before the message."""


PSS_RANDOMIZED = Variant("RSABSSA-SHA384-PSS-Randomized", 48, True)
PSSZERO_RANDOMIZED = Variant("RSABSSA-SHA384-PSSZERO-Randomized", 0, True)
PSS_DETERMINISTIC = Variant("RSABSSA-SHA384-PSS-Deterministic", 48, False)
PSSZERO_DETERMINISTIC = Variant("RSABSSA-SHA384-PSSZERO-Deterministic", 0, False)
VARIANTS = {one.name: one for one in (PSS_RANDOMIZED, PSSZERO_RANDOMIZED, PSS_DETERMINISTIC, PSSZERO_DETERMINISTIC)}


def prepare(variant: Variant, msg: bytes, *, msg_prefix: bytes | None = None) -> bytes:
    """The message that is signed: `msg`, behind 32 random bytes where the variant is randomized (section 4.1).

    Messages that a signer could guess need a randomized variant (section 7.3). `msg_prefix` is for test vectors.
    """
    if not variant.randomized:
        return msg
    return (secrets.token_bytes(PREFIX_BYTES) if msg_prefix is None else msg_prefix) + msg


def blind(
    variant: Variant,
    public_key: rsa.RSAPublicKey,
    msg: bytes,
    *,
    salt: bytes | None = None,
    blind_inverse: int | None = None,
) -> tuple[bytes, int]:
    """What the signer gets, as long as its modulus, and the secret inverse that `finalize` needs (section 4.2).

    `msg` is a prepared one. `salt` and `blind_inverse` are for test vectors: anything but fresh random numbers lets
    the signer recognize the signature.

    Raises:
        TokenError: "encoding error", the modulus is too short for the encoding or the salt not the variant's;
            "invalid input" or "blinding error", a number shares a factor with the modulus.
    """
    numbers = public_key.public_numbers()
    if salt is None:
        salt = secrets.token_bytes(variant.salt_bytes)
    if len(salt) != variant.salt_bytes:
        raise TokenError(f"Encoding error: {variant.name} takes a salt of {variant.salt_bytes} bytes.")
    m = int.from_bytes(emsa_pss_encode(msg, numbers.n.bit_length() - 1, salt))
    if math.gcd(m, numbers.n) != 1:
        raise TokenError("Invalid input: the message is not coprime with the modulus, so the key is none of RSA.")
    # The number that is drawn is the inverse: as uniform as the blind itself, and what the vectors give.
    inverse = 1 + secrets.randbelow(numbers.n - 1) if blind_inverse is None else blind_inverse
    try:
        r = pow(inverse, -1, numbers.n)
    except ValueError as error:
        raise TokenError("Blinding error: the blind has no inverse modulo the key's modulus.") from error
    z = m * pow(r, numbers.e, numbers.n) % numbers.n
    return z.to_bytes(modulus_bytes(public_key)), inverse


def blind_sign(private_key: rsa.RSAPrivateKey, blinded_msg: bytes) -> bytes:
    """The signature of what a client blinded, as long as the modulus (section 4.3).

    Raises:
        TokenError: "unexpected input size" or "message representative out of range".
        SigningFailure: the result does not verify.
    """
    numbers = private_key.private_numbers()
    n, e = numbers.public_numbers.n, numbers.public_numbers.e
    m = _representative(blinded_msg, private_key.public_key())
    if m >= n:
        raise TokenError("Message representative out of range: it has to be less than the modulus.")
    s = _rsasp1(numbers, m)
    if pow(s, e, n) != m:
        raise SigningFailure("The signature does not verify with its own key; it was thrown away.")
    return s.to_bytes(modulus_bytes(private_key.public_key()))


def finalize(variant: Variant, public_key: rsa.RSAPublicKey, msg: bytes, blind_sig: bytes, inverse: int) -> bytes:
    """The signature of a prepared message, unblinded and verified, as long as the modulus (section 4.4).

    Raises:
        TokenError: "unexpected input size", or "invalid signature" where the signer did not sign what it was sent.
    """
    z = _representative(blind_sig, public_key)
    signature = (z * inverse % public_key.public_numbers().n).to_bytes(modulus_bytes(public_key))
    if not verify(variant, public_key, msg, signature):
        raise TokenError("Invalid signature: the signer's answer is no signature of the message that was blinded.")
    return signature


def verify(variant: Variant, public_key: rsa.RSAPublicKey, msg: bytes, signature: bytes) -> bool:
    """Whether a signature of a prepared message is valid: RSASSA-PSS-VERIFY of RFC 8017, section 8.1.2."""
    if len(signature) != modulus_bytes(public_key):
        return False  # the library would take one without its leading zero, too
    pss = padding.PSS(padding.MGF1(hashes.SHA384()), variant.salt_bytes)
    try:
        public_key.verify(signature, msg, pss, hashes.SHA384())
    except InvalidSignature:
        return False
    return True


def modulus_bytes(public_key: rsa.RSAPublicKey) -> int:
    """The length of the modulus, and so of everything that is sent."""
    return -(-public_key.key_size // 8)


def emsa_pss_encode(msg: bytes, encoded_bits: int, salt: bytes) -> bytes:
    """EMSA-PSS-ENCODE with SHA-384 and MGF1 (RFC 8017, section 9.1.1), in as many bytes as `encoded_bits` need.

    `encoded_bits` is one less than the modulus has: that is how the vectors of RFC 9474 are made, and RSASSA-PSS.

    Raises:
        TokenError: "encoding error", the modulus is too short.
    """
    length = -(-encoded_bits // 8)
    padding_bytes = length - len(salt) - HASH_BYTES - 2
    if padding_bytes < 0:
        raise TokenError(f"Encoding error: {length} bytes are too few for a hash and a salt.")
    digest = hashlib.sha384(bytes(8) + hashlib.sha384(msg).digest() + salt).digest()
    block = bytes(padding_bytes) + b"\x01" + salt
    mask = int.from_bytes(_mgf1(digest, len(block))) ^ int.from_bytes(block)
    mask &= (1 << (8 * len(block) - (8 * length - encoded_bits))) - 1
    return mask.to_bytes(len(block)) + digest + b"\xbc"


def _mgf1(seed: bytes, length: int) -> bytes:
    blocks = -(-length // HASH_BYTES)
    return b"".join(hashlib.sha384(seed + counter.to_bytes(4)).digest() for counter in range(blocks))[:length]


def _representative(content: bytes, public_key: rsa.RSAPublicKey) -> int:
    if len(content) != modulus_bytes(public_key):
        raise TokenError(f"Unexpected input size: it has to be as long as the modulus, {modulus_bytes(public_key)}.")
    return int.from_bytes(content)


def _rsasp1(numbers: rsa.RSAPrivateNumbers, m: int) -> int:
    """RSASP1 of RFC 8017, section 5.2.1, in its second form, with base and exponents blinded."""
    n, e = numbers.public_numbers.n, numbers.public_numbers.e
    p, q = numbers.p, numbers.q
    r = 1 + secrets.randbelow(n - 1)
    blinded = m * pow(r, e, n) % n
    at_p = pow(blinded % p, numbers.dmp1 + secrets.randbits(EXPONENT_BLIND_BITS) * (p - 1), p)
    at_q = pow(blinded % q, numbers.dmq1 + secrets.randbits(EXPONENT_BLIND_BITS) * (q - 1), q)
    s = at_q + q * ((at_p - at_q) * numbers.iqmp % p)
    return s * pow(r, -1, n) % n
