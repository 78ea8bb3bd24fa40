"""What a TPM says when it refuses, in words: response codes (TPM 2.0 Library specification, Part 2, section 6.6)."""

from pomona.private.evidence.errors import AttestationError

FORMAT_ONE, IS_PARAMETER, IS_SESSION = 0x080, 0x040, 0x800

_FORMAT_ONE_NAMES = {
    0x082: "the attributes are not as they must be",
    0x084: "a value is out of range or does not fit",
    0x085: "the hierarchy is disabled or the wrong one",
    0x08A: "the kind of the object is wrong",
    0x08B: "there is no such handle here",
    0x08E: "the authorisation failed",
    0x092: "the scheme is not supported or does not fit",
    0x095: "a structure has the wrong size",
    0x09A: "the parameters are cut short",
    0x09B: "the signature is not valid",
    0x09C: "the key does not fit this use",
    0x09D: "a policy check failed",
    0x09F: "an integrity check failed",
    0x0A0: "the ticket is not valid",
    0x0A2: "the authorisation failed (no dictionary-attack protection)",
    0x0A4: "the policy is for another command",
    0x0A5: "the public and the private part do not belong together",
    0x0A6: "the curve is not supported",
    0x0A7: "the point is not on the curve",
}
_NAMES = {
    0x100: "the TPM was not started, or is started already",
    0x101: "the TPM is in failure mode",
    0x120: "the command is disabled",
    0x124: "this handle cannot be authorised so",
    0x125: "an authorisation is missing",
    0x127: "the registers are not what they must be",
    0x128: "registers have changed since they were checked",
    0x12F: "this authorisation is not available for this object",
    0x142: "the command has the wrong size",
    0x143: "the TPM does not know the command",
    0x149: "the non-volatile index does not allow it",
    0x14A: "the non-volatile index was never written",
    0x902: "no room for another object: flush one",
    0x903: "no room for another session: flush one",
    0x905: "no handle for another session: flush one",
    0x910: "the first handle is of an object that is not loaded",
    0x911: "the second handle is of an object that is not loaded",
    0x918: "the first session is not loaded",
    0x921: "the TPM is locked out after wrong authorisations",
    0x922: "the TPM asks to try again later",
}


class TpmError(AttestationError):
    """A TPM refused a command, or did not answer as a TPM does.

    `code` is its response code, None where there was no valid response; `command` is the command's name in Part 3.
    """

    def __init__(self, command: str, reason: str, code: int | None = None) -> None:
        super().__init__(f"{command}: {reason}.")
        self.command, self.code = command, code


def refused(command: str, code: int) -> TpmError:
    """The error for a response code that is not 0."""
    return TpmError(command, f"the TPM answered 0x{code:03x}, {name_of_code(code)}", code)


def name_of_code(code: int) -> str:
    """A response code in words, with the handle, parameter or session it is about, which are counted from 1."""
    if not code & FORMAT_ONE:
        return _NAMES.get(code & 0xFFF, "a code that has no name here")
    name = _FORMAT_ONE_NAMES.get(code & 0xBF, "a code that has no name here")
    if code & IS_PARAMETER:
        return f"{name} (parameter {code >> 8 & 0xF})"
    place = code >> 8 & 0x7
    if not place:
        return name
    return f"{name} ({'session' if code & IS_SESSION else 'handle'} {place})"
