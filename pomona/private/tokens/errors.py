"""What can go wrong with tokens: bytes that break a rule, a quota that is used up, a machine that computes wrongly."""


class TokenError(ValueError):
    """Bytes, a header or a token that break a rule: one sentence that names the rule, and never the secret itself.

    The only exception that this package's parsers and checks raise on what came from elsewhere.
    """


class QuotaExceeded(Exception):
    """An account asked for more tokens than it has left today; it was given none."""

    def __init__(self, asked_tokens: int, left_tokens: int, per_day_tokens: int):
        super().__init__(
            f"{asked_tokens} tokens were asked for, and {left_tokens} are left of the {per_day_tokens} of this day."
        )
        self.asked_tokens, self.left_tokens, self.per_day_tokens = asked_tokens, left_tokens, per_day_tokens


class SigningFailure(Exception):
    """The private operation gave a wrong result, so that nothing was signed (RFC 9474, section 4.3).

    The fault is the machine's: a wrong result that gets out would give the private key away (Boneh, DeMillo and
    Lipton, EUROCRYPT 1997). Take the machine out of service.
    """
