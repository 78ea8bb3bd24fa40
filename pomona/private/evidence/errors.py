"""The one error of this room: evidence, or the device that makes it, is not what the caller requires."""


class AttestationError(ValueError):
    """Evidence is malformed, forged or not as required; the message, one sentence, says what is wrong and the rule."""
