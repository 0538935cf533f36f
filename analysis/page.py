"""The report page: one HTML file of a sweep that needs no network. Its parts are in `templates/`."""

import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from analysis.checks import EXPLANATION, checks_table
from analysis.inspector import page_traces
from analysis.load import BASELINE, Point, Setting, Sweep, by_setting
from analysis.metrics import share_of_bound
from analysis.remarks import BASES, DEFINITIONS, notes, warnings
from analysis.style import FAINT, GRID, INK, PAPER
from analysis.tables import missing_points
from runners.records import RunRecord
from runners.store import RUN_FILE

TEMPLATES = Path(__file__).parent / "templates"
PLOT_BUDGET = 650_000  # bytes of all plots in one page
MOST_CHECKS = 200  # rows
FACTS = ("cpu", "gpu", "threads", "os", "python", "mode")


@dataclass
class PagePlot:
    """An SVG file's text and what it shows; plots of one `group` are shown together."""

    group: str
    caption: str
    svg: str


def page(sweep: Sweep, plots: list[PagePlot], not_drawn: str, files: list[str], folder: Path) -> str:
    """The page as it lies in `folder`, from where links to raw records and `files` go."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("page.html").render(
        title=sweep.title,
        summary=_summary(sweep),
        css=Markup(_part("page.css")),
        script="".join(_part(name) for name in ("overview.js", "tree.js", "inspector.js")),
        warnings=warnings(sweep),
        remarks=notes(sweep),
        definitions=[*DEFINITIONS, BOUND, *(BASES[basis] for basis in BASES if basis in _bases(sweep))],
        environments=_environments(sweep),
        files=files,
        missing=missing_points(sweep),
        plots_not_drawn=not_drawn,
        checks_explained=EXPLANATION,
        **_parts(sweep, plots, folder),
    )


def _parts(sweep: Sweep, plots: list[PagePlot], folder: Path) -> dict[str, Any]:
    """What is cut to keep the page small, and the lines that say so."""
    settings = by_setting(sweep)
    kept = _within_budget(plots)
    checks = [_checks(setting, points) for setting, points in settings.items()]
    num_checks = sum(len(check["rows"]) for check in checks)
    traces = page_traces([point for points in settings.values() for point in points])
    rows = [_row(point, folder) for point in sweep.points]
    data = {"columns": _columns(sweep), "rows": rows, "traces": traces.entries}
    return {
        "data": json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c"),
        "plots": kept,
        "plot_groups": list(dict.fromkeys(plot.group for plot in kept)),
        "plots_left_out": _left_out(len(plots) - len(kept), "plots", "they are in the folder of this page"),
        "traces": traces.entries,
        "traces_left_out": traces.left_out,
        "checks": _shortened(checks),
        "checks_left_out": _left_out(num_checks - MOST_CHECKS, "rows", "they are in main_table.md"),
    }


BOUND = (
    "of bound: speedup over tau. 100 % is the memory roofline: drafting is free and a verifying forward costs what a "
    "plain one costs."
)


def _part(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _summary(sweep: Sweep) -> str:
    statuses = Counter(point.record.status for point in sweep.points)
    statuses["unreadable"] += len(sweep.problems)
    counts = ", ".join(f"{count} {status}" for status, count in statuses.items() if count)
    days = sorted({point.record.created[:10] for point in sweep.points if point.record.created})
    when = f"; measured {days[0]}" + (f" to {days[-1]}" if len(days) > 1 else "") if days else ""
    return (counts or "no points") + when


# --------------------------------------------------------------------------------------------------------- overview


def _bases(sweep: Sweep) -> list[str]:
    return sorted({point.record.basis for point in sweep.points})


def _columns(sweep: Sweep) -> list[dict[str, Any]]:
    """Figures that rest on a clock or a cost model have one column per basis."""
    bases = _bases(sweep)
    words = [("method", "algorithm"), ("task", "task"), ("target", "target"), ("machine", "device"), ("dtype", "dtype")]
    columns: list[dict[str, Any]] = [
        *(
            {"key": key, "title": title, "kind": "words", "filter": True, "constant": key not in ("method", "task")}
            for key, title in words
        ),
        {"key": "batch", "title": "batch", "kind": "number", "digits": 0, "filter": True, "constant": True},
        {"key": "temperature", "title": "T", "kind": "number", "digits": 1, "filter": True, "constant": True},
    ]
    for basis in bases:
        note = f" ({basis})" if len(bases) > 1 or basis != "measured" else ""
        bar = [f"low_{basis}", f"high_{basis}"]
        speedup = {"key": f"speedup_{basis}", "title": "speedup" + note, "kind": "number", "digits": 2, "unit": "x"}
        columns.append(speedup | {"bar": bar})
        columns.append({"key": f"rate_{basis}", "title": "tokens/s" + note, "kind": "number", "digits": 1})
        columns.append({"key": f"bound_{basis}", "title": "of bound" + note, "kind": "share"})
    columns += [
        {"key": "tau", "title": "tau", "kind": "number", "digits": 2},
        {"key": "identical", "title": "identical", "kind": "share"},
        {"key": "status", "title": "status", "kind": "words", "filter": True},
        {"key": "link", "title": "record", "kind": "link"},
    ]
    return columns


def _row(point: Point, folder: Path) -> dict[str, Any]:
    record, setting = point.record, point.setting
    clocked = {
        "speedup": record.speedup,
        "low": record.speedup_low,
        "high": record.speedup_high,
        "rate": record.tokens_per_second,
        "bound": share_of_bound(record) if record.algorithm != BASELINE else None,
    }
    row = {
        "method": point.label,
        **{key: getattr(setting, key) for key in ("target", "machine", "dtype", "temperature")},
        "task": record.task,
        "batch": setting.batch_size,
        **{f"{name}_{record.basis}": value for name, value in clocked.items()},
        "tau": record.acceptance_length,
        "identical": record.identical_rate,
        "status": record.status,
        "link": Path(os.path.relpath(point.folder / RUN_FILE, folder)).as_posix(),
    }
    return {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in row.items()}


# ------------------------------------------------------------------------------------------------------------- others


def _within_budget(plots: list[PagePlot]) -> list[PagePlot]:
    kept, spent = [], 0
    for plot in plots:
        svg = inline(plot.svg)
        if spent + len(svg) <= PLOT_BUDGET:
            kept.append(PagePlot(plot.group, plot.caption, svg))
            spent += len(svg)
    return kept


def inline(svg: str) -> str:
    """An SVG file for use inside a page: without its head, and in the page's own colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for color, variable in ((INK, "--ink"), (FAINT, "--soft"), (GRID, "--line"), (PAPER, "--card")):
        svg = re.sub(rf"(fill|stroke): {color}", rf"\1: var({variable})", svg, flags=re.IGNORECASE)
    return re.sub(r"\n\s*", "\n", svg)


