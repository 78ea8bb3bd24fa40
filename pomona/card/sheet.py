"""The card of a family as one HTML file: nothing is loaded, no script, light and dark. No JAX."""

from collections.abc import Sequence
from html import escape

from pomona.card import tree
from pomona.card.facts import Facts
from pomona.core.wording import amount, duration, percent, seconds
from pomona.page import frame
from pomona.page.charts import Bar, Line, bars, curves

DAY_SECONDS = 86400
STYLE = (
    tree.STYLE
    + """
pre { background: var(--box); border: 1px solid var(--line); border-radius: 6px; padding: .6rem .8rem; margin: .4rem 0;
  font-size: .85rem; white-space: pre-wrap; overflow-wrap: anywhere; } section { margin-top: 3rem; }
section h2 { border-top: 2px solid var(--line); padding-top: 1rem; } h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
.table + .charts { margin-top: 1.5rem; } .asked { font-weight: 600; }
"""
)


def card_page(members: Sequence[Facts]) -> str:
    """The whole page; the last member is the one the card is of."""
    own = members[-1]
    body = [
        f"<h1>{escape(own.run)}</h1>",
        f"<p>{escape(_summary(members))}</p>",
        tree.tree(members, lambda m: m.run, _box),
        "<h2>Side by side</h2>",
        _side_by_side(members),
        '<div class="charts">',
        _quality_bars(members),
        _size_bars(members),
        "</div>",
        *(_section(member) for member in members),
        '<p class="soft">Made by pomona card from the run folders alone. Sizes are what lies on this disk; a dash is '
        "what no file says. docs/life.md explains the numbers.</p>",
    ]
    return frame.page(f"{own.run}: a model's life", body, STYLE)


def _summary(members: Sequence[Facts]) -> str:
    """`4 M parameters, 3.71 bits per weight, 1.912 bits per byte: trained, pruned, distilled, palettized.`"""
    own = members[-1]
    life = ", ".join(("missing" if member.missing else member.done) for member in members)
    return f"{', '.join(each for each in _figures(own) if each)}: {life}."


def _figures(m: Facts) -> list[str]:
    return [
        f"{amount(m.parameters)} parameters" if m.parameters is not None else "",
        f"{m.bits_per_weight:.3g} bits per weight" if m.bits_per_weight is not None else "",
        f"{m.bits_per_byte:.3f} bits per byte" if m.bits_per_byte is not None else "",
    ]


def _box(m: Facts) -> tuple[str, str]:
    if m.missing:
        return "missing: this run folder is not there", ""
    size, bits, quality = _figures(m)
    what = "an adapter of " if m.adapter_on else ""
    on_disk = "" if m.weights_bytes is None else f"{what}{_size(m)} on disk"
    return ", ".join(filter(None, (size, bits))), ", ".join(filter(None, (quality, on_disk)))


def _side_by_side(members: Sequence[Facts]) -> str:
    head = ["run", "what was done", "parameters", "on disk", "bits per weight", "bits per byte"]
    head += ["tokens/s training", "generating"]
    rows = []
    for m in members:
        if m.missing:
            rows.append([m.run, "!missing", *["-"] * 6])
            continue
        numbers = [
            amount(m.parameters) if m.parameters is not None else "-",
            _size(m),
            _number(m.bits_per_weight, ".3g"),
        ]
        change = [_number(value, ".3f") for value in (m.bits_per_byte_before, m.bits_per_byte)]
        numbers.append(change[1] if change[0] == "-" or change[0] == change[1] else " → ".join(change))
        rates = [_number(m.training_tokens_per_second, ",.0f"), _number(m.generating_tokens_per_second, ",.0f")]
        rows.append([m.run, m.done, *numbers, *rates])
    return frame.table(head, rows)


def _quality_bars(members: Sequence[Facts]) -> str:
    rows = [_bar(m, m.bits_per_byte, _number(m.bits_per_byte, ".3f")) for m in members]
    return bars("Bits per byte on held-out text: less is better", rows)


def _size_bars(members: Sequence[Facts]) -> str:
    rows = [_bar(m, m.weights_bytes, _size(m) + (", an adapter" if m.adapter_on else "")) for m in members]
    return bars("Weights on disk", rows)


def _bar(m: Facts, value: float | None, text: str) -> Bar:
    name = m.run.rstrip("/").rsplit("/", 1)[-1]
    return Bar(name[-18:], "part0", () if value is None else (float(value),), "missing" if m.missing else text)


