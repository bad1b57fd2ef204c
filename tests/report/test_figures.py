"""Figures: elements of a page, with ids of their own and values for the pointer."""

import re
from itertools import combinations

import pandas as pd
import pytest

from litgpt_warmstart.report.figures import Drawing, as_element, dots, drawing, heat_map, speed_ups


def test_an_svg_in_the_page_has_ids_of_its_own():
    svg = '<?xml version="1.0"?>\n<svg width="9pt" height="8pt" viewBox="0 0 9 8"><g id="p" style="fill: #010203"/>'
    svg += '<use xlink:href="#p" clip-path="url(#p)" width="3.14159"/></svg>'
    assert as_element(svg, "a") == (
        '<svg viewBox="0 0 9 8"><g id="a-p" style="fill: currentColor"/>'
        '<use xlink:href="#a-p" clip-path="url(#a-p)" width="3.14"/></svg>'
    )


def test_values_stand_where_their_points_are_drawn():
    with drawing(height=2.0) as d:
        axes = d.panels[0]
        d.plot(axes, [0, 1, float("nan")], [0, 1, 1], ["low", "high", "nowhere"], marker="o")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        figure = d.finished("f", "")
    (x0, y0, low), (x1, y1, high) = figure.points
    assert (low, high) == ("low", "high") and x0 < x1 and y0 > y1  # y grows downwards
    marks = re.findall(r'<use xlink:href="#f-m[^"]*" x="([0-9.]+)" y="([0-9.]+)" style="fill: #1f77b4', figure.svg)
    assert [tuple(map(float, mark)) for mark in marks] == [
        pytest.approx((x0, y0), abs=0.1),
        pytest.approx((x1, y1), abs=0.1),
    ]


def test_a_grid_of_one_batch_size_has_cells_with_an_area_and_a_diverged_cell_says_so():
    losses = pd.DataFrame({64: [4.0, 3.8, float("nan")]}, index=[0.01, 0.03, 0.1])
    figure = heat_map("grid", "", losses, (0.03, 64), "title")
    assert "diverged" in figure.svg and "3.800" in figure.svg and figure.png.startswith(b"\x89PNG")


def test_long_names_of_arms_leave_the_panels_room_and_no_words_lie_over_others(monkeypatch):
    drawn = []
    finished = Drawing.finished
    monkeypatch.setattr(Drawing, "finished", lambda d, *words: drawn.append(d.figure) or finished(d, *words))
    name = "from scratch, 20 tokens per parameter, 0.5 x the learning rate"
    losses = {"before the first step": [6.3, 6.4], "at the end": [2.8]}
    dots("arms", "", {name: losses, "shrink 0.4, growth quiet, 60 tokens per parameter": losses}, "48 -> 96")
    (figure,) = drawn
    figure.draw_without_rendering()
    words = [*figure.texts, *(text for axes in figure.axes for text in axes.get_yticklabels())]
    words += [text for axes in figure.axes for text in (axes.title, axes.xaxis.label)]
    boxes = [text.get_window_extent() for text in words if text.get_visible() and text.get_text()]
    assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    assert sum(axes.bbox.width for axes in figure.axes) > 0.5 * figure.bbox.width


def test_speed_ups_near_1_have_numbers_below_them():
    row = {"comparison": "48 -> 96", "warmstart": "shrink 0.4"}
    for kind, value in (("speed_up_with_base", 1.26), ("speed_up", 1.33)):
        row |= {kind: value, f"{kind}_low": value - 0.15, f"{kind}_high": value + 0.2, f"{kind}_limit": 1.1}
    numbers = re.findall(r">(\d[\d.]*)</text>", speed_ups("s", "", pd.DataFrame([row])).svg)
    assert {float(number) for number in numbers} >= {1.0, 1.2, 1.4}
