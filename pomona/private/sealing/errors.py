"""The one exception of this room."""


class SealingError(ValueError):
    """What came in, or what was to go out, breaks a rule of a format or of its cryptography.

    The message is one sentence: what is wrong, and the rule. It never holds keys, plaintext or bytes of a message.
    """
