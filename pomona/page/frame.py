"""The frame of a page: one HTML file that loads nothing, light and dark, with tables and charts. No script."""

from collections.abc import Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --page: #fdfdfb; --ink: #1f2328; --soft: #667079; --line: #dfe3e6; --box: #f3f4f1;
  --google: #2f7d5b; --nvidia: #7a5bb5; --p0: #3b6fb6; --p1: #2f9e8f; --p2: #d1912f; --p3: #b8506a; --p4: #8a8f3c;
  --none: #b23b3b; }
@media (prefers-color-scheme: dark) { :root { --page: #15181b; --ink: #e6e8ea; --soft: #98a2ab; --line: #333a40;
  --box: #1e2327; --google: #58b68c; --nvidia: #a68be0; --p0: #6c9fe4; --p1: #54c2b2; --p2: #e0ad57; --p3: #dd7f97;
  --p4: #bcc46a; --none: #e57373; } }
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
.part4 { fill: var(--p4); background: var(--p4); }
.stroke-google, .stroke-nvidia, .stroke-part0, .stroke-part1 { fill: none; stroke-width: 2; }
.stroke-google { stroke: var(--google); } .stroke-nvidia { stroke: var(--nvidia); }
.stroke-part0 { stroke: var(--p0); } .stroke-part1 { stroke: var(--p1); }
.limit { stroke: var(--ink); stroke-dasharray: 4 3; }
.grid { stroke: var(--line); } .legend { font-size: .85rem; } .legend span { margin-right: 1rem; white-space: nowrap; }
.legend i { display: inline-block; width: .8em; height: .8em; margin-right: .35em; border-radius: 2px; }
.table { overflow-x: auto; } table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem .3rem 0; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child, .left { text-align: left; }
td.wide { white-space: normal; text-align: left; min-width: 15rem; }
th { font-weight: 600; } .no { color: var(--none); }
"""


def page(title: str, body: Sequence[str], style: str = "") -> str:
    """The whole file; `style` is what this page adds to the common one."""
    content = "\n".join(body)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}{style}</style></head>\n'
        f"<body>\n{content}\n</body></html>\n"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of text under names; a cell that begins with ! says, in another colour, what cannot be."""

    def cell(text: str) -> str:
        return f'<td class="no">{escape(text[1:])}</td>' if text.startswith("!") else f"<td>{escape(text)}</td>"

    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f'<div class="table"><table><tr>{top}</tr>{body}</table></div>'
