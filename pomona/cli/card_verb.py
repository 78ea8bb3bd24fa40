"""`pomona card RUN [--output card.html]`."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import tyro

from pomona.card.facts import Facts, facts
from pomona.card.family import Member, family
from pomona.card.sheet import card_page
from pomona.cli.parse import parse
from pomona.core.chips import chip_for_device_kind
from pomona.core.config import from_json
from pomona.core.errors import UserError
from pomona.core.files import write_text
from pomona.core.fleet import fleet_of
from pomona.plan.estimate import estimate
from pomona.plan.work import lay_out
from pomona.train.config import Run, total_steps

COUNTED = ("next-token", "distillation")  # the kinds of training whose every step is the one that a plan counts


@dataclasses.dataclass(frozen=True)
class Card:
    """Shows a model's life on one page: its run folder and those it came from."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder."""
    output: Path | None = None
    """The page; RUN/card.html by default. The same numbers go beside it, with the ending .json."""


def run(arguments: list[str]) -> None:
    """Writes the page and the numbers, and says where."""
    options = parse(Card, arguments, "card")
    output = options.output or options.run / "card.html"
    if output.is_dir():
        raise UserError(f"{output} is a folder.", "the page is one file.", f"--output {output / 'card.html'}")
    if output.suffix == ".json":
        raise UserError(
            f"{output} would be the page and its numbers.",
            "the numbers go beside the page, with the ending .json.",
            f"--output {output.with_suffix('.html')}",
        )
    members: list[Facts] = []
    for each in family(options.run):
        members.append(facts(each, members[-1] if members else None, planned_step_seconds(each)))
    numbers = output.with_suffix(".json")
    write_text(numbers, json.dumps([dataclasses.asdict(member) for member in members], indent=1) + "\n")
    write_text(output, card_page(members))
    for member in members:
        print(f"{member.run}: {'missing' if member.missing else member.done}")
    print(f"written to {output} and {numbers}")


def planned_step_seconds(member: Member) -> float | None:
    """What the plan says of a step, the mean over all; None on a device whose figures are not known, as a CPU's."""
    start = next((event for event in reversed(member.events) if event["event"] in ("start", "resume")), {})
    chip = chip_for_device_kind(start.get("device", ""))
    if chip is None or member.config is None:
        return None
    if (member.config.get("objective") or {}).get("kind", "next-token") not in COUNTED:
        return None
    try:
        configured = from_json(Run, member.config)
        fleet = fleet_of(chip, start["devices"] // chip.devices)
        steps = [estimate(lay_out(configured, stage, fleet), None).step_seconds for stage in configured.stages]
    except UserError:
        return None  # a run of another version, or on a mesh that this plan does not know
    return sum(each * stage.steps for each, stage in zip(steps, configured.stages)) / total_steps(configured)
