"""A sweep's tables: every point as CSV, and the papers' table (speedup and tau per task) in Markdown and LaTeX."""

import re
from collections.abc import Callable
from dataclasses import fields
from statistics import fmean
from typing import NamedTuple, get_origin

import pandas

from analysis.checks import EXPLANATION, checks_table
from analysis.load import Point, Setting, Sweep, by_setting, notes, percent, provenance, warnings
from runners.records import RunRecord

SCALARS = [field.name for field in fields(RunRecord) if get_origin(field.type) not in (dict, list)]
MEAN = "mean"
NO_FIGURE = "-"
FIGURES = {"speedup": ("speedup", "x"), "tau": ("acceptance_length", "")}  # title: field, suffix


class Missing(NamedTuple):
    """A point without a figure, or a file that cannot be read."""

    point: str
    status: str
    reason: str


def points_csv(sweep: Sweep) -> str:
    """One row per point whatever its status; columns named as in `run.json`, then the folder's name. Full precision."""
    rows = [{name: getattr(point.record, name) for name in SCALARS} | {"point": point.name} for point in sweep.points]
    return pandas.DataFrame(rows, columns=[*SCALARS, "point"]).to_csv(index=False)


def missing_points(sweep: Sweep) -> list[Missing]:
    failed = [point for point in sweep.points if point.record.status != "ok"]
    broken = [line.partition(": ") for line in sweep.problems]
    return [
        *(Missing(point.name, point.record.status, " ".join(point.record.reason.split())) for point in failed),
        *(Missing(name, "unreadable", " ".join(reason.split())) for name, _, reason in broken),
    ]


# ------------------------------------------------------------------------------------------------ the papers' table


Column = dict[str, float | None]  # by label


def paper_figures(points: list[Point]) -> dict[tuple[str, str], Column]:
    """A column per task and per title of FIGURES, then the mean over tasks of labels that have them all."""
    labels = list(dict.fromkeys(point.label for point in points))
    tasks = sorted({point.record.task for point in points})
    records = {(point.label, point.record.task): point.record for point in points}
    columns = {
        (task, title): {label: getattr(records.get((label, task)), field, None) for label in labels}
        for task in tasks
        for title, (field, _) in FIGURES.items()
    }
    if len(tasks) == 1:
        return columns
    means = {(MEAN, title): _means([columns[task, title] for task in tasks]) for title in FIGURES}
    return columns | means


def _means(columns: list[Column]) -> Column:
    rows = {label: [column[label] for column in columns] for label in columns[0]}
    return {
        label: None if None in row else fmean(value for value in row if value is not None)
        for label, row in rows.items()
    }


def paper_cells(points: list[Point], bold: Callable[[str], str]) -> pandas.DataFrame:
    """The figures as text, the best of each column bold. Lossy methods stay out of that contest."""
    contestants = {point.label for point in points if point.record.lossless}
    columns = {}
    for (task, title), figures in paper_figures(points).items():
        texts = {label: _figure(value, FIGURES[title][1]) for label, value in figures.items()}
        best = _best({label: figures[label] for label in figures if label in contestants})
        columns[task, title] = {label: bold(text) if label in best else text for label, text in texts.items()}
    return pandas.DataFrame(columns).rename_axis("algorithm")


def _best(figures: Column) -> list[str]:
    """Labels that show the highest figure; none where there is nothing to compare."""
    shown = {label: round(value, 2) for label, value in figures.items() if value is not None}
    return [label for label in shown if shown[label] == max(shown.values())] if len(shown) > 1 else []


def _figure(value: float | None, suffix: str = "", form: str = ".2f") -> str:
    return NO_FIGURE if value is None else format(value, form) + suffix


def detail_table(points: list[Point]) -> pandas.DataFrame:
    """A line per method and task, as text: what the terminal shows and the papers' table has no room for."""
    return pandas.DataFrame([_details(point) for point in points])


def _details(point: Point) -> dict[str, str]:
    record = point.record
    return {
        "algorithm": point.label,
        "task": record.task,
        "speedup": _figure(record.speedup, "x"),
        "95 % interval": _interval(record.speedup_low, record.speedup_high),
        "tau": _figure(record.acceptance_length),
        "tokens/s": _figure(record.tokens_per_second, form=".1f"),
        "baseline": _figure(record.baseline_tokens_per_second, form=".1f"),
        "identical": percent(record.identical_rate),
    }


