"""The comparison as one HTML file: nothing is loaded, light and dark. No JAX."""

from collections.abc import Callable, Sequence
from html import escape

from pomona.core.chips import GIB, figures
from pomona.core.fleet import describe_shape
from pomona.core.wording import amount, duration, energy, percent, seconds, usd
from pomona.model.count import count_parameters
from pomona.plan.charts import Bar, Line, bars, grouped, legend, lines
from pomona.plan.compare import Comparison, Plans
from pomona.plan.estimate import Estimate
from pomona.plan.memory import USABLE, Memory, usable_bytes
from pomona.plan.roofline import EFFICIENCY, term_names
from pomona.train.config import Run, Stage

STYLE = """
:root { color-scheme: light dark; --page: #fdfdfb; --ink: #1f2328; --soft: #667079; --line: #dfe3e6;
  --google: #2f7d5b; --nvidia: #7a5bb5; --p0: #3b6fb6; --p1: #2f9e8f; --p2: #d1912f; --p3: #b8506a; --none: #b23b3b; }
@media (prefers-color-scheme: dark) { :root { --page: #15181b; --ink: #e6e8ea; --soft: #98a2ab; --line: #333a40;
  --google: #58b68c; --nvidia: #a68be0; --p0: #6c9fe4; --p1: #54c2b2; --p2: #e0ad57; --p3: #dd7f97; --none: #e57373; } }
body { background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; margin: 0 auto;
  max-width: 62rem; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
p { margin: .4rem 0; max-width: 46rem; } .soft, .tick, .none { color: var(--soft); fill: var(--soft); }
.charts { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); }
figure { margin: 0; } figcaption { font-weight: 600; margin-bottom: .5rem; } svg { width: 100%; height: auto; }
svg text { font: 13px system-ui, sans-serif; fill: var(--ink); } svg .tick, svg .none { fill: var(--soft); }
.google { fill: var(--google); background: var(--google); } .nvidia { fill: var(--nvidia); background: var(--nvidia); }
.part0 { fill: var(--p0); background: var(--p0); } .part1 { fill: var(--p1); background: var(--p1); }
.part2 { fill: var(--p2); background: var(--p2); } .part3 { fill: var(--p3); background: var(--p3); }
.stroke-google, .stroke-nvidia { fill: none; stroke-width: 2; } .stroke-google { stroke: var(--google); }
.stroke-nvidia { stroke: var(--nvidia); } .limit { stroke: var(--ink); stroke-dasharray: 4 3; }
.grid { stroke: var(--line); } .legend { font-size: .85rem; } .legend span { margin-right: 1rem; white-space: nowrap; }
.legend i { display: inline-block; width: .8em; height: .8em; margin-right: .35em; border-radius: 2px; }
.table { overflow-x: auto; } table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem .3rem 0; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child, .left { text-align: left; }
td.wide { white-space: normal; text-align: left; min-width: 15rem; }
th { font-weight: 600; } .no { color: var(--none); }
"""

MEMORY_GROUPS: tuple[tuple[str, Callable[[Memory], float]], ...] = (
    ("parameters, gradients, moments", lambda m: m.parameters + m.gradients + m.moments + m.second_state),
    ("activations", lambda m: m.activations + m.layer),
    ("weights gathered", lambda m: m.weights),
    ("loss", lambda m: m.loss),
)


def comparison_page(run: Run, stages: Sequence[Stage], chips: int, found: Sequence[Comparison]) -> str:
    """The whole page."""
    body = "\n".join(
        [
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
    )
    title = escape(f"{run.name} on {chips} chips of nine kinds")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n'
        f"<body>\n{body}\n</body></html>\n"
    )


def _head(run: Run, stages: Sequence[Stage], chips: int) -> str:
    tokens = sum(stage.steps * stage.batch_tokens for stage in stages)
    names = ", ".join(stage.name for stage in stages)
    keys = legend([("google", "Google"), ("nvidia", "NVIDIA")])
    return (
        f"<h1>{escape(run.name)} on {chips:,} chips of nine kinds</h1>\n"
        f"<p>{amount(count_parameters(run.architecture).total)} parameters, {amount(tokens)} tokens ({escape(names)}). "
        f"Each chip gets the mesh, remat policy and micro-batches that are best for it. Time is the roofline over "
        f"{EFFICIENCY}; what that leaves out stands at the end.</p>\n{keys}"
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
        parts = (e.terms.compute, e.terms.memory, e.terms.links, e.terms.network) if e else ()
        text = f"{term_names(each.chip)[e.terms.bottleneck]} {seconds(e.terms.bound)}" if e else _why_not(each)
        rows.append(Bar(each.chip.title, _group(each), parts, text))
    names = ("compute", "HBM", "ICI or NVLink", "data-centre network")
    keys = legend([(f"part{i}", name) for i, name in enumerate(names)])
    return f"<div>{grouped(f'Roofline of a {stage.name} step: the longest bounds it', rows)}{keys}</div>"


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
        f"published speed, divided by {EFFICIENCY}: one assumption for every chip. Stops, failures, evaluation and "
        f"checkpoints come on top. A program may use {USABLE:.0%} of the memory. Prices are list prices on demand; "
        f"large fleets are bought for less. Energy is that of the chips alone. Half the batch takes twice the steps "
        f"for the same tokens, and the plan does not know whether the model learns as well from them.</p>"
        f'<p class="soft">Made by pomona plan --compare; docs/plan.md has the formulas.</p>'
    )


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def cell(text: str) -> str:
        return f'<td class="no">{escape(text[1:])}</td>' if text.startswith("!") else f"<td>{escape(text)}</td>"

    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f'<h2>{escape(title)}</h2>\n<div class="table"><table><tr>{top}</tr>{body}</table></div>'


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
