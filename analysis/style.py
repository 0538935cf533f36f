"""How every plot looks: one paper column wide, 7 pt text, Okabe and Ito's colours, safe for colour-blind readers."""

from typing import Any

COLUMN_WIDTH = 3.4  # inches
COLORS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999"]
MARKERS = ["o", "s", "D", "^", "v", "<", ">", "p"]
HEAT = "cividis_r"  # even in lightness, the same to colour-blind readers
HATCHES = ["", "////", "....", "xxxx"]  # from the ninth series on colours repeat with a hatch
INK, FAINT, GRID, PAPER = "#222222", "#888888", "#DDDDDD", "#FFFFFF"

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "legend.frameon": False,
    "figure.titlesize": 7,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "x",
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "xtick.color": INK,
    "ytick.color": INK,
    "ytick.major.size": 0,
    "hatch.linewidth": 0.5,
    "savefig.dpi": 250,
    "savefig.facecolor": PAPER,
    "svg.fonttype": "none",  # text stays text: small, and in the colours of the page that shows it
    "pdf.fonttype": 42,  # fonts embedded as journals ask for
    "svg.hashsalt": "treebench",  # the same records give the same file
}


def series_look(index: int) -> dict[str, Any]:
    """Fill of the series with this index."""
    hatch = HATCHES[index // len(COLORS) % len(HATCHES)]
    return {"facecolor": COLORS[index % len(COLORS)], "hatch": hatch, "edgecolor": "white" if hatch else "none"}


def line_look(index: int) -> dict[str, Any]:
    """Curve of the series with this index: told apart by marker and dash too."""
    dash = ["-", (0, (4, 1.5)), (0, (1, 1))][index // len(COLORS) % 3]
    marker = MARKERS[(index + index // len(COLORS)) % len(MARKERS)]
    return {
        "color": COLORS[index % len(COLORS)],
        "marker": marker,
        "linestyle": dash,
        "linewidth": 1.1,
        "markersize": 4,
    }
