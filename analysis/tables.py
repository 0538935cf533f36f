"""A sweep's tables: every point as CSV, and the papers' table (speedup and tau per task) in Markdown and LaTeX."""

import re
from collections.abc import Callable, Iterable
from html import escape
from statistics import fmean
from typing import NamedTuple

import pandas

from analysis.checks import EXPLANATION, checks_table
from analysis.latex import PREAMBLE, latex_table
from analysis.load import Point, Setting, Sweep, by_setting
from analysis.paired import compare_points
from analysis.remarks import WORSE, notes, percent, provenance, warnings
from runners.records import SCALARS

MEAN = "mean"
NO_FIGURE = "-"
MARK = "\0"
TAU_INTERVAL = "tau 95 %"  # a column that sweeps of a few prompts do without
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


class PaperTable(NamedTuple):
    """One setting's figures as text, made once for all formats."""

    setting: Setting
    points: list[Point]
    marked: pandas.DataFrame

    def cells(self, bold: Callable[[str], str]) -> pandas.DataFrame:
        """The best of each column bold. Lossy methods stay out of that contest."""
        return self.marked.map(lambda text: bold(text.strip(MARK)) if text.startswith(MARK) else text)


def paper_tables(sweep: Sweep) -> list[PaperTable]:
    return [PaperTable(setting, points, _marked(points)) for setting, points in by_setting(sweep).items()]


def _marked(points: list[Point]) -> pandas.DataFrame:
    """With MARK around the best."""
    contestants = {point.label for point in points if point.record.lossless}
    columns = {}
    for (task, title), figures in paper_figures(points).items():
        texts = {label: figure_text(value, FIGURES[title][1]) for label, value in figures.items()}
        best = _best({label: figures[label] for label in figures if label in contestants})
        if title == "speedup":
            texts |= {label: texts[label] + WORSE for label in _slower(points, task, best)}
        columns[task, title] = {label: MARK + text + MARK if label in best else text for label, text in texts.items()}
    return pandas.DataFrame(columns).rename_axis("algorithm")


def _slower(points: list[Point], task: str, best: list[str]) -> list[str]:
    """Labels whose paired ratio to the best one of the task shows them slower."""
    records = {point.label: point.record for point in points if point.record.task == task}
    if not best or best[0] not in records:
        return []
    pairs = {label: compare_points(records[best[0]], record) for label, record in records.items()}
    return [label for label, pair in pairs.items() if pair is not None and pair.verdict == "slower"]


def _best(figures: Column) -> list[str]:
    """Labels that show the highest figure; none where there is nothing to compare."""
    shown = {label: round(value, 2) for label, value in figures.items() if value is not None}
    return [label for label in shown if shown[label] == max(shown.values())] if len(shown) > 1 else []


def figure_text(value: float | None, suffix: str = "", form: str = ".2f") -> str:
    return NO_FIGURE if value is None else format(value, form) + suffix


def detail_table(points: list[Point]) -> pandas.DataFrame:
    """A line per method and task, as text: what the terminal shows and the papers' table has no room for."""
    table = pandas.DataFrame([_details(point) for point in points])
    known = any(interval != NO_FIGURE for interval in table[TAU_INTERVAL])
    return table if known else table.drop(columns=TAU_INTERVAL)


def headline(point: Point) -> dict[str, str]:
    """The first cells of a line per point."""
    record = point.record
    return {
        "algorithm": point.label,
        "task": record.task,
        "speedup": figure_text(record.speedup, "x"),
        "95 % interval": _interval(record.speedup_low, record.speedup_high),
        "tau": figure_text(record.acceptance_length),
    }


def _details(point: Point) -> dict[str, str]:
    record = point.record
    return headline(point) | {
        TAU_INTERVAL: _interval(record.acceptance_length_low, record.acceptance_length_high),
        "tokens/s": figure_text(record.tokens_per_second, form=".1f"),
        "baseline": figure_text(record.baseline_tokens_per_second, form=".1f"),
        "identical": percent(record.identical_rate),
    }


def _interval(low: float | None, high: float | None) -> str:
    return NO_FIGURE if low is None or high is None else f"{low:.2f}-{high:.2f}"


# ---------------------------------------------------------------------------------------------------------- Markdown


def markdown(sweep: Sweep, papers: list[PaperTable]) -> str:
    parts = [f"# {escape_markdown(sweep.title)}"]
    parts += [f"**Warning:** {escape_markdown(line)}" for line in warnings(sweep)]
    parts += map(_markdown_setting, papers)
    parts += [f"Note: {escape_markdown(line)}" for line in notes(sweep)]
    missing = missing_points(sweep)
    if missing:
        parts += [f"## Points without a figure ({len(missing)})", pipe_table(pandas.DataFrame(missing))]
    return "\n\n".join(parts) + "\n"


def _markdown_setting(paper: PaperTable) -> str:
    setting, points, _ = paper
    cells = flat(paper.cells(lambda text: f"**{text}**"))
    heading = f"## {escape_markdown(str(setting))}"
    tables = [pipe_table(table) for table in (cells, detail_table(points), checks_table(points))]
    return "\n\n".join([heading, *tables, bullets((*provenance(setting, points), EXPLANATION))])


def bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {escape_markdown(line)}" for line in lines)


def pipe_table(cells: pandas.DataFrame) -> str:
    """Cells come as text; only a pipe would break the table."""
    escaped = cells.map(lambda text: text.replace("|", r"\|"))
    return escaped.to_markdown(index=False, disable_numparse=True)


def escape_markdown(text: str) -> str:
    return re.sub(r"([*_`<\[])", r"\\\1", text)


# ------------------------------------------------------------------------------------------------------ LaTeX, HTML


def latex(sweep: Sweep, papers: list[PaperTable]) -> str:
    r"""One `table` environment per setting, to be read with \input."""
    tables = [_latex_setting(paper, number) for number, paper in enumerate(papers, 1)]
    return "\n".join([PREAMBLE, *(f"% WARNING: {line}" for line in warnings(sweep)), *tables])


def _latex_setting(paper: PaperTable, number: int) -> str:
    cells = paper.cells(lambda text: rf"\textbf{{{text}}}")
    caption = f"Speedup over plain decoding and acceptance length: {paper.setting}."
    return latex_table(cells, caption, f"tab:speedup-{number}", provenance(paper.setting, paper.points))


def html(sweep: Sweep, papers: list[PaperTable]) -> str:
    """The papers' tables as a fragment to paste into a page."""
    parts = [f"<p><b>Warning:</b> {escape(line)}</p>" for line in warnings(sweep)]
    parts += map(_html_setting, papers)
    return "\n".join(parts) + "\n"


def _html_setting(paper: PaperTable) -> str:
    return html_table(paper.cells(html_bold), str(paper.setting), provenance(paper.setting, paper.points))


def html_bold(text: str) -> str:
    """A mark that outlives the escaping of `html_table`."""
    return f"\0{text}\1"


def html_table(cells: pandas.DataFrame, title: str, footer: list[str]) -> str:
    body = flat(cells).to_html(index=False, border=0).replace("\0", "<b>").replace("\1", "</b>")
    lines = "".join(f"<li>{escape(line)}</li>" for line in footer)
    return f"<h2>{escape(title)}</h2>\n{body}\n<ul>{lines}</ul>"


def flat(cells: pandas.DataFrame) -> pandas.DataFrame:
    """Headings of one line, and the row's names as its first cells."""
    cells = cells.copy()
    cells.columns = [" ".join(column) for column in cells.columns]
    return cells.reset_index()
