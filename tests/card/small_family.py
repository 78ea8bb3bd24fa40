"""A family of run folders as their files are written, with numbers that are known: nothing is trained."""

import hashlib
import json

from pomona.checkpoint.manifest import NAME
from pomona.core.config import to_json
from pomona.recipes.tiny import tiny

MACHINE = {"system": "Linux", "processor": "Pear P1", "cores": 2}
BEGAN = 1_700_000_000.0
SAMPLE = {"prompt": "def <b>main</b>():", "text": ' return "&"', "temperature": 0.8, "seed": 3, "device": "cpu"}


def lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def write_run(folder, command, *, origin=None, steps=40, ffn=704, bits_per_byte=2.0, end=(), **changes):
    """One run folder; `origin` is (its name, its folder), or what stands in config.json."""
    config = to_json(tiny())
    config["stages"][0]["steps"] = steps
    config["architecture"]["ffn_dim"] = ffn
    config |= changes
    if isinstance(origin, dict):
        config["origin"] = origin
    elif origin:
        name, parent = origin
        (manifest,) = parent.glob(f"checkpoints/*/{NAME}")
        digest = hashlib.sha256(manifest.read_bytes()).hexdigest()[:16]
        config["origin"] = {"run": name, "step": int(manifest.parent.name), "fingerprint": digest}
    checkpoint = folder / "checkpoints" / str(steps)
    checkpoint.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    sizes = {"params/d/a": [1000 * ffn, 1], "params/_METADATA": [24, 2], "optimizer/d/b": [999_999, 3]}
    (checkpoint / NAME).write_text(json.dumps({"about": {"run": folder.name}, "crc32": sizes}))
    start = {"devices": 1, "device": "cpu", "command": command, "versions": {"pomona": "0.1.0", "jax": "0.10.2"}}
    events = [
        {"event": "start", "time_seconds": BEGAN, "machine": MACHINE, **start},
        {"event": "fallback", "time_seconds": BEGAN + 1, "step": 3},
        {"event": "resume", "time_seconds": BEGAN + 2, "began_seconds": BEGAN, "machine": MACHINE, **start},
        {"event": "checkpoint", "time_seconds": BEGAN + 80, "step": steps, "kept_seconds": 60.0},
        {"event": "end", "time_seconds": BEGAN + 90, "step": steps, "bits_per_byte_before": 4.0}
        | {"bits_per_byte": bits_per_byte, **dict(end)},
    ]
    (folder / "events.jsonl").write_text(lines(events))
    metrics = [{"step": 0, "stage": "core", "bits_per_byte": 4.0}]
    for step in range(10, steps + 1, 10):
        record = {"step": step, "stage": "core", "loss": 8 - step / 20, "tokens_per_second": 1000.0 + step}
        metrics.append(record | {"step_seconds": 1.5, "goodput": 0.5 + step / 100})
    metrics.append({"step": 15, "stage": "core", "loss": None, "non_finite": {"loss": "nan"}})
    metrics.append({"step": steps, "stage": "core", "heldout_loss": 4.0, "bits_per_byte": bits_per_byte})
    (folder / "metrics.jsonl").write_text(lines(metrics))
    old = SAMPLE | {"step": steps - 1, "text": "what an older step said"}
    (folder / "samples.jsonl").write_text(lines([old, SAMPLE | {"step": steps, "tokens_per_second": 321.0}]))


def no_loop(folder, event):
    """Leaves of a folder what a stage without training writes: one event that says what came of it."""
    (folder / "events.jsonl").write_text(lines([event | {"time_seconds": BEGAN + 50}]))
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    (folder / "metrics.jsonl").write_text(lines([last]) if "after" in event else "")


def write_family(place):
    """parent -> pruned -> distilled -> palettized -> recovered, in `place/life`; the last one's folder."""
    life = place / "life"
    name = lambda run: (f"life/{run}", life / run)
    write_run(life / "parent", "pomona train tiny --run life/parent", ffn=1024, bits_per_byte=2.1)
    pruned = "pomona prune life/parent --ffn 512 --run life/pruned"
    write_run(life / "pruned", pruned, origin=name("parent"), ffn=512, bits_per_byte=2.5)
    write_run(life / "pruned" / "masks", pruned, origin=name("parent"), steps=20, ffn=1024, bits_per_byte=2.2)
    no_loop(life / "pruned", {"event": "pruned", "units_kept": [512] * 4, "before": 2.1, "after": 2.5})
    teacher = {"objective": {"kind": "distillation", "teacher": {"run": "life/parent", "step": 40, "fingerprint": "f"}}}
    distilled = "pomona distill life/pruned --teacher life/parent --run life/distilled"
    write_run(life / "distilled", distilled, origin=name("pruned"), ffn=512, bits_per_byte=2.2, **teacher)
    write_run(life / "palettized", "", origin=name("distilled"), ffn=512, bits_per_byte=2.3, **teacher)
    no_loop(life / "palettized", {"event": "palettized", "bits_per_weight": 3.71, "bits_per_parameter": 4.5})
    (life / "palettized" / "checkpoints").rename(life / "palettized" / "palettes")
    palettes = {"bits_per_weight": 3.71, "fingerprint": "pears", "tensors": []}
    (life / "palettized" / "palettes" / "palettes.json").write_text(json.dumps(palettes))
    (life / "palettized" / "palettes" / "rest.safetensors").write_bytes(bytes(5000))
    recovered = "pomona recover life/palettized --run life/recovered"
    objective = {"objective": {"kind": "low-rank", "rank": 16}}
    origin = {"run": "life/palettized", "step": 40, "fingerprint": "pears"}
    write_run(life / "recovered", recovered, origin=origin, ffn=512, bits_per_byte=2.24, **objective)
    command = "pomona palettize life/distilled --bits 3.7 --run life/palettized"
    turns = [
        {"event": "begin", "run": "life/distilled", "makes": True, "budget_seconds": 200.0, "command": distilled},
        {"event": "end", "run": "life/distilled", "makes": True, "exit_code": 0, "seconds": 150.0},
        {"event": "begin", "run": "life/palettized", "makes": True, "budget_seconds": None, "command": command},
        {"event": "end", "run": "life/palettized", "makes": True, "exit_code": 0, "seconds": 7.0},
        {"event": "begin", "run": "life/distilled", "makes": False, "budget_seconds": None},
    ]
    (life / "life.jsonl").write_text(lines(turns))
    return life / "recovered"