def _checks(setting: Setting, points: list[Point]) -> dict[str, Any]:
    table = checks_table(points)
    return {"title": str(setting), "columns": list(table.columns), "rows": table.to_numpy().tolist()}


def _shortened(checks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    room, kept = MOST_CHECKS, []
    for check in checks:
        rows = check["rows"][: max(room, 0)]
        room -= len(rows)
        kept += [check | {"rows": rows}] if rows else []
    return kept


def _left_out(count: int, what: str, where: str) -> str:
    return f"{count} more {what}: {where}." if count > 0 else ""


def _environments(sweep: Sweep) -> list[dict[str, Any]]:
    """One entry for each distinct machine, set of packages and commit."""
    counts = Counter((point.setting.machine, *_facts(point.record)) for point in sweep.points)
    return [
        {"title": title, "points": f"{count} point{'s' * (count > 1)}", "facts": facts}
        for (title, *facts), count in counts.items()
    ]


def _facts(record: RunRecord) -> list[tuple[str, str]]:
    known: Mapping[str, Any] = record.environment
    facts = [(name, str(known[name])) for name in FACTS if known.get(name) is not None]
    packages = known.get("packages")
    versions = ", ".join(f"{k} {v}" for k, v in packages.items() if v) if isinstance(packages, Mapping) else ""
    facts += [("packages", versions)] if versions else []
    return [*facts, ("commit", record.git_commit or "unknown"), ("schema version", str(record.schema_version))]
