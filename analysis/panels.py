"""Plots of what happens inside a step: acceptance by depth and rank, time split, calibration, router traces."""

from typing import Any

import matplotlib
import numpy
from matplotlib.figure import Figure

from analysis.curves import add_legend, paper_figure
from analysis.metrics import STAGES, Table, acceptance_by_rank, calibration
from analysis.plots import BAR_INCHES, fold
from analysis.style import FAINT, HEAT, INK, STYLE, line_look, series_look

DEEPEST, LAST_RANK = 8, 8  # that the heat map shows
FEWEST_NODES = 5  # of a heat map's cell; fewer say nothing
BINS = 10
MOST_TRACES = 8


def heat_map(title: str, nodes: Table) -> Figure:
    """Share of verified nodes that were accepted, given that their parent was. Cells of few nodes stay empty."""
    rates = acceptance_by_rank(nodes)
    rates = rates[(rates["depth"] <= DEEPEST) & (rates["rank"] < LAST_RANK)]
    grid = numpy.full((int(rates["rank"].max()) + 1, int(rates["depth"].max())), numpy.nan)
    counts = numpy.zeros_like(grid)
    places = rates["rank"].to_numpy(dtype=int), rates["depth"].to_numpy(dtype=int) - 1
    counts[places] = rates["nodes"]
    grid[places] = rates["rate"].where(rates["nodes"] >= FEWEST_NODES)
    with matplotlib.rc_context(STYLE):
        figure, axes = paper_figure(title, inches=1.3 + 0.18 * len(grid))
        axes.grid(False)
        image = axes.imshow(grid, cmap=HEAT, vmin=0, vmax=1, aspect="auto")
        for (rank, depth), rate in numpy.ndenumerate(grid):
            if counts[rank, depth]:
                known = numpy.isfinite(rate)
                text = f"{rate:.2f}" if known else f"n={int(counts[rank, depth])}"
                color = FAINT if not known else "#FFFFFF" if rate > 0.55 else INK
                axes.text(depth, rank, text, ha="center", va="center_baseline", fontsize=6, color=color)
        axes.set_xticks(range(grid.shape[1]), [str(depth + 1) for depth in range(grid.shape[1])])
        axes.set_yticks(range(grid.shape[0]), [str(rank + 1) for rank in range(grid.shape[0])])
        axes.set_xlabel("depth")
        axes.set_ylabel("sibling")
        bar = figure.colorbar(image, ax=axes, pad=0.02)
        bar.set_label("share accepted")
        bar.outline.set_visible(False)
    return figure


def time_bars(title: str, costs: dict[str, dict[str, float]]) -> Figure:
    """Milliseconds per emitted token by stage; `costs` are seconds by method and stage."""
    names = [fold(label) for label in costs]
    slots = numpy.array([max(1.5, name.count("\n") + 1.5) for name in names])  # rows of text
    middles = numpy.cumsum(slots) - slots / 2
    with matplotlib.rc_context(STYLE):
        figure, axes = paper_figure(title, STAGES, inches=0.6 + BAR_INCHES * slots.sum())
        axes.grid(False, axis="y")
        left = numpy.zeros(len(costs))
        for index, stage in enumerate(STAGES):
            widths = numpy.array([1000 * max(cost.get(stage, 0.0), 0.0) for cost in costs.values()])
            axes.barh(middles, widths, left=left, height=1.1, label=stage, **series_look(index))
            left += widths
        axes.set_yticks(middles, names)
        axes.set_ylim(slots.sum(), 0)
        axes.set_xlabel("decode time per token (ms)")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, handlelength=1)
    return figure


def calibration_curves(title: str, nodes: dict[str, Table]) -> Figure:
    """Drafter's probability against the share that came true, by method; the legend has the calibration error."""
    with matplotlib.rc_context(STYLE):
        figure, axes = paper_figure(title, [f"{label}: ECE 0.00" for label in nodes])
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8, linestyle=(0, (4, 2)))
        for index, (label, table) in enumerate(nodes.items()):
            found = calibration(table, BINS)
            if found.error is not None:
                bins = found.bins[found.bins["nodes"] >= FEWEST_NODES]
                named = f"{label}: ECE {found.error:.2f}"
                axes.plot(bins["predicted"], bins["realised"], label=named, **line_look(index))
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel(f"drafter's probability (bins of {FEWEST_NODES} nodes or more)")
        axes.set_ylabel("accepted, if the parent was")
        add_legend(figure, axes)
    return figure


def router_traces(title: str, traces: Table) -> Figure:
    """What an adaptive algorithm noted at each step of its first sequence, a curve per column."""
    columns = list(traces.columns)[:MOST_TRACES]
    with matplotlib.rc_context(STYLE):
        figure, axes = paper_figure(title, map(str, columns))
        for index, name in enumerate(columns):
            look: dict[str, Any] = line_look(index) | {"marker": "" if len(traces) > 40 else "."}
            axes.plot(traces.index, traces[name], label=name, **look)
        axes.set_xlabel("verification step")
        axes.set_ylabel("traced value")
        if len(traces.columns) > len(columns):
            more = f"{len(traces.columns) - len(columns)} more columns"
            axes.annotate(more, (1, 1), xycoords="axes fraction", ha="right")
        add_legend(figure, axes)
    return figure
