"""The comparison as one HTML file: nothing is loaded, light and dark. No JAX."""

from collections.abc import Callable, Sequence
from html import escape

from pomona.core.chips import GIB, figures
from pomona.core.fleet import describe_shape
from pomona.core.wording import amount, duration, energy, percent, seconds, usd
from pomona.model.count import count_parameters
from pomona.page import frame
from pomona.page.charts import Bar, Line, bars, grouped, legend, lines
from pomona.plan.compare import Comparison, Plans
from pomona.plan.estimate import Estimate
from pomona.plan.memory import USABLE, Memory, usable_bytes
from pomona.plan.roofline import EFFICIENCY, term_names
from pomona.train.config import Run, Stage

MEMORY_GROUPS: tuple[tuple[str, Callable[[Memory], float]], ...] = (
    ("parameters, gradients, moments", lambda m: m.parameters + m.gradients + m.moments + m.second_state + m.cast),
    ("activations", lambda m: m.activations),
    ("weights kept", lambda m: m.kept_weights),
    ("a layer with its weights, or the loss", lambda m: m.work),
)


def comparison_page(run: Run, stages: Sequence[Stage], chips: int, found: Sequence[Comparison]) -> str:
    """The whole page."""
    body = [
        _head(run, stages, chips),
        '<div class="charts">',
        _bars("What the run costs, USD", found, lambda p: p.usd, usd, "no public price"),
        _bars("How long it takes", found, lambda p: p.days, duration, ""),
        _bars("Energy of the chips, at the most they draw", found, lambda p: p.kwh, energy, "power not public"),
        _memory(found),
        _terms(found, stages[0]),
        _waiting_chart(found),
        "</div>",
        _main_table(found, stages[0]),
        _waiting_table(found, chips),
        _layout_table(found),
        _figures_table(found),
        _notes(),
    ]
    return frame.page(f"{run.name} on {chips} chips of nine kinds", body)


def _head(run: Run, stages: Sequence[Stage], chips: int) -> str:
    tokens = sum(stage.steps * stage.batch_tokens for stage in stages)
    names = ", ".join(stage.name for stage in stages)
    keys = legend([("google", "Google"), ("nvidia", "NVIDIA")])
    return (
        f"<h1>{escape(run.name)} on {chips:,} chips of nine kinds</h1>\n"
        f"<p>{amount(count_parameters(run.architecture).total)} parameters, {amount(tokens)} tokens ({escape(names)}). "
        f"Each chip gets the mesh, remat policy and micro-batches that are best for it. Time is the "
        f"longest term over {EFFICIENCY}, and sums; what that leaves out stands at the end.</p>\n{keys}"
    )


def _bars(
    title: str,
    found: Sequence[Comparison],
    value: Callable[[Plans], float | None],
    text: Callable[[float], str],
    missing: str,
) -> str:
    rows = []
    for each in found:
        number = value(each.plans) if each.plans and each.plans.fits else None
        why = missing if each.plans and each.plans.fits else _why_not(each)
        parts = () if number is None else (number,)
        rows.append(Bar(each.chip.title, _group(each), parts, why if number is None else text(number)))
    return bars(title, rows)


def _memory(found: Sequence[Comparison]) -> str:
    rows = []
    for each in found:
        e = (each.plans.fullest if each.plans and each.plans.fits else None) or each.least
        if e is None:
            rows.append(Bar(each.chip.title, _group(each), (), _why_not(each)))
            continue
        parts = tuple(part(e.memory) / usable_bytes(e.layout) for _, part in MEMORY_GROUPS)
        rows.append(Bar(each.chip.title, _group(each), parts, _room(e)))
    names = [(f"part{i}", name) for i, (name, _) in enumerate(MEMORY_GROUPS)]
    return f"<div>{bars('Memory in the fullest stage, of what is usable', rows, 1.0)}{legend(names)}</div>"


def _terms(found: Sequence[Comparison], stage: Stage) -> str:
    rows = []
    for each in found:
        e = each.plans.first if each.plans else None
        parts = (e.terms.compute, e.terms.memory, e.terms.links, e.terms.network, e.terms.sums) if e else ()
        text = f"{term_names(each.chip)[e.terms.bottleneck]} {seconds(e.terms.bound)}" if e else _why_not(each)
        rows.append(Bar(each.chip.title, _group(each), parts, text))
    names = ("compute", "HBM", "ICI or NVLink", "data-centre network", "sums that products wait for")
    keys = legend([(f"part{i}", name) for i, name in enumerate(names)])
    return (
        f"<div>{grouped(f'Roofline of a {stage.name} step: the longest bounds it, and sums add up', rows)}{keys}</div>"
    )


