"""Pruned, distilled, both or neither, at equal student tokens: the ordering of the AFM report's Table 6, but small.

    make bench-ablation

One parent, with a feed-forward block four times as wide, is trained on real text. From it come, for each seed:

    scratch                  the student from random weights
    pruned                   the parent pruned to the student's width by learned masks, then trained on the text
    distilled                the student from random weights, on 0.9 of the parent's top token and 0.1 of the label
    pruned+distilled         the pruned one so distilled
    distilled-logits, pruned+distilled-logits      the same on the parent's whole distribution
    scratch-5x               the student from random weights, five times as long

by the commands a user types, each for as many steps of the same size (the masks' steps come on top, as in the report).
Held-out bits per byte and the share of next tokens that are the most likely one, since the report's own measure (MMLU)
asks for the best answer and not for probabilities. The last line is JSON: means and standard deviations over seeds.

All that is made stays in runs/ablation/KEY, where KEY stands for the settings; what is there is not made again.
"""

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
POMONA = [sys.executable, "-m", "pomona.cli.main"]
SHAPE = {"vocab-size": 2048, "model-dim": 128, "num-layers": 4, "num-heads": 2, "num-kv-heads": 1, "head-dim": 64}
PARENT_FFN, STUDENT_FFN, SEQUENCE = 1536, 384, 256
LONGER = 5
TEXT = Path("pretrain_openstax") / "openstax-002.jsonl.xz"  # textbooks; a teacher labels all of them
NAMES = ("scratch", "pruned", "distilled", "pruned+distilled")
NAMES += ("distilled-logits", "pruned+distilled-logits", f"scratch-{LONGER}x")


def settings(arguments, steps, ffn_dim, seed):
    """What every command of the bench is given."""
    sizes = {**SHAPE, "ffn-dim": ffn_dim}
    return [
        *("--data.sources.0.name", "text", "--data.sources.0.address", arguments.address),
        *("--data.tokenizer.sample-bytes", "20000000", "--data.tokenizer.vocab-size", str(SHAPE["vocab-size"])),
        *("--data.cache", str(arguments.cache), "--data.heldout-fraction", "0.04"),
        *(word for name, size in sizes.items() for word in (f"--architecture.{name}", str(size))),
        *schedule(steps, arguments.batch),
        *("--seed", str(seed)),
    ]


