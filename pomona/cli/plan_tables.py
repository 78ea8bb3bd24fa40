"""How `pomona plan` answers on a terminal."""

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from pomona.core.chips import GIB, figures
from pomona.core.fleet import Fleet, describe
from pomona.core.wording import amount, duration, energy, percent, seconds, usd
from pomona.model.count import count_parameters, training_flops
from pomona.parallel.placement import mesh_options
from pomona.plan.answer import Answer
from pomona.plan.compare import Comparison, Plans
from pomona.plan.estimate import Estimate
from pomona.plan.memory import USABLE, usable_bytes
from pomona.plan.roofline import EFFICIENCY, term_names
from pomona.train.config import Run, Stage

RUNNERS_UP = 5
MEMORY_PARTS = {
    "parameters": "parameters, float32",
    "gradients": "gradients, float32",
    "moments": "optimizer moments",
    "activations": "activations kept",
    "layer": "one layer at work",
    "weights": "weights gathered",
    "loss": "loss and logits",
}


def show_answers(run: Run, fleet: Fleet, answers: Sequence[Answer]) -> None:
    """A column for each stage, the sums, and what to change where one does not fit."""
    console = _console()
    _say_run(console, run, fleet)
    found = [each.estimate for each in answers if each.estimate]
    if found:
        first = found[0].layout
        console.print(f"mesh: {_mesh(found[0])}; remat {first.run.execution.remat}")
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
        table = Table(title=f"{stage.name}: {len(found)} layouts fit", box=None, pad_edge=False, title_justify="left")
        for column in (
            "",
            "mesh",
            "remat",
            "micro-batches",
            "step",
            "MFU causal / full",
            "bound by",
            "communication",
            "memory",
        ):
            table.add_column(column, justify="left" if column in ("", "mesh", "remat", "bound by") else "right")
        for rank, e in enumerate(found[: RUNNERS_UP + 1]):
            table.add_row(
                "best" if rank == 0 else str(rank + 1),
                _mesh(e),
                e.layout.run.execution.remat,
                str(e.layout.micro_batches),
                seconds(e.step_seconds),
                f"{percent(e.mfu_causal)} / {percent(e.mfu_full)}",
                term_names(e.layout.fleet.chip)[e.terms.bottleneck],
                seconds(e.terms.communication),
                _room(e),
            )
        console.print(table)
        best = found[0]
        console.print(
            f"{duration(best.days)}, {usd(best.usd)}: {mesh_options(best.layout.sizes)} "
            f"--execution.remat {best.layout.run.execution.remat}"
            + f" --stages.{run.stages.index(stage)}.micro-batches {best.layout.micro_batches}"
            * (best.layout.micro_batches > 1),
            soft_wrap=True,
        )


def show_comparison(run: Run, stages: Sequence[Stage], chips: int, found: Sequence[Comparison]) -> None:
    """Every chip side by side, then fewer chips and half the batch."""
    console = _console()
    names = ", ".join(stage.name for stage in stages)
    console.print(f"{run.name}: {amount(count_parameters(run.architecture).total)} parameters; {names}")
    console.print(f"{chips} chips of each kind, each with the best mesh for it; time is the roofline / {EFFICIENCY}")
    console.print()
    table = Table(box=None, pad_edge=False)
    table.add_column("chip", no_wrap=True)
    for column in ("days", "USD", "energy", "step", "MFU causal", "memory of usable"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("bound by", no_wrap=True)
    table.add_column("mesh, remat", no_wrap=True)
    for each in found:
        table.add_row(each.chip.title, *_compared(each))
    console.print(table)
    console.print()
    console.print("Waiting, or a smaller batch: the same tokens, days and USD")
    table = Table(box=None, pad_edge=False)
    table.add_column("chip", no_wrap=True)
    for column in (f"{chips} chips", "half the chips", "a quarter", "half the batch"):
        table.add_column(column, justify="right", no_wrap=True)
    for each in found:
        cells = (each.plans, each.half_chips, each.quarter_chips, each.half_batch)
        table.add_row(each.chip.title, *map(_short, cells))
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
    row(f"step, roofline / {EFFICIENCY}", lambda e: seconds(e.step_seconds))
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
    if plans is None:
        return ["not sold in this number"]
    if not plans.fits:
        name = next((e.layout.stage.name for e in [each.least] if e), "a stage")
        return ["does not fit", "", "", "", "", _room(each.least) if each.least else "", "", f"stage {name}"]
    first, fullest = plans.stages[0], plans.fullest
    assert first and fullest
    mesh = f"{_mesh(first)}, {first.layout.run.execution.remat}"
    return [
        duration(plans.days),
        usd(plans.usd),
        energy(plans.kwh),
        seconds(first.step_seconds),
        percent(first.mfu_causal),
        _room(fullest),
        term_names(each.chip)[first.terms.bottleneck],
        mesh,
    ]


def _short(plans: Plans | None) -> str:
    if plans is None:
        return "-"
    return f"{duration(plans.days)}, {usd(plans.usd)}" if plans.fits else "does not fit"


def _room(e: Estimate) -> str:
    return f"{e.memory.total / GIB:.1f} of {usable_bytes(e.layout) / GIB:.1f} GiB"


def _mesh(e: Estimate) -> str:
    return ", ".join(f"{axis} {size}" for axis, size in e.layout.sizes.items())


def _flops(e: Estimate) -> float:
    stage = e.layout.stage
    return training_flops(e.layout.run.architecture, stage.sequence_length).causal * stage.batch_tokens


def _console() -> Console:
    return Console(highlight=False, markup=False)
