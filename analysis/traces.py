"""`python -m analysis.traces SWEEP_DIR`: what routers estimated while they ran, one figure per point that has traces.

Drawn are `alpha_NAME` and `c_NAME` (acceptance, cost per token in target forwards) and `nodes_NAME` (drafted
nodes) per configuration and step, to `SWEEP_DIR/report/traces-POINT.svg` and `.png`.
"""

import argparse
import textwrap
from pathlib import Path

import matplotlib
import numpy
import pandas
from matplotlib.figure import Figure
from rich.console import Console

from analysis.plots import encode
from analysis.style import COLORS, COLUMN_WIDTH, STYLE
from runners.store import read_steps, write_bytes

FIGURES = {
    "alpha": "estimated\nacceptance",
    "c": "estimated cost\n(target forwards)",
    "nodes": "drafted nodes\nper step",
}
TITLE_WIDTH = 46  # characters
SMOOTHING = 20  # steps in the moving mean of drafted nodes
NOTHING_TO_DRAW, WRONG_USE = 1, 2


def configurations(steps: pandas.DataFrame) -> list[str]:
    """Names of the configurations that a point has traces of, in the order of the columns."""
    traced = [name.removeprefix("alpha_") for name in steps.columns if name.startswith("alpha_")]
    return [name for name in traced if bool(numpy.isfinite(steps[f"alpha_{name}"].to_numpy(dtype=float)).any())]


def draw_traces(steps: pandas.DataFrame, title: str) -> Figure:
    """Estimates over the steps of one point, all its sequences one after the other; dotted where a sequence begins."""
    names = configurations(steps)
    steps = steps.sort_values(["sequence", "step"]).reset_index(drop=True)
    sequences = steps["sequence"].to_numpy()
    begins = numpy.flatnonzero(sequences[1:] != sequences[:-1]) + 1
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(COLUMN_WIDTH, 1.3 * len(FIGURES)), layout="constrained")
        panels = figure.subplots(len(FIGURES), 1, sharex=True)
        for axes, (kind, label) in zip(panels, FIGURES.items(), strict=True):
            for index, name in enumerate(names):
                window = SMOOTHING if kind == "nodes" else 1
                values = pandas.Series(steps[f"{kind}_{name}"]).rolling(window, min_periods=1).mean()
                axes.plot(range(len(values)), values, color=COLORS[index % len(COLORS)], linewidth=0.9, label=name)
            for begin in begins:
                axes.axvline(begin, color="#AAAAAA", linewidth=0.5, linestyle=":")
            axes.set_ylabel(label)
            axes.set_ylim(bottom=0)
        panels[-1].set_xlabel("verification step")
        figure.suptitle("\n".join(textwrap.wrap(title.replace("-", "- "), TITLE_WIDTH)).replace("- ", "-"))
        figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside lower center", ncols=3, handlelength=1)
    return figure


def write_traces(folder: Path) -> list[str]:
    """Draw every point of the sweep that has traces; returns the names of the files."""
    steps, problems = read_steps(folder)
    for line in problems:
        Console(stderr=True).print(line, style="red")
    (folder / "report").mkdir(exist_ok=True)
    written = []
    for point, own in steps.groupby("point"):
        if configurations(own):
            figure = draw_traces(own, str(point))
            for form in ("svg", "png"):
                written.append(f"traces-{point}.{form}")
                write_bytes(folder / "report" / written[-1], encode(figure, form))
    return written


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 drawn, 1 no point has traces, 2 wrong use."""
    parser = argparse.ArgumentParser(prog="python -m analysis.traces", description=__doc__)
    parser.add_argument("sweep_dir", type=Path, metavar="SWEEP_DIR", help="folder that benchmark runs wrote (output=)")
    folder = parser.parse_args(arguments).sweep_dir
    errors = Console(stderr=True, soft_wrap=True)
    if not folder.is_dir():
        errors.print(f"{folder}: no such folder; give the output= folder of a benchmark run")
        return WRONG_USE
    written = write_traces(folder)
    errors.print(
        f"wrote {', '.join(written)}" if written else f"{folder}: no point has traces (algorithm=cas_spec has)"
    )
    return 0 if written else NOTHING_TO_DRAW


if __name__ == "__main__":
    raise SystemExit(main())