def _section(m: Facts) -> str:
    """Everything about one member."""
    if m.missing:
        text = "This run folder is not there. What came of it is below."
        return f'<section><h2>{escape(m.run)}</h2>\n<p class="no">{text}</p></section>'
    parts = [f"<h2>{escape(m.run)}: {escape(m.done)}</h2>", _about(m)]
    if m.commands:
        parts.append("<h3>Made by</h3>" + "".join(f"<pre>{escape(command)}</pre>" for command in m.commands))
    charts = [
        curves("Training loss, nats per token", [Line("loss", "part0", m.losses)], "step"),
        curves("Bits per byte on held-out text", [Line("held-out", "part1", m.heldout)], "step"),
    ]
    if any(charts):
        parts.append(f'<h3>Curves</h3><div class="charts">{"".join(charts)}</div>')
    parts.append("<h3>Plan and what came of it</h3>" + _plan(m))
    if m.samples:
        parts.append("<h3>What it says</h3>" + "".join(map(_sample, m.samples)))
    if m.said:
        pairs = [[name.replace("_", " "), _value(value)] for name, value in m.said.items()]
        parts.append("<h3>What the stage said at its end</h3>" + frame.table(["", ""], pairs))
    parts.append("<h3>Versions and hardware</h3>" + _made_with(m))
    return f"<section>{''.join(parts)}</section>"


def _about(m: Facts) -> str:
    sentences = [", ".join(filter(None, _figures(m))) + "." if any(_figures(m)) else ""]
    if m.origin:
        sentences.append(f"It began as {m.origin}" + (f", which {m.origin_state}." if m.origin_state else "."))
    if m.adapter_on:
        sentences.append(f"Its folder holds an adapter alone; the weights under it are those of {m.adapter_on}.")
    if m.teacher:
        sentences.append(f"Its teacher was {m.teacher}.")
    if m.trouble:
        events = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in sorted(m.trouble.items()))
        sentences.append(f"What happened on the way: {events}.")
    return f"<p>{escape(' '.join(filter(None, sentences)))}</p>"


def _plan(m: Facts) -> str:
    step = (m.step_seconds_planned, m.step_seconds)
    time = (m.seconds_planned, m.seconds)
    rows = [
        ["steps", _number(m.steps_planned, ",d"), _number(m.steps_done, ",d"), _ratio(m.steps_planned, m.steps_done)],
        ["tokens", *(("-" if n is None else amount(n)) for n in (m.tokens_planned, m.tokens_done))],
        ["a step", *(("-" if t is None else seconds(t)) for t in step), _ratio(*step)],
        ["the whole", *(duration(None if t is None else t / DAY_SECONDS) for t in time), _ratio(*time)],
        ["goodput", "-", "-" if m.goodput is None else percent(m.goodput), "-"],
    ]
    rows[1].append(_ratio(m.tokens_planned, m.tokens_done))
    return frame.table(["", "planned", "actual", "actual of planned"], rows)


def _sample(sample: dict[str, object]) -> str:
    asked = ", ".join(f"{name.replace('_', ' ')} {sample[name]}" for name in ("temperature", "seed") if name in sample)
    rate = sample.get("tokens_per_second")
    speed = f"; {rate:,.0f} tokens/s on {sample.get('device')}" if isinstance(rate, float) else ""
    text = f'<span class="asked">{escape(str(sample["prompt"]))}</span>{escape(str(sample["text"]))}'
    return f'<pre>{text}</pre><p class="soft">{escape(asked + speed)}</p>'


def _made_with(m: Facts) -> str:
    hardware = "; ".join(m.hardware) or "not recorded"
    versions = ", ".join(f"{name} {version}" for name, version in m.versions.items()) or "not recorded"
    return f"<p>{escape(hardware)}.</p><p>{escape(versions)}.</p>"


def _size(m: Facts) -> str:
    """Bytes as people read them."""
    if m.weights_bytes is None:
        return "-"
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if m.weights_bytes >= size:
            return f"{m.weights_bytes / size:.3g} {unit}"
    return f"{m.weights_bytes} bytes"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _ratio(planned: float | None, actual: float | None) -> str:
    return percent(actual / planned) if planned and actual is not None else "-"


def _value(value: object) -> str:
    """A number, a word, or a list of them, of what a stage said."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_value, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {_value(each)}" for name, each in value.items())
    return str(value)
