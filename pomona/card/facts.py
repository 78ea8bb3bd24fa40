"""What a card says of each member of a family: numbers that its run folder holds, each with where it was read. No JAX.

A number that no file holds is None and stays a dash on the page; nothing is estimated here.
"""

import dataclasses
import hashlib
import math
import shlex
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

from pomona.card.family import Member, find, origin_in
from pomona.checkpoint.manifest import NAME as MANIFEST
from pomona.core.config import from_json
from pomona.core.errors import UserError
from pomona.core.files import read_json
from pomona.core.run_folder import RunFolder
from pomona.metrics.records import Record
from pomona.model.config import Architecture
from pomona.model.count import count_parameters

PALETTES = Path("palettes") / "palettes.json"  # what a palettized run has instead of a checkpoint
FLOAT_BITS = 32.0  # of a weight in a checkpoint: parameters are float32
ENDS = ("end", "pruned", "palettized")  # the events that say what came of a stage
ORDINARY = {"start", "resume", "checkpoint", "remote_checkpoint", *ENDS}
DONE = {  # by the verb that made the folder
    "train": "trained",
    "prune": "pruned",
    "distill": "distilled",
    "palettize": "palettized",
    "qat": "trained for two bits",
    "recover": "recovered",
    "adapt": "adapted to a task",
    "import": "imported",
}
STARTS = ("start", "resume")
KNOWN = {"event", "time_seconds", "step", "bits_per_byte_before", "bits_per_byte", "heldout_loss", "before", "after"}
Curve = tuple[tuple[int, float], ...]


@dataclasses.dataclass(frozen=True)
class Facts:
    """One member. Times in seconds, sizes in bytes."""

    run: str
    missing: bool
    done: str
    origin: str | None
    origin_state: str | None
    """What is wrong with the origin as it lies there now; None where nothing is known to be."""
    teacher: str | None
    adapter_on: str | None
    """The run whose weights an adapter is trained on: then this folder holds the adapter alone."""
    parameters: int | None
    weights_bytes: int | None
    """Of what this folder holds of the model on disk: the newest checkpoint's parameters, or the palettes."""
    bits_per_weight: float | None
    """Of the linear layers; an adapter is not counted in."""
    bits_per_byte_before: float | None
    bits_per_byte: float | None
    steps_planned: int | None
    steps_done: int | None
    tokens_planned: int | None
    tokens_done: int | None
    step_seconds_planned: float | None
    step_seconds: float | None
    seconds_planned: float | None
    seconds: float | None
    goodput: float | None
    training_tokens_per_second: float | None
    generating_tokens_per_second: float | None
    losses: Curve
    heldout: Curve
    samples: tuple[Record, ...]
    commands: tuple[str, ...]
    hardware: tuple[str, ...]
    versions: dict[str, str]
    trouble: dict[str, int]
    said: dict[str, Any]
    """Whatever else the stage said at its end."""


