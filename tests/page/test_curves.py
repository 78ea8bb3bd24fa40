"""A curve's points lie where their numbers are, between the ticks; nothing is drawn of nothing."""

import re

import pytest

from pomona.page.charts import WIDTH, Line, curves


def drawn(points):
    svg = curves("a title", [Line("a", "part0", tuple(points))], "step")
    (polyline,) = re.findall(r'<polyline class="stroke-part0" points="([^"]*)"', svg)
    ticks = re.findall(r'<text class="tick" x="([\d.-]+)" y="([\d.-]+)" text-anchor="(\w+)">([^<]*)</text>', svg)
    spots = [tuple(map(float, pair.split(","))) for pair in polyline.split()]
    x_ticks = [(float(x), float(text.replace(",", ""))) for x, y, anchor, text in ticks if y == "188.0"]
    beside = [(y, text) for x, y, anchor, text in ticks if anchor == "end" and y != "188.0"]
    y_ticks = [(float(y) - 4, float(text.replace(",", ""))) for y, text in beside]
    return spots, x_ticks, y_ticks


@pytest.mark.parametrize(
    "points",
    [
        [(0, 4.169), (20, 3.017), (40, 2.859)],
        [(10, 8.0), (10_000, 0.004)],
        [(7, 2.5)],
        [(1, 0.0), (2, 0.0)],
        [(1, -3.0), (2_000_000, 3e-9)],
        [(1, 1e6), (3, 9.9e6)],
    ],
)
def test_points_lie_between_ticks_as_their_numbers_do(points):
    spots, x_ticks, y_ticks = drawn(points)
    assert len(spots) == len(points)
    for axis, ticks in ((0, x_ticks), (1, y_ticks)):
        assert 2 <= len(ticks) <= 8
        (at, value), (last_at, last) = ticks[0], ticks[-1]
        scale = (last_at - at) / (last - value)
        for spot, point in zip(spots, points):
            assert min(value, last) <= point[axis] <= max(value, last)
            assert spot[axis] == pytest.approx(at + (point[axis] - value) * scale, abs=0.2)
    assert all(0 <= x <= WIDTH and -1 <= y <= 171 for x, y in spots)


def test_nothing_is_drawn_of_nothing():
    assert curves("a title", [Line("a", "part0", ())], "step") == ""