def _interval(low: float | None, high: float | None) -> str:
    return NO_FIGURE if low is None or high is None else f"{low:.2f}-{high:.2f}"


# ---------------------------------------------------------------------------------------------------------- Markdown


def markdown(sweep: Sweep) -> str:
    parts = [f"# {_escape_markdown(sweep.title)}"]
    parts += [f"**Warning:** {_escape_markdown(line)}" for line in warnings(sweep)]
    parts += [_markdown_setting(setting, points) for setting, points in by_setting(sweep).items()]
    parts += [f"Note: {_escape_markdown(line)}" for line in notes(sweep)]
    missing = missing_points(sweep)
    if missing:
        parts += [f"## Points without a figure ({len(missing)})", _pipe_table(pandas.DataFrame(missing))]
    return "\n\n".join(parts) + "\n"


def _markdown_setting(setting: Setting, points: list[Point]) -> str:
    cells = paper_cells(points, bold=lambda text: f"**{text}**")
    cells.columns = [f"{task} {title}" for task, title in cells.columns]
    footer = [f"- {_escape_markdown(line)}" for line in (*provenance(setting, points), EXPLANATION)]
    heading = f"## {_escape_markdown(str(setting))}"
    tables = [_pipe_table(table) for table in (cells.reset_index(), detail_table(points), checks_table(points))]
    return "\n\n".join([heading, *tables, "\n".join(footer)])


def _pipe_table(cells: pandas.DataFrame) -> str:
    """Cells come as text; only a pipe would break the table."""
    escaped = cells.map(lambda text: text.replace("|", r"\|"))
    return escaped.to_markdown(index=False, disable_numparse=True)


def _escape_markdown(text: str) -> str:
    return re.sub(r"([*_`<\[])", r"\\\1", text)


# ------------------------------------------------------------------------------------------------------------- LaTeX

LATEX = {
    "\\": r"\textbackslash{}",
    "†": r"$^\dagger$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{character: "\\" + character for character in "&%$#_{}"},
}


PREAMBLE = r"""% needs \usepackage{booktabs}; with \usepackage{graphicx} wide tables shrink to the column
\providecommand{\resizebox}[3]{#3}"""


def latex(sweep: Sweep) -> str:
    r"""One `table` environment per setting, to be read with \input."""
    tables = [_latex_setting(*item, number) for number, item in enumerate(by_setting(sweep).items(), 1)]
    return "\n".join([PREAMBLE, *(f"% WARNING: {line}" for line in warnings(sweep)), *tables])


def _latex_setting(setting: Setting, points: list[Point], number: int) -> str:
    cells = paper_cells(points, bold=lambda text: rf"\textbf{{{text}}}")
    cells.index = pandas.Index([_escape_latex(label) for label in cells.index])
    titles = {"speedup": "speedup", "tau": r"$\tau$"}
    cells.columns = pandas.MultiIndex.from_tuples([(_escape_latex(t), titles[title]) for t, title in cells.columns])
    text = cells.style.to_latex(
        hrules=True,
        multicol_align="c",
        column_format="l" + "r" * len(cells.columns),
        environment="table*" if len(cells.columns) > 6 else "table",  # two columns wide from three tasks on
        position_float="centering",
        position="t",
        caption=_escape_latex(f"Speedup over plain decoding and acceptance length: {setting}."),
        label=f"tab:speedup-{number}",
    )
    return _with_footer(text, " ".join(_escape_latex(line) for line in provenance(setting, points)))


def _with_footer(table: str, footer: str) -> str:
    """The rows, shrunk only where they are wider than the column, and the footer as wide as that."""
    fit = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
    note = rf"\par\medskip\begin{{minipage}}{{\linewidth}}\scriptsize {footer}\end{{minipage}}"
    table = table.replace(r"\begin{tabular}", f"\\small\\setlength{{\\tabcolsep}}{{4pt}}\n{fit}\n\\begin{{tabular}}")
    return table.replace(r"\end{tabular}", f"\\end{{tabular}}}}\n{note}")


def _escape_latex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)
