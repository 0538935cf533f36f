"""Plots of points against each other: speedup by batch size, acceptance and cost by width, latency and throughput."""

import textwrap
from collections.abc import Iterable
from typing import Any, NamedTuple

import matplotlib
import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.style import COLUMN_WIDTH, FAINT, INK, PAPER, STYLE, line_look

PLOT_INCHES, LEGEND_ROW_INCHES = 2.3, 0.15
TITLE_CHARACTERS = 58
LEGEND_COLUMNS, LEGEND_CHARACTERS = 2, 24  # longer labels get a column as wide as the figure


class Curve(NamedTuple):
    """Points of one method, ordered by x. `low` and `high` are the ends of intervals, NaN where there is none."""

    label: str
    x: list[float]
    y: list[float]
    low: list[float]
    high: list[float]


def paper_figure(title: str, labels: Iterable[str] = (), inches: float = PLOT_INCHES) -> tuple[Figure, Axes]:
    """One column wide, with the title above and room below for a legend of these labels. For use with STYLE on."""
    lines = textwrap.wrap(title.replace("temperature ", "temperature\N{NO-BREAK SPACE}"), TITLE_CHARACTERS)
    labels = list(labels)
    rows = -(-len(labels) // _columns(labels))
    height = inches + LEGEND_ROW_INCHES * (rows + len(lines))
    figure = Figure(figsize=(COLUMN_WIDTH, height), layout="constrained")
    axes = figure.subplots()
    axes.grid(True, axis="both")
    figure.suptitle("\n".join(lines))
    return figure, axes


def _columns(labels: list[str]) -> int:
    return LEGEND_COLUMNS if all(len(label) <= LEGEND_CHARACTERS for label in labels) else 1


def add_legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = min(_columns(list(map(str, labels))), len(handles))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, handlelength=2)


def _finish(figure: Figure, axes: Axes, xlabel: str, ylabel: str) -> Figure:
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    add_legend(figure, axes)
    return figure


def _plain_line(axes: Axes) -> None:
    axes.axhline(1.0, color=INK, linewidth=0.8, linestyle=(0, (4, 2)), zorder=1.5)


def batch_curves(title: str, curves: list[Curve]) -> Figure:
    """Speedup by batch size with a band of 95 %; the dashed line is plain decoding."""
    with matplotlib.rc_context(STYLE):
        figure, axes = paper_figure(title, [curve.label for curve in curves])
        for index, curve in enumerate(curves):
            look = line_look(index)
            axes.plot(curve.x, curve.y, label=curve.label, **look)
            axes.fill_between(curve.x, curve.low, curve.high, color=look["color"], alpha=0.18, linewidth=0)
        _plain_line(axes)
        axes.set_xscale("log", base=2)
        sizes = sorted({size for curve in curves for size in curve.x})
        axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        return _finish(figure, axes, "batch size", "speedup over plain decoding")


def budget_curves(title: str, curves: list[Curve]) -> Figure:
    """Acceptance length by nodes verified per step; the spread of widths within a point is the horizontal bar."""
    with matplotlib.rc_context(STYLE):
        figure, axes = paper_figure(title, [curve.label for curve in curves])
        _scatter(axes, curves, spread_of_x=True)
        axes.set_ylim(bottom=min(1.0, axes.get_ylim()[0]))
        return _finish(figure, axes, "verified nodes per step (mean; bar: 10 to 90 %)", "acceptance length")


def cost_curves(title: str, curves: list[Curve]) -> Figure:
    """What a whole step costs, in steps of plain decoding, by nodes verified: below tau speculation pays."""
    with matplotlib.rc_context(STYLE):
        figure, axes = paper_figure(title, [curve.label for curve in curves])
        _scatter(axes, curves, spread_of_x=True)
        _plain_line(axes)
        axes.set_ylim(bottom=0)
        return _finish(figure, axes, "verified nodes per step (mean; bar: 10 to 90 %)", "cost of a step in plain steps")


def pareto(title: str, curves: list[Curve]) -> Figure:
    """Latency of a sequence against throughput; points off the dashed line are beaten in both by another."""
    with matplotlib.rc_context(STYLE):
        figure, axes = paper_figure(title, [curve.label for curve in curves])
        _scatter(axes, curves, spread_of_x=False)
        front = frontier([(x, y) for curve in curves for x, y in zip(curve.x, curve.y, strict=True)])
        axes.plot(*zip(*front, strict=True), color=FAINT, linewidth=0.9, linestyle=(0, (4, 2)), zorder=1.5)
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        return _finish(figure, axes, "latency (ms per token of a sequence)", "throughput (tokens/s)")


def frontier(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points than which none has both less x and more y, by x."""
    kept: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or y > kept[-1][1]:
            kept.append((x, y))
    return kept


def _scatter(axes: Axes, curves: list[Curve], spread_of_x: bool) -> None:
    for index, curve in enumerate(curves):
        look: dict[str, Any] = line_look(index) | {"linestyle": "-" if spread_of_x is False else ""}
        if spread_of_x:
            axes.hlines(curve.y, curve.low, curve.high, color=look["color"], linewidth=0.8, alpha=0.7)
        axes.plot(curve.x, curve.y, label=curve.label, markeredgecolor=PAPER, markeredgewidth=0.5, **look)
    axes.margins(0.08)


def ordered(label: str, rows: list[tuple[float, float, float | None, float | None]]) -> Curve:
    """A curve of (x, y, low, high) rows."""
    columns = zip(*sorted(rows, key=lambda row: row[:2]), strict=True)
    return Curve(label, *([numpy.nan if value is None else float(value) for value in column] for column in columns))
