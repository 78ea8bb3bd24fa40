"""How `pomona plan` answers on a terminal."""

import os
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from pomona.core.chips import GIB, figures
from pomona.core.fleet import Fleet, describe, describe_shape
from pomona.core.wording import amount, duration, energy, percent, seconds, usd
from pomona.model.count import count_parameters, training_flops
from pomona.plan.answer import Answer, typed
from pomona.plan.compare import Comparison, Plans
from pomona.plan.estimate import Estimate
from pomona.plan.memory import USABLE, usable_bytes
from pomona.plan.roofline import EFFICIENCY, term_names
from pomona.plan.serving import ServingPlan
from pomona.train.config import Run, Stage

RUNNERS_UP = 5
FILE_WIDTH = 120  # where there is no terminal to ask
MEMORY_PARTS = {
    "parameters": "parameters, float32",
    "gradients": "gradients, float32",
    "moments": "optimizer moments",
    "second_state": "a checked step's copy",
    "cast": "parameters, bfloat16",
    "activations": "activations kept",
    "kept_weights": "weights kept",
    "layer": "one layer at work",
    "weights": "its weights, bfloat16",
    "loss": "or the loss and logits",
}


def show_answers(run: Run, fleet: Fleet, answers: Sequence[Answer]) -> None:
    """A column for each stage, the sums, and what to change where one does not fit."""
    console = _console()
    _say_run(console, run, fleet)
    found = [each.estimate for each in answers if each.estimate]
    if found:
        console.print()
        console.print(_stage_table(found))
        _say_sums(console, found)
    for each in answers:
        if each.runs:
            continue
        console.print()
        if each.problem:
            console.print(f"{each.stage.name} does not run: {each.problem.what}", soft_wrap=True)
        elif each.estimate:
            console.print(f"{each.stage.name} does not fit: {_room(each.estimate)}")
        for change in each.changes:
            e = change.estimate
            cost = f"{seconds(e.step_seconds)} a step, {duration(e.days)}, {usd(e.usd)}"
            console.print(f"  {change.what} it does: {_room(e)}, {cost}", soft_wrap=True)
            console.print(f"    {change.typed}", soft_wrap=True)
        if not each.changes:
            console.print("  Neither another mesh or policy nor more of these chips makes it fit.")
            console.print("  A chip with more memory may (--compare), or a shorter sequence.")


def show_search(
    run: Run,
    stages: Sequence[Stage],
    fleet: Fleet,
    results: dict[str, list[Estimate]],
    least: dict[str, Estimate | None],
) -> None:
    """The best layouts of each stage, and what to type for the first."""
    console = _console()
    _say_run(console, run, fleet)
    for stage in stages:
        found = results[stage.name]
        console.print()
        if not found:
            nearest = least[stage.name]
            console.print(f"{stage.name}: nothing fits" + (f"; the least is {_room(nearest)}." if nearest else "."))
            continue
        console.print(f"{stage.name}: {len(found)} layouts fit")
        table = _table("", "mesh", "remat", "micro", "step", "MFU", "bound", "sent", "GiB", left=3)
        for rank, e in enumerate(found[: RUNNERS_UP + 1]):
            table.add_row(
                "best" if rank == 0 else str(rank + 1),
                _mesh(e),
                e.layout.run.execution.remat,
                str(e.layout.micro_batches),
                seconds(e.step_seconds),
                percent(e.mfu_causal),
                term_names(fleet.chip)[e.terms.bottleneck],
                seconds(e.terms.communication),
                f"{e.memory.total / GIB:.1f}",
            )
        console.print(table)
        best = found[0]
        console.print(f"{duration(best.days)}, {usd(best.usd)}: {typed(best, stage, run)}", soft_wrap=True)


