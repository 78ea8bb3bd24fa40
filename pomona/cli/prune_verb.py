"""`pomona prune PARENT --ffn K [--run OUT] [--method METHOD] [--step N] [--part.field VALUE ...]`."""

from pathlib import Path
from typing import TYPE_CHECKING, get_args

from pomona.cli.parse import configure_run, take, take_whole
from pomona.core.config import did_you_mean
from pomona.core.errors import UserError

if TYPE_CHECKING:
    from pomona.compress.prune import Pruned

USAGE = """\
usage: pomona prune PARENT --ffn K [--run OUT] [--method METHOD] [--step N] [--part.field VALUE ...]

Makes a model whose feed-forward blocks keep K hidden units each, out of the run folder PARENT. Every layer keeps the
same number, since layers are stacked.

  --ffn K          units kept in each layer; a multiple of 16 can be palettized later
  --run OUT        the run folder to write; PARENT-K by default
  --method METHOD  soft-top-k (default) learns masks on the parent's own text; magnitude and activation choose at once
  --step N         the parent's checkpoint; the newest by default

Masks are learned in OUT/masks, by default for 3 % of the steps of PARENT's first stage. The same command goes on after
a kill. `pomona prune PARENT --help` lists every setting, such as --stages.0.steps and --objective.train-weights.
"""

DESCRIPTION = """\
Learns which {ffn} of {units} hidden units each feed-forward block of {path} keeps. --ffn K, --run OUT, --method METHOD
and --step N are the verb's own; what follows are the settings of the run that learns the masks.
"""

OWN = ("--ffn", "--run", "--method", "--step")
METHODS = ("soft-top-k", "magnitude", "activation")


def run(arguments: list[str]) -> None:
    """Resolves the configuration, then prunes and says what it cost."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return
    path, rest = Path(arguments[0]), arguments[1:]
    ffn, rest = take_whole(rest, "--ffn")
    step, rest = take_whole(rest, "--step")
    out, rest = take(rest, "--run", "runs/pruned")
    method, rest = take(rest, "--method", "soft-top-k")
    method = method or "soft-top-k"
    if method not in METHODS:
        raise UserError(
            f"there is no method {method!r}.", "a method says how units are chosen.", did_you_mean(method, METHODS)
        )
    asks_help = bool({"-h", "--help"} & set(rest))
    if ffn is None and not asks_help:
        raise UserError("--ffn is missing.", "it is the number of hidden units that each layer keeps.", "--ffn 352")
    import jax

    from pomona.compress.prune import Method, masks_run, prune

    assert get_args(Method) == METHODS
    default = masks_run(path, 1 if ffn is None else ffn, step)
    description = DESCRIPTION.format(ffn=ffn or "K", units=default.architecture.ffn_dim, path=path)
    configured = configure_run(default, rest, f"prune {path}", description, OWN)
    target = Path(out or f"{path}-{ffn}")
    pruned = prune(configured, target, method)  # type: ignore[arg-type]
    if jax.process_index() == 0:
        _tell(pruned, target)


def _tell(pruned: "Pruned", target: Path) -> None:
    print(f"\nbits per byte on held-out text   before: {pruned.before:.3f}")
    for look in pruned.during:
        print(
            f"  step {look.step:<6} {look.bits_per_byte:.3f}   "
            f"{look.units:,.0f} units a layer, temperature {look.temperature:.2g}"
        )
    print(f"                                  after: {pruned.after:.3f}")
    print(f"units kept of {pruned.units_before} in each layer: {', '.join(map(str, pruned.units_kept))}")
    print(f"written to {target}: config.json, metrics.jsonl, events.jsonl, tokenizer/, checkpoints/")
    print(f"next: pomona distill {target} --teacher TEACHER")
