"""Draws a cost table: seconds of a target forward by width, a curve per batch size."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from backend.costs import Axes, Surface


def plot_costs(table: Mapping[str, Any], path: Path) -> None:
    """Dots are medians as measured, lines the lower envelope that decisions use; at the first context."""
    axes = Axes(table["batches"], table["widths"], table["contexts"])
    envelope = Surface.measured(axes, table["target_seconds"]).seconds
    measured = np.array(table["target_seconds"], dtype=float)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    panel = figure.subplots()
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(axes.batches)))
    for b, color in enumerate(colors):
        shown = np.isfinite(measured[b, :, 0])
        widths = np.array(axes.widths)[shown]
        panel.plot(widths, envelope[b, shown, 0] * 1e3, color=color, label=f"batch {axes.batches[b]}")
        panel.plot(widths, measured[b, shown, 0] * 1e3, "o", color=color, markersize=3)
    panel.set(xscale="log", yscale="log", xlabel="tokens per row", ylabel="milliseconds of one target forward")
    panel.set_xticks(list(axes.widths), [str(width) for width in axes.widths])
    panel.set_title(
        f"{table['target']}, {table['dtype']}, {table['device_name']}, context {axes.contexts[0]}", fontsize=9
    )
    panel.legend(fontsize=8)
    figure.savefig(path, dpi=120)