def facts(member: Member, base: Facts | None = None, step_seconds_planned: float | None = None) -> Facts:
    """The facts of a member.

    Args:
        base: the facts of its origin, whose weights an adapter goes on using.
        step_seconds_planned: what a plan for the run's own chips says of a step, the mean over its stages.
    """
    trained, origin = member.trained, origin_in(member)
    events = (*member.events, *(member.masks.events if member.masks else ()))
    records = trained.records if trained else ()
    starts = [event for event in events if event["event"] in STARTS]
    end = next((event for event in reversed(member.events) if event["event"] in ENDS), {})
    logged = [record for record in records if "loss" in record]
    steps, tokens = _planned(trained)
    done = max((int(record["step"]) for record in records), default=None)
    rates = [record["tokens_per_second"] for record in logged if "tokens_per_second" in record]
    pace = [record["step_seconds"] for record in logged if "step_seconds" in record]
    held = [record for record in records if record.get("bits_per_byte") is not None]
    before, after = _bits_per_byte(member, end)
    samples = _samples(member)
    budgets = [turn["budget_seconds"] for turn in member.turns if turn["event"] == "begin"]
    kind = ((member.config or {}).get("objective") or {}).get("kind", "next-token")
    adapter_on = origin.run if origin and kind == "low-rank" else None
    return Facts(
        run=member.name,
        missing=member.missing,
        done=_done(member, starts, end),
        origin=origin.run if origin else None,
        origin_state=_origin_state(member),
        teacher=_teacher(trained),
        adapter_on=adapter_on,
        parameters=_parameters(member, end),
        weights_bytes=_weights_bytes(member.folder),
        bits_per_weight=base.bits_per_weight if adapter_on and base else _bits_per_weight(member, end),
        bits_per_byte_before=before,
        bits_per_byte=after,
        steps_planned=steps,
        steps_done=done,
        tokens_planned=tokens,
        tokens_done=_tokens_after(trained, done),
        step_seconds_planned=step_seconds_planned,
        step_seconds=statistics.median(pace) if pace else None,
        seconds_planned=budgets[-1] if budgets else None,
        seconds=_seconds(starts, member),
        goodput=next((record["goodput"] for record in reversed(records) if "goodput" in record), None),
        training_tokens_per_second=statistics.median(rates) if rates else None,
        generating_tokens_per_second=samples[-1].get("tokens_per_second") if samples else None,
        losses=_curve(logged, "loss"),
        heldout=_curve(held, "bits_per_byte"),
        samples=samples,
        commands=_commands(member, starts),
        hardware=tuple(dict.fromkeys(_hardware(event) for event in starts if event.get("machine"))),
        versions=dict(starts[-1].get("versions", {})) if starts else {},
        trouble=dict(Counter(event["event"] for event in events if event["event"] not in ORDINARY)),
        said={name: value for name, value in end.items() if name not in KNOWN and value is not None},
    )


def architecture(member: Member) -> Architecture | None:
    """The model's shape; None where the folder is gone or was written by a version with other fields."""
    try:
        return from_json(Architecture, (member.config or {}).get("architecture"))
    except UserError:
        return None


def _commands(member: Member, starts: list[Record]) -> tuple[str, ...]:
    """As its events have them, or, of a stage that records none, the life's ledger."""
    recorded = [event["command"] for event in starts if event.get("command")]
    ledger = [turn["command"] for turn in member.turns if turn["event"] == "begin" and turn.get("command")]
    return tuple(dict.fromkeys(recorded or ledger))


def _done(member: Member, starts: list[Record], end: Record) -> str:
    """What made this member: the verb that was typed, else what its last event or its files say."""
    words = shlex.split(next(iter(_commands(member, starts)), ""))
    if len(words) > 1 and words[1] in DONE:
        verb = words[1]
    elif member.masks is not None or end.get("event") == "pruned":
        verb = "prune"
    else:
        verb = "palettize" if (member.folder.path / PALETTES).exists() else "train"
    further = verb == "train" and origin_in(member) is not None
    return "trained further" if further else DONE[verb]


def _bits_per_byte(member: Member, end: Record) -> tuple[float | None, float | None]:
    """Before the stage and after it, on the held-out text."""
    held = [record["bits_per_byte"] for record in member.records if record.get("bits_per_byte") is not None]
    before = end.get("bits_per_byte_before", end.get("before"))
    after = end.get("bits_per_byte", end.get("after"))
    if before is None and len(held) > 1:
        before = held[0]
    return before, held[-1] if after is None and held else after


def _planned(trained: Member | None) -> tuple[int | None, int | None]:
    """Steps and tokens of all stages as configured; None where nothing was trained."""
    try:
        raw = (trained.config if trained else None) or {}
        stages = [(int(s["steps"]), s["batch_size"] * s["sequence_length"]) for s in raw["stages"]]
    except (KeyError, TypeError):
        return None, None
    return sum(steps for steps, _ in stages), sum(steps * tokens for steps, tokens in stages)


def _tokens_after(trained: Member | None, done: int | None) -> int | None:
    """Tokens of the first `done` steps, padding included."""
    if done is None or trained is None or _planned(trained)[0] is None:
        return None
    left, tokens = done, 0
    for stage in (trained.config or {})["stages"]:
        steps = min(left, stage["steps"])
        left, tokens = left - steps, tokens + steps * stage["batch_size"] * stage["sequence_length"]
    return tokens


