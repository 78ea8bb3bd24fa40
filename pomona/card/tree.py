"""The family tree as inline SVG: a box for each member, the first ancestor on top, and dashed lines to teachers."""

from collections.abc import Callable, Sequence
from html import escape

from pomona.card.facts import Facts

WIDTH, LEFT, BOX, HEIGHT, GAP = 520, 90, 420, 62, 34

STYLE = """
.tree rect { fill: var(--box); stroke: var(--line); } .tree .gone { fill: none; stroke: var(--none); }
.tree .gone, .tree .teaches { stroke-dasharray: 5 4; }
.tree path { fill: none; stroke: var(--soft); stroke-width: 1.5; } .tree .bold { font-weight: 600; }
.tree { max-width: 34rem; }
"""


def tree(members: Sequence[Facts], name: Callable[[Facts], str], lines: Callable[[Facts], tuple[str, str]]) -> str:
    """The tree.

    Args:
        lines: what stands in a member's box, under its name: two lines.
    """
    shapes, middle = [], LEFT + BOX / 2
    tops = {member.run: number * (HEIGHT + GAP) for number, member in enumerate(members)}
    for number, member in enumerate(members):
        y = tops[member.run]
        kind = "gone" if member.missing else "there"
        shapes.append(f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{BOX}" height="{HEIGHT}" rx="6"/>')
        texts = [(name(member), "bold"), *((line, "small") for line in lines(member))]
        for row, (text, style) in enumerate(texts):
            place = f'class="{style}" x="{LEFT + 12}" y="{y + 18 + 18 * row}"'
            shapes.append(f"<text {place}>{escape(text)}</text>")
        if number:
            shapes.append(_arrow(middle, y - GAP + 2, y - 3))
            shapes.append(f'<text class="tick" x="{middle + 12}" y="{y - GAP / 2 + 5}">{escape(member.done)}</text>')
        if member.teacher in tops and tops[member.teacher] < y:
            shapes.append(_teaches(tops[member.teacher], y))
    height = len(members) * (HEIGHT + GAP) - GAP
    box = f'viewBox="0 -4 {WIDTH} {height + 8}" role="img" aria-label="The family tree"'
    return f'<figure class="tree"><svg {box}>{"".join(shapes)}</svg></figure>'


def _arrow(x: float, top: float, bottom: float) -> str:
    return f'<path d="M{x} {top}V{bottom}M{x - 5} {bottom - 6}L{x} {bottom}L{x + 5} {bottom - 6}"/>'


def _teaches(teacher: float, student: float) -> str:
    """A dashed line at the left, from a teacher's box to its student's."""
    top, bottom, x = teacher + HEIGHT / 2, student + HEIGHT / 2, LEFT - 24
    line = f'<path class="teaches" d="M{LEFT} {top}H{x}V{bottom}H{LEFT - 3}"/>'
    return f'{line}<text class="tick" x="{x - 6}" y="{(top + bottom) / 2}" text-anchor="end">teaches</text>'
