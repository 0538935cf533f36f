"""What is drawn equals the records, nothing is clipped, and no two labels overlap."""

from itertools import pairwise

import numpy
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection

from analysis.load import by_setting, load_sweep
from analysis.plots import QUANTITIES, draw, encode
from analysis.style import COLORS, COLUMN_WIDTH, series_look

SPEEDUP, ACCEPTANCE = QUANTITIES
LONG = "a_method_with_quite_a_long_name"


def figure_of(folder, quantity):
    ((setting, points),) = by_setting(load_sweep(folder)).items()
    return draw(quantity, setting, points)


@pytest.mark.parametrize(("quantity", "extra"), [(SPEEDUP, 0.0), (ACCEPTANCE, 0.5)])
def test_bars_equal_the_records(small_sweep, quantity, extra):
    axes = figure_of(small_sweep, quantity).axes[0]
    lengths = [[bar.get_width() for bar in container] for container in axes.containers]  # a container per task
    assert lengths == [[1.0, 2.25 + extra, 1.75 + extra], [1.0, 1.125 + extra, 3.5 + extra]]
    names = [tick.get_text() for tick in axes.get_yticklabels()]
    assert names == ["autoregressive", "chain\n(prompt_lookup)", "eagle2\n(layer_skip)"]


def test_intervals_and_the_reference_line_are_drawn(small_sweep):
    axes = figure_of(small_sweep, SPEEDUP).axes[0]
    intervals = [lines for lines in axes.collections if isinstance(lines, LineCollection)]
    assert {tuple(segment[:, 0]) for lines in intervals for segment in lines.get_segments()} == {(1.4, 1.6)}
    (reference,) = axes.lines
    assert tuple(numpy.asarray(reference.get_xdata())) == (1.0, 1.0)


def test_a_missing_figure_is_named_not_drawn_as_zero(small_sweep, add):
    add(task="chat", status="failed", reason="out of memory", speedup=None)
    axes = figure_of(small_sweep, SPEEDUP).axes[0]
    assert [text.get_text() for text in axes.texts] == ["1.00", "2.25", "no figure", "1.00", "1.12", "3.50"]


@pytest.mark.parametrize("num_tasks", [1, 2, 6])
def test_labels_neither_overlap_nor_leave_the_page(sweep_dir, add, num_tasks):
    for method in range(10):
        for task in range(num_tasks):
            name = LONG if method == 0 else f"method{method}"
            add(algorithm=name, drafter="a_drafter_that_is_long", task=f"reasoning_{task}", lossless=method != 3)
    figure = figure_of(sweep_dir, SPEEDUP)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    axes, page = figure.axes[0], figure.bbox
    assert figure.get_figwidth() == COLUMN_WIDTH
    names = [tick.get_window_extent() for tick in axes.get_yticklabels()]
    assert all(lower.y1 <= upper.y0 for upper, lower in pairwise(names))
    heads = [legend.get_window_extent() for legend in figure.legends]
    values = [text.get_window_extent() for text in axes.texts]
    for box in [*names, *heads, *values, axes.xaxis.label.get_window_extent()]:
        assert page.x0 <= box.x0 <= box.x1 <= page.x1
        assert page.y0 <= box.y0 <= box.y1 <= page.y1
    assert all(head.y0 >= axes.get_window_extent().y1 for head in heads)


def test_every_series_looks_different():
    looks = {(look["facecolor"], look["hatch"]) for look in map(series_look, range(3 * len(COLORS)))}
    assert len(looks) == 3 * len(COLORS)


def test_svg_says_what_it_shows_and_is_reproducible(small_sweep):
    first, second = (encode(figure_of(small_sweep, SPEEDUP), "svg") for _ in range(2))
    assert first == second
    assert b"eagle2" in first
    assert b"humaneval" in first