def _teacher(trained: Member | None) -> str | None:
    """The run that a distilled one learned from."""
    objective = ((trained.config if trained else None) or {}).get("objective") or {}
    teacher = objective.get("teacher")
    return teacher.get("run") if isinstance(teacher, dict) else None


def _origin_state(member: Member) -> str | None:
    origin = origin_in(member)
    if origin is None:
        return None
    found = find(origin.run, member.folder.path)
    if found is None:
        return "is not there"
    manifest = RunFolder(found).checkpoints / str(origin.step) / MANIFEST
    if (found / PALETTES).exists():
        digest = read_json(found / PALETTES).get("fingerprint")
        return None if digest == origin.fingerprint else "has other palettes than then"
    if not manifest.exists():
        return f"has no checkpoint of step {origin.step} any more"
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()[: len(origin.fingerprint)]
    return None if digest == origin.fingerprint else f"has another checkpoint of step {origin.step} than then"


def _parameters(member: Member, end: Record) -> int | None:
    if "parameters" in end:
        return int(end["parameters"])
    shape = architecture(member)
    return count_parameters(shape).total if shape else None


def _weights_bytes(folder: RunFolder) -> int | None:
    """What the weights take on disk: of the newest finished checkpoint, or of the palettes."""
    palettes = (folder.path / PALETTES).parent
    if palettes.is_dir():
        return sum(path.stat().st_size for path in palettes.rglob("*") if path.is_file())
    finished = [
        int(path.parent.name) for path in folder.checkpoints.glob(f"*/{MANIFEST}") if path.parent.name.isdigit()
    ]
    if not finished:
        return None
    files = read_json(folder.checkpoints / str(max(finished)) / MANIFEST)["crc32"]
    return sum(size for name, (size, _) in files.items() if name.startswith("params/"))


def _bits_per_weight(member: Member, end: Record) -> float | None:
    """Of the linear layers, as palettize counted it, tables and scales included; 32 where all is plain float32."""
    if member.missing:
        return None
    said = end.get("bits_per_weight", _palettes(member).get("bits_per_weight"))
    if said is not None:
        return float(said)
    plain = not (member.folder.path / PALETTES).exists()
    return FLOAT_BITS if plain and _weights_bytes(member.folder) is not None else None


def _palettes(member: Member) -> dict[str, Any]:
    path = member.folder.path / PALETTES
    return read_json(path) if path.exists() else {}


def _seconds(starts: list[Record], member: Member) -> float | None:
    """Of the command where one made it all, else from the first start to the end, with what lay between two starts."""
    commands = [turn["seconds"] for turn in member.turns if turn["event"] == "end" and turn["exit_code"] == 0]
    if commands and sum(turn["event"] == "begin" for turn in member.turns) == 1:
        return float(commands[0])
    ends = [event["time_seconds"] for event in member.events if event["event"] in ENDS]
    began = [event.get("began_seconds") or event["time_seconds"] for event in starts]
    return max(ends) - min(began) if ends and began else None


def _curve(records: list[Record], name: str) -> Curve:
    """The finite values by step, each step once."""
    values = {int(r["step"]): float(r[name]) for r in records if r[name] is not None and math.isfinite(r[name])}
    return tuple(sorted(values.items()))


def _samples(member: Member) -> tuple[Record, ...]:
    """The last one of every prompt, of the newest step that was asked."""
    newest = max((each.get("step", 0) for each in member.samples), default=0)
    return tuple({each["prompt"]: each for each in member.samples if each.get("step", 0) == newest}.values())


def _hardware(start: Record) -> str:
    """`1 x cpu; Linux, 2 cores of AMD EPYC`."""
    machine = start["machine"]
    devices = f"{start['devices']} x {start['device']}; " if "device" in start else ""
    return f"{devices}{machine['system']}, {machine['cores']} cores of {machine['processor']}"