def show_comparison(run: Run, stages: Sequence[Stage], chips: int, found: Sequence[Comparison]) -> None:
    """Every chip side by side, then fewer chips and half the batch."""
    console = _console()
    names = ", ".join(stage.name for stage in stages)
    console.print(f"{run.name}: {amount(count_parameters(run.architecture).total)} parameters; {names}")
    console.print(
        f"{chips} chips of each kind, each with its best mesh; time is the longest term / {EFFICIENCY}, and sums"
    )
    console.print()
    table = _table("", "time", "USD", "energy", "step", "MFU", "memory, GiB", "bound")
    for each in found:
        table.add_row(_name(each), *_compared(each))
    console.print(table)
    for each in found:
        if each.plans is None:
            console.print(f"{_name(each)} does not come in {chips} chips.")
        elif each.least:
            console.print(
                f"{_name(each)}: stage {each.least.layout.stage.name} needs {_room(each.least)} at the least."
            )
    console.print("\nWaiting, or a smaller batch: the same tokens in days and USD")
    table = _table("", f"{chips} chips", "half of them", "a quarter", "half the batch")
    for each in found:
        table.add_row(_name(each), *map(_short, (each.plans, each.half_chips, each.quarter_chips, each.half_batch)))
    console.print(table)
    console.print(f"\nLayouts of {stages[0].name}")
    table = _table("", "fleet", "mesh", "remat", "micro", left=4)
    for each in found:
        if each.plans and (e := each.plans.first):
            layout = e.layout
            micro = str(layout.micro_batches)
            table.add_row(_name(each), describe_shape(layout.fleet), _mesh(e), layout.run.execution.remat, micro)
    console.print(table)
    console.print()
    for each in found:
        console.print(f"{each.chip.title}: {figures(each.chip)}. {each.chip.source}", soft_wrap=True)
    console.print("Energy is that of the chips alone at the most they draw; sources in full: pomona/core/chips.py.")


