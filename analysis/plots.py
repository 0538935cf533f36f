"""Bar plots of one setting: speedup with its interval, and acceptance length, per method and task."""

import math
import re
import textwrap
from io import BytesIO
from typing import Any, NamedTuple

import matplotlib
import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from analysis.load import DAGGER, Point, Setting
from analysis.style import COLUMN_WIDTH, FAINT, INK, PAPER, STYLE, series_look

BAR_INCHES = 0.125  # room for a 6 pt figure at its end
GAP = 0.7  # between methods, in bars
MARGIN_INCHES, LEGEND_ROW_INCHES = 0.8, 0.14
LEGEND_COLUMNS = 3


class Quantity(NamedTuple):
    """What a bar's length is. `low` and `high` name the fields of its interval, if it has one."""

    name: str
    field: str
    label: str
    low: str = ""
    high: str = ""


QUANTITIES = [
    Quantity("speedup", "speedup", "speedup over plain decoding", "speedup_low", "speedup_high"),
    Quantity(
        *("acceptance_length", "acceptance_length", "acceptance length (tokens per step)"),
        *("acceptance_length_low", "acceptance_length_high"),
    ),
]


def draw(quantity: Quantity, setting: Setting, points: list[Point]) -> Figure:
    """Horizontal bars; the dashed line at 1.0 is plain decoding. The figure grows in height, never in width."""
    tasks = sorted({point.record.task for point in points})
    labels = list(dict.fromkeys(point.label for point in points))
    names = [fold(label) for label in labels]
    slots = numpy.array([max(len(tasks), name.count("\n") + 1) + GAP for name in names])  # rows: bars or lines of text
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(COLUMN_WIDTH, _height(slots.sum(), len(tasks))), layout="constrained")
        axes = figure.subplots()
        middles = numpy.cumsum(slots) - slots / 2
        for index, task in enumerate(tasks):
            records = {point.label: point.record for point in points if point.record.task == task}
            rows = middles + index - (len(tasks) - 1) / 2
            _draw_bars(axes, quantity, rows, [records.get(label) for label in labels], series_look(index))
        axes.set_yticks(middles, names)
        axes.set_ylim(slots.sum(), 0)
        _label_values(axes, quantity, any(not point.record.lossless for point in points))
        _head(figure, setting, tasks)
    return figure


def _height(rows: float, num_tasks: int) -> float:
    return MARGIN_INCHES + LEGEND_ROW_INCHES * math.ceil(num_tasks / LEGEND_COLUMNS) + BAR_INCHES * rows


def _draw_bars(axes: Axes, quantity: Quantity, rows: numpy.ndarray, records: list, look: dict[str, Any]) -> None:
    values, low, high = (_numbers(records, field) for field in (quantity.field, quantity.low, quantity.high))
    axes.barh(rows, numpy.nan_to_num(values), height=0.86, **look)
    axes.hlines(rows, low, high, color=INK, linewidth=0.9)
    for row, value, end in zip(rows, values, numpy.fmax(values, high), strict=True):
        known = numpy.isfinite(value)
        axes.annotate(
            f"{value:.2f}" if known else "no figure",
            (end if known else 0.0, row),
            (2.5, 0),
            textcoords="offset points",
            va="center_baseline",
            fontsize=6,
            color=INK if known else FAINT,
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.3},
        )


def _numbers(records: list, field: str) -> numpy.ndarray:
    """NaN where there is no record, no such field or no value."""
    return numpy.array([getattr(record, field, None) if field else None for record in records], dtype=float)


def _label_values(axes: Axes, quantity: Quantity, lossy: bool) -> None:
    axes.axvline(1.0, color=INK, linewidth=0.8, linestyle=(0, (4, 2)), zorder=2.5)
    axes.set_xlim(left=0, right=max(1.15, axes.get_xlim()[1] * 1.1))
    axes.locator_params(axis="x", nbins=6)
    axes.set_xlabel(quantity.label + (f"\n{DAGGER} lossy: the output is not the target's own" if lossy else ""))


def fold(label: str) -> str:
    """Drafter and options get lines of their own; long names break after an underscore."""
    parts = re.split(r" (?=\()|(?<=\)) ", label)
    lines = [line for part in parts for line in textwrap.wrap(part.replace("_", "_ "), 22)]
    return "\n".join(line.replace("_ ", "_") for line in lines)


def _head(figure: Figure, setting: Setting, tasks: list[str]) -> None:
    title = str(setting) + (f", {tasks[0]}" if len(tasks) == 1 else "")
    title = "\n".join(textwrap.wrap(title, 62))
    if len(tasks) == 1:
        figure.suptitle(title)
        return
    handles = [Patch(label=task, **series_look(index)) for index, task in enumerate(tasks)]
    columns = min(LEGEND_COLUMNS, len(tasks))
    figure.legend(handles=handles, title=title, loc="outside upper center", ncols=columns, handlelength=1)


DATES = {"svg": {"Date": None}, "png": {"Software": None}, "pdf": {"CreationDate": None}}


def encode_all(figure: Figure) -> dict[str, bytes]:
    """The figure in every form."""
    return {form: encode(figure, form) for form in DATES}


def encode(figure: Figure, form: str) -> bytes:
    """The figure as `svg`, `png` or `pdf`; the same records give the same bytes."""
    sink = BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(sink, format=form, metadata=DATES[form])
        figure.set_layout_engine(None)  # laid out once, it stays so and is drawn once per form
    return sink.getvalue()
