"""`pomona VERB ...`: picks the verb and turns every ending into its exit code. Imports no JAX by itself."""

import importlib
import os
import sys

from pomona.core.config import did_you_mean
from pomona.core.errors import PREEMPTED, USER_ERROR, Preempted, UserError

VERBS = {
    "recipes": "list the recipes, or show one with every setting",
    "plan": "say what a recipe takes on given chips: memory, time, money",
    "train": "train a recipe, or go on with a run that was stopped",
    "life": "carry a pair of models through every stage of its life, to its card",
    "launch": "start a run as several processes: here, on Kubernetes, under Slurm",
    "prune": "make a trained model's feed-forward blocks narrower",
    "distill": "let a model learn from what a larger one expects",
    "qat": "train a model on with its weights on a 2-bit grid",
    "palettize": "compress a run's model to 4 bits a weight or less",
    "recover": "train what palettizing has lost back into an adapter",
    "adapt": "train an adapter for a task",
    "generate": "let a trained model continue a prompt",
    "chat": "talk to a model on a device",
    "serve": "serve a model to many users: OpenAI's interface, and a chat page",
    "private": "a private cloud around a model: encrypted to attested nodes, anonymous, in a public log",
    "bench": "time a model on a device, beside what its memory allows",
    "card": "show a model's life on one page: where it comes from, and what came of it",
    "export": "write a run as a Hugging Face folder, a GGUF file or an adapter",
    "import": "read a Hugging Face folder into a run",
}

HELP = """\
pomona: train a server language model and its on-device sibling from one recipe.

usage: pomona VERB [ARGUMENTS]

{verbs}

`pomona VERB --help` says more. The shortest way in:

  pomona train tiny
  pomona generate runs/tiny "def main():"
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns its exit code: 0, 2 (your mistake), 75 (preempted, resumable), 1 (our mistake)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return _run(arguments)
    except UserError as error:
        print(f"pomona: {error}", file=sys.stderr)
        return USER_ERROR
    except Preempted as error:
        print(f"pomona: {error}", file=sys.stderr)
        return PREEMPTED
    except KeyboardInterrupt:
        print("pomona: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `pomona recipes | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        width = max(map(len, VERBS))
        print(HELP.format(verbs="\n".join(f"  {verb:<{width}}  {text}" for verb, text in VERBS.items())), end="")
        return 0
    if arguments[0] in ("-V", "--version"):
        from pomona import __version__

        print(__version__)
        return 0
    verb = arguments[0]
    if verb not in VERBS:
        raise UserError(f"there is no verb {verb!r}.", "the first word says what to do.", did_you_mean(verb, VERBS))
    module = importlib.import_module(f"pomona.cli.{verb}_verb")
    module.run(arguments[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