def _stage_table(found: Sequence[Estimate]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for e in found:
        table.add_column(e.layout.stage.name, justify="right", no_wrap=True)

    def row(name: str, cell: Callable[[Estimate], str]) -> None:
        table.add_row(name, *map(cell, found))

    row("mesh", _mesh)
    row("remat", lambda e: e.layout.run.execution.remat)
    row("steps", lambda e: f"{e.layout.stage.steps:,}")
    row("batch, sequences x tokens", lambda e: f"{e.layout.stage.batch_size} x {e.layout.stage.sequence_length}")
    row("micro-batches", lambda e: str(e.layout.micro_batches))
    row("model FLOPs a step, causal", lambda e: f"{_flops(e):.3g}")
    per = "chip" if found[0].layout.fleet.chip.devices == 1 else "device, two to a chip"
    table.add_row(f"memory, GiB a {per}")
    for part, name in MEMORY_PARTS.items():
        row(f"  {name}", lambda e: f"{getattr(e.memory, part) / GIB:.2f}")
    row("  sum", lambda e: f"{e.memory.total / GIB:.2f}")
    row(f"  usable, {USABLE:.0%}", lambda e: f"{usable_bytes(e.layout) / GIB:.2f}")
    table.add_row("roofline, at published speeds")
    for term, name in term_names(found[0].layout.fleet.chip).items():
        row(f"  {name}", lambda e: seconds(getattr(e.terms, term)))
    row("  bound by", lambda e: term_names(e.layout.fleet.chip)[e.terms.bottleneck])
    row(f"step, the longest / {EFFICIENCY}, and sums", lambda e: seconds(e.step_seconds))
    row("MFU causal", lambda e: percent(e.mfu_causal))
    row("MFU full", lambda e: percent(e.mfu_full))
    row("tokens a second", lambda e: amount(e.tokens_per_second))
    row("time", lambda e: duration(e.days))
    row("energy of the chips", lambda e: energy(e.kwh))
    row("USD", lambda e: usd(e.usd))
    row("fits", lambda e: "yes" if e.fits else "NO")
    return table


def _say_run(console: Console, run: Run, fleet: Fleet) -> None:
    parameters, chip = count_parameters(run.architecture), fleet.chip
    console.print(
        f"{run.name}: {amount(parameters.total)} parameters "
        f"({amount(parameters.embedding)} embedding, {amount(parameters.attention)} attention, "
        f"{amount(parameters.ffn)} feed-forward)",
        soft_wrap=True,
    )
    console.print(describe(fleet))
    console.print(f"{chip.title}: {figures(chip)}", soft_wrap=True)


def _say_sums(console: Console, found: Sequence[Estimate]) -> None:
    console.print()
    price = found[0].usd_per_chip_hour
    names = " and ".join(e.layout.stage.name for e in found)
    sums = f"{names}: {duration(sum(e.days for e in found))}"
    if found[0].kwh is not None:
        sums += f", {energy(sum(e.kwh or 0 for e in found))} at the most the chips draw"
    if price is None:
        sums += "; no list price is public: --price USD_PER_CHIP_HOUR"
    else:
        sums += f", {usd(sum(e.usd or 0 for e in found))} at ${price:.2f} per chip and hour"
    console.print(sums, soft_wrap=True)
    main = max(found, key=lambda e: e.days)
    bottleneck = term_names(main.layout.fleet.chip)[main.terms.bottleneck]
    console.print(f"the bottleneck is {bottleneck}; stops, failures and evaluation come on top")


def _compared(each: Comparison) -> list[str]:
    plans = each.plans
    if plans is None or not plans.fits:
        return ["-" if plans is None else "no fit"]
    first, fullest = plans.first, plans.fullest
    assert first and fullest
    return [
        duration(plans.days),
        usd(plans.usd),
        energy(plans.kwh),
        seconds(first.step_seconds),
        percent(first.mfu_causal),
        f"{fullest.memory.total / GIB:.1f}/{usable_bytes(fullest.layout) / GIB:.1f}",
        term_names(each.chip)[first.terms.bottleneck],
    ]


def _short(plans: Plans | None) -> str:
    if plans is None or plans.days is None:
        return "-" if plans is None else "does not fit"
    return f"{plans.days:.3g}, {usd(plans.usd)}"


def _name(each: Comparison) -> str:
    return each.chip.title.split(" ", 1)[1]  # without the vendor


def _table(*columns: str, left: int = 1) -> Table:
    """A table whose first `left` columns are words; only the second of those may wrap."""
    table = Table(box=None, pad_edge=False)
    for index, column in enumerate(columns):
        words = index < left
        table.add_column(column, justify="left" if words else "right", no_wrap=not words or index != 1)
    return table


def _room(e: Estimate) -> str:
    return f"{e.memory.total / GIB:.1f} of {usable_bytes(e.layout) / GIB:.1f} GiB"


def _mesh(e: Estimate) -> str:
    return ", ".join(f"{axis} {size}" for axis, size in e.layout.sizes.items() if size > 1) or "one device"


def _flops(e: Estimate) -> float:
    stage = e.layout.stage
    return training_flops(e.layout.run.architecture, stage.sequence_length).causal * stage.batch_tokens


def _console() -> Console:
    console = Console(highlight=False, markup=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = FILE_WIDTH
    return console


def show_serving(plan: ServingPlan, programs: Sequence[Any] = ()) -> None:
    """Serving: memory, speed, and what the compiled programs say."""
    console, s = Console(highlight=False), plan.serving
    console.print(describe(plan.fleet), soft_wrap=True)
    say = lambda text: console.print(text, soft_wrap=True)
    say(f"\n{plan.name} for {s.slots} users at a time, {s.context} tokens each, {s.cache} cache, layers on all devices")
    sizes = {"weights": plan.weight_bytes, "cache": plan.cache_bytes, "at work": plan.work_bytes}
    parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in sizes.items())
    room = f"{plan.memory_bytes / GIB:.1f} of {plan.limit_bytes / GIB:.1f} GiB a device ({parts})"
    say(f"  {'fits' if plan.fits else 'DOES NOT FIT'}: {room}")
    if not plan.fits:
        say("  fewer --slots, a shorter --context, --cache int8, or more chips")
    say(
        f"  a step {seconds(plan.step_seconds)}: {1 / plan.step_seconds:.1f} tokens/s for each user, "
        f"{plan.tokens_per_second:,.0f} for all"
    )
    say(f"  {s.prompt} tokens of a prompt: the first answer after {seconds(plan.first_token_seconds)}")
    for each in programs:
        what = "a step" if each.name == "decode" else "a prompt"
        memory = f"{each.compiled.hbm_bytes / GIB:.1f} GiB a device"
        exposed = f"{seconds(each.prediction.exposed_communication_seconds)} of it waiting for other devices"
        say(f"  compiled, {what}: predicted {seconds(each.seconds)}, {exposed}; {memory}")