def _waiting_chart(found: Sequence[Comparison]) -> str:
    rows = []
    for each in found:
        plans = (each.plans, each.half_chips, each.quarter_chips)
        points = tuple((p.days, p.usd) for p in plans if p and p.days and p.usd)
        if points:
            rows.append(Line(each.chip.title.split(" ", 1)[1], _group(each), points))
    return lines("All, half, a quarter of the chips: days against USD", rows, lambda x: f"{x:g}", usd)


def _main_table(found: Sequence[Comparison], stage: Stage) -> str:
    head = ["chip", "time", "USD", "energy", f"step, {stage.name}", "tokens/s", "MFU causal", "MFU full", "bound by"]
    rows = []
    for each in found:
        plans, e = each.plans, each.plans.first if each.plans else None
        if plans and plans.fits and e:
            cells = [duration(plans.days), usd(plans.usd), energy(plans.kwh), seconds(e.step_seconds)]
            cells += [amount(e.tokens_per_second), percent(e.mfu_causal), percent(e.mfu_full)]
            rows.append([each.chip.title, *cells, term_names(each.chip)[e.terms.bottleneck]])
        else:
            rows.append([each.chip.title, f"!{_why_not(each)}", *[""] * 7])
    return _table("Side by side", head, rows)


def _layout_table(found: Sequence[Comparison]) -> str:
    rows = []
    for each in found:
        for e in each.plans.stages if each.plans else ():
            if e:
                mesh = ", ".join(f"{axis} {n}" for axis, n in e.layout.sizes.items() if n > 1) or "one device"
                micro, remat = str(e.layout.micro_batches), e.layout.run.execution.remat
                rows.append(
                    [each.chip.title, describe_shape(e.layout.fleet), e.layout.stage.name, mesh, remat, micro, _room(e)]
                )
    head = ["chip", "fleet", "stage", "mesh", "remat", "micro-batches", "memory"]
    return _table("The best layouts", head, rows)


def _waiting_table(found: Sequence[Comparison], chips: int) -> str:
    def cell(plans: Plans | None) -> str:
        if plans is None:
            return "-"
        return f"{duration(plans.days)}, {usd(plans.usd)}" if plans.fits else "!does not fit"

    rows = [[e.chip.title, *map(cell, (e.plans, e.half_chips, e.quarter_chips, e.half_batch))] for e in found]
    head = ["chip", f"{chips:,} chips", "half the chips", "a quarter", "half the batch"]
    return _table("Waiting, or halving the batch: the same tokens", head, rows)


def _figures_table(found: Sequence[Comparison]) -> str:
    rows = "".join(
        f'<tr><td>{escape(e.chip.title)}</td><td class="wide">{escape(figures(e.chip))}</td>'
        f'<td class="wide">{escape(e.chip.source)}</td></tr>'
        for e in found
    )
    return (
        '<h2>The chips\' figures and their sources</h2>\n<div class="table"><table><tr><th>chip</th>'
        f'<th class="left">figures</th><th class="left">source</th></tr>{rows}</table></div>'
    )


def _notes() -> str:
    return (
        f"<h2>What this does not know</h2>\n<p>Time is the longest of compute, memory, links and network, each at the "
        f"published speed, divided by {EFFICIENCY}: one assumption for every chip; and sums over heads and units, for "
        f"which the next product waits. Stops, failures, evaluation and checkpoints come on top. A program may use "
        f"{USABLE:.0%} of the memory. Prices are list prices on demand; "
        f"large fleets are bought for less. Energy is that of the chips alone. Half the batch takes twice the steps "
        f"for the same tokens, and the plan does not know whether the model learns as well from them.</p>"
        f'<p class="soft">Made by pomona plan --compare; docs/plan.md has the formulas.</p>'
    )


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return f"<h2>{escape(title)}</h2>\n{frame.table(head, rows)}"


def _why_not(each: Comparison) -> str:
    if each.plans is None:
        return "not sold in this number"
    if each.least is None:
        return "no mesh divides"
    return f"{each.least.layout.stage.name} does not fit"


def _group(each: Comparison) -> str:
    return "google" if each.chip.torus_dimensions else "nvidia"


def _room(e: Estimate) -> str:
    return f"{e.memory.total / GIB:.1f} of {usable_bytes(e.layout) / GIB:.1f} GiB"
