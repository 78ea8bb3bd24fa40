"""The three ways a command ends badly, each with its own exit code.

A mistake of the user's is one `UserError` in three parts and no traceback. Anything else that escapes is a
bug of ours and keeps its traceback.
"""

USER_ERROR = 2
PREEMPTED = 75  # EX_TEMPFAIL: run the same command again and it goes on
STALLED = 124  # what timeout(1) returns


class UserError(Exception):
    """Something the user gave cannot work: what is wrong, the rule it breaks, what to type instead."""

    def __init__(self, what: str, rule: str, fix: str):
        super().__init__(f"{what}\n  rule: {rule}\n  try:  {fix}")
        self.what, self.rule, self.fix = what, rule, fix


class Preempted(Exception):
    """The machine was asked back. The state is saved; the same command resumes. Exit code 75."""