def schedule(steps, batch):
    """A stage of so many steps, judged at its end."""
    return [
        *("--stages.0.steps", str(steps), "--stages.0.batch-size", str(batch)),
        *("--stages.0.sequence-length", str(SEQUENCE), "--stages.0.schedule.warmup-steps", str(max(1, steps // 10))),
        *("--evaluation.every-steps", str(steps), "--evaluation.max-batches", "8"),
    ]


def make(work, name, command):
    """Makes a run folder by a command, unless an earlier start has; returns the folder."""
    folder, done = work / name, work / f"{name}.done"
    if not done.exists():
        command = [*command, "--run", str(folder)]
        print("pomona " + " ".join(command), file=sys.stderr, flush=True)
        subprocess.run([*POMONA, *command], check=True, stdout=sys.stderr)
        done.touch()
    return folder


def student(work, name, seed, arguments):
    """The run folder of one row and seed, made with everything it comes from."""
    steps = arguments.steps * (LONGER if name.endswith("x") else 1)
    own = settings(arguments, steps, STUDENT_FFN, seed)
    parent = make(work, "parent", ["train", "tiny", *settings(arguments, arguments.parent_steps, PARENT_FFN, 0)])
    place = f"{name}-{seed}"
    start = "tiny"
    if name.startswith("pruned"):
        masks = ["--stages.0.steps", str(arguments.mask_steps), "--stages.0.schedule.warmup-steps", "5"]
        start = str(
            make(work, f"masks-{seed}", ["prune", str(parent), "--ffn", str(STUDENT_FFN), "--seed", str(seed), *masks])
        )
    if "distilled" not in name:
        return make(work, place, ["train", "tiny", *(["--from", start] if start != "tiny" else []), *own])
    target = ["--objective.target", "logits" if name.endswith("logits") else "top1"]
    own = own if start == "tiny" else [*schedule(steps, arguments.batch), "--seed", str(seed)]
    return make(work, place, ["distill", start, "--teacher", str(parent), *target, *own])


def judge(folder, batches, token_bytes):
    """Bits per byte and top-1 accuracy on held-out batches, of the model in a run folder."""
    import jax
    import jax.numpy as jnp

    from pomona.model.config import resolve
    from pomona.model.objective import TokenBatch, hidden_states
    from pomona.train.load import load_model

    model = load_model(folder)
    execution = resolve(model.run.execution, "cpu")

    @jax.jit
    def answer(params, batch):
        hidden_BTD = hidden_states(params, batch, model.run.architecture, execution, model.stage.rope_base)
        logits_BTV = hidden_BTD @ params.embedding.T
        chosen_BT = jnp.take_along_axis(jax.nn.log_softmax(logits_BTV), batch.targets[..., None], -1)[..., 0]
        real_BT = batch.segments > 0
        right_BT = (jnp.argmax(logits_BTV, -1) == batch.targets) & real_BT
        return jnp.sum(jnp.where(real_BT, -chosen_BT, 0.0), -1), jnp.sum(right_BT, -1)

    nats = right = tokens = size = 0.0
    for make_batch in batches:
        batch = make_batch()
        real = batch.segments > 0
        arrays = map(jnp.asarray, (batch.tokens, batch.targets, batch.segments, batch.positions))
        found = [np.asarray(each).astype(np.float64).sum() for each in answer(model.params, TokenBatch(*arrays))]
        nats, right = nats + found[0], right + found[1]
        tokens, size = tokens + real.sum(), size + token_bytes[batch.targets][real].sum()
    return nats / np.log(2) / size, right / tokens


def held_out(work):
    """The parent's held-out batches, at most 60 of 16 sequences, and the bytes of each token."""
    from pomona.core.run_folder import RunFolder, read_config
    from pomona.data.prepare import heldout_batches, prepare
    from pomona.data.tokenizer import load_tokenizer
    from pomona.train.config import Run

    prepared = prepare(read_config(RunFolder(work / "parent"), Run).data, lambda line: print(line, file=sys.stderr))
    return heldout_batches(prepared, SEQUENCE, 16, 60), load_tokenizer(prepared.tokenizer).token_bytes()


def main():
    """Makes what is not there yet, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    default = ROOT.parent / "shared" / "data"
    parser.add_argument("--data", type=Path, default=default, help=f"a folder with {TEXT}")
    parser.add_argument("--steps", type=int, default=200, help="of each student")
    parser.add_argument("--parent-steps", type=int, default=800)
    parser.add_argument("--mask-steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=8, help="sequences of 256 tokens in a step")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="a part of the table")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "ablation")
    arguments = parser.parse_args()
    arguments.address = str(arguments.data / TEXT)
    if not (arguments.data / TEXT).exists():
        print(f"{arguments.data} holds no {TEXT}: the text is Python's own library", file=sys.stderr)
        arguments.address = "stdlib"
    arguments.cache = (arguments.work / "cache").absolute()
    key = [SHAPE, PARENT_FFN, STUDENT_FFN, arguments.address, arguments.batch]
    key += [arguments.steps, arguments.parent_steps, arguments.mask_steps]
    work = (arguments.work / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]).absolute()
    work.mkdir(parents=True, exist_ok=True)
    os.environ["PYTHONPATH"] = str(ROOT)
    runs = {(name, seed): student(work, name, seed, arguments) for seed in arguments.seeds for name in arguments.only}
    batches, token_bytes = held_out(work)
    rows = []
    for name in ("parent", *arguments.only):
        folders = [work / "parent"] if name == "parent" else [runs[name, seed] for seed in arguments.seeds]
        bits, right = zip(*(judge(folder, batches, token_bytes) for folder in folders))
        steps = arguments.parent_steps if name == "parent" else arguments.steps * (LONGER if name.endswith("x") else 1)
        spread = lambda values: statistics.stdev(values) if len(values) > 1 else None
        rows.append(
            {
                **{"name": name, "seeds": len(folders), "tokens": steps * arguments.batch * SEQUENCE},
                **{"bits_per_byte_mean": statistics.mean(bits), "bits_per_byte_std": spread(bits)},
                **{"accuracy_mean": statistics.mean(right), "accuracy_std": spread(right)},
            }
        )
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    asked = {name: getattr(arguments, name) for name in ("steps", "parent_steps", "mask_steps", "batch", "seeds")}
    print(json.dumps({"cpu": platform.processor() or platform.machine(), **asked, "rows": rows}))


if __name__ == "__main__":
    main()
