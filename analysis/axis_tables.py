"""Tables along one axis - batch size, temperature, device, target - with all else the same, in four formats."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pandas

from analysis.latex import PREAMBLE, latex_table
from analysis.load import Point, Setting, Sweep, by_setting
from analysis.remarks import provenance
from analysis.tables import FIGURES, bullets, escape_markdown, figure_text, flat, html_bold, html_table, pipe_table

AXES = {"batch": "batch_size", "temperature": "temperature", "hardware": "machine", "target": "target"}
NAMES = {"batch": "batch size", "temperature": "temperature", "hardware": "device", "target": "target"}
UNVARIED = {"batch_size": 0, "temperature": -1.0, "machine": "", "target": ""}


class AxisTable(NamedTuple):
    """Points that differ in `axis` (a key of AXES), method and task only."""

    axis: str
    points: list[Point]

    @property
    def values(self) -> list:
        return sorted({getattr(point.setting, AXES[self.axis]) for point in self.points})

    @property
    def title(self) -> str:
        setting = self.points[0].setting
        parts = {"basis": setting.basis, "target": setting.target, "machine": setting.machine, "dtype": setting.dtype}
        parts |= {"batch_size": f"batch {setting.batch_size}", "temperature": f"temperature {setting.temperature:g}"}
        return f"By {NAMES[self.axis]}: " + ", ".join(text for key, text in parts.items() if key != AXES[self.axis])


def axis_tables(sweep: Sweep, axis: str) -> list[AxisTable]:
    """One for every combination of the other choices that has at least two values of this one."""
    families: dict[Setting, list[Point]] = defaultdict(list)
    field = AXES[axis]
    for setting, points in by_setting(sweep).items():
        families[setting._replace(**{field: UNVARIED[field]})] += points
    tables = [AxisTable(axis, points) for points in families.values()]
    return [table for table in tables if len(table.values) > 1]


def cells(table: AxisTable, bold: Callable[[str], str]) -> pandas.DataFrame:
    """Figures as text: a row per task and method, columns value x figure; the best of a task's column is bold."""
    rows = dict.fromkeys((point.record.task, point.label) for point in table.points)
    records = {(p.record.task, p.label, getattr(p.setting, AXES[table.axis])): p.record for p in table.points}
    columns = {}
    for value in table.values:
        for title, (field, suffix) in FIGURES.items():
            figures = {row: getattr(records.get((*row, value)), field, None) for row in rows}
            best = _best(figures, records, value)
            texts = {row: figure_text(figure, suffix) for row, figure in figures.items()}
            columns[_heading(table.axis, value), title] = {r: bold(t) if r in best else t for r, t in texts.items()}
    frame = pandas.DataFrame(columns, index=pandas.MultiIndex.from_tuples(sorted(rows), names=["task", "algorithm"]))
    return frame


def _heading(axis: str, value) -> str:
    return value if isinstance(value, str) else f"{NAMES[axis]} {value:g}"


def _best(figures: dict, records: dict, value) -> list[tuple[str, str]]:
    """Rows that show the highest figure of their task; lossy methods and tasks of one method stay out."""
    by_task = defaultdict(dict)
    for row, figure in figures.items():
        if figure is not None and records[(*row, value)].lossless:
            by_task[row[0]][row] = round(figure, 2)
    return [row for of in by_task.values() if len(of) > 1 for row in of if of[row] == max(of.values())]


def footer(table: AxisTable) -> list[str]:
    """Provenance of every setting that the table joins, each line once."""
    by = defaultdict(list)
    for point in table.points:
        by[point.setting].append(point)
    return list(dict.fromkeys(line for setting, points in by.items() for line in provenance(setting, points)))


# ------------------------------------------------------------------------------------------------------------ formats


def files(sweep: Sweep) -> Iterator[tuple[str, str]]:
    """Name and content of every table along an axis that the sweep varies."""
    for axis in AXES:
        tables = axis_tables(sweep, axis)
        if tables:
            yield f"{axis}_table.md", "\n\n".join(map(_markdown, tables)) + "\n"
            yield (
                f"{axis}_table.tex",
                "\n".join([PREAMBLE, *(_latex(table, number) for number, table in enumerate(tables, 1))]),
            )
            yield f"{axis}_table.html", "\n".join(map(_html, tables)) + "\n"
            yield f"{axis}_table.csv", _csv(tables)


def _markdown(table: AxisTable) -> str:
    body = pipe_table(flat(cells(table, lambda text: f"**{text}**")))
    return f"## {escape_markdown(table.title)}\n\n{body}\n\n{bullets(footer(table))}"


def _latex(table: AxisTable, number: int) -> str:
    frame = cells(table, lambda text: rf"\textbf{{{text}}}")
    label = f"tab:{table.axis}-{number}"
    return latex_table(frame, table.title + ".", label, footer(table))


def _html(table: AxisTable) -> str:
    return html_table(cells(table, html_bold), table.title, footer(table))


def _csv(tables: list[AxisTable]) -> str:
    """Full precision, a row per point, with its provenance."""
    points = [point for table in tables for point in table.points]
    rows = [
        point.setting._asdict()
        | {"task": point.record.task, "algorithm": point.method, "lossless": point.record.lossless}
        | {name: getattr(point.record, name) for name in CSV_FIGURES}
        | {"commit": point.record.git_commit, "point": point.name}
        for point in points
    ]
    return pandas.DataFrame(rows).to_csv(index=False)


CSV_FIGURES = (
    *("speedup", "speedup_low", "speedup_high"),
    *("acceptance_length", "acceptance_length_low", "acceptance_length_high"),
    *("tokens_per_second", "baseline_tokens_per_second", "identical_rate"),
)
