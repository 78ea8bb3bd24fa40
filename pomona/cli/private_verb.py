"""`pomona private VERB ...`: a private cloud around a model, role by role."""

import importlib

from pomona.core.config import did_you_mean
from pomona.core.errors import UserError

VERBS = {
    "up": ("private_roles", "all roles on this machine, to try them"),
    "ask": ("private_client", "ask a model that nobody else can listen to"),
    "proxy": ("private_client", "OpenAI's interface on this machine, for any tool, in front of the private cloud"),
    "audit": ("private_client", "replay the log and hold every node to every clause"),
    "status": ("private_client", "which profile is accepted, and what each promises"),
    "release": ("private_publishing", "measure what nodes run, and publish it"),
    "enrol": ("private_publishing", "let a machine's TPM prove itself, and publish that"),
    "revoke": ("private_publishing", "take back a release, a machine or a key"),
    "issuer": ("private_roles", "sign tokens: knows accounts, and not what they ask"),
    "relay": ("private_roles", "pass sealed requests on: knows addresses, and not what they ask"),
    "gateway": ("private_roles", "take tokens and find nodes: knows neither who asks nor what"),
    "node": ("private_roles", "serve the model: knows what is asked, and not by whom"),
    "log": ("private_roles", "publish what everybody relies on, in one history"),
}
HELP = """\
usage: pomona private VERB [ARGUMENTS]

{verbs}

`pomona private VERB --help` says more; docs/private.md says who can see what. The shortest way in:

  pomona private up MODEL
  pomona private ask "Hello"
"""


def run(arguments: list[str]) -> None:
    """Runs one of them."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        width = max(map(len, VERBS))
        print(HELP.format(verbs="\n".join(f"  {verb:<{width}}  {text}" for verb, (_, text) in VERBS.items())), end="")
        return
    verb = arguments[0]
    if verb not in VERBS:
        raise UserError(
            f"there is no verb {verb!r}.", "the word after private says what to do.", did_you_mean(verb, VERBS)
        )
    try:
        import cryptography  # noqa: F401
        import httpx2  # noqa: F401
        import msgspec  # noqa: F401
        import starlette  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"{error.name} is not installed.",
            "the private cloud needs a few more packages.",
            "pip install 'pomona[private]'",
        ) from error
    module = importlib.import_module(f"pomona.cli.{VERBS[verb][0]}")
    getattr(module, verb)(arguments[1:])
