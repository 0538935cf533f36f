"""`python -m analysis.report SWEEP_DIR`: a sweep's tables and plots, in the terminal and in `SWEEP_DIR/report/`."""

import argparse
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pandas import DataFrame
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from analysis.checks import EXPLANATION, checks_table
from analysis.load import Setting, Sweep, by_setting, load_sweep, notes, provenance, warnings
from analysis.page import PagePlot, page
from analysis.plots import QUANTITIES, draw, encode
from analysis.tables import detail_table, latex, markdown, missing_points, points_csv
from runners.store import write_bytes

NOTHING_TO_REPORT, WRONG_USE = 1, 2
PIPE_WIDTH = 110
PAGE = "index.html"

HELP = """\
Reads the point folders of SWEEP_DIR (run.json), prints algorithm x task, and writes to SWEEP_DIR/report/:

  main_table.csv           one row per point, failed ones too; columns are the fields of run.json
  main_table.md, .tex      the papers' table: speedup and acceptance length (tau) per task, best in bold
  speedup.svg, .png        bars with 95 % intervals; acceptance_length.svg, .png likewise

Points that differ in basis (measured, projected, replayed), target, device, dtype, batch size or temperature
get tables and plots of their own.

examples:
  python -m runners.benchmark algorithm=eagle2 task=humaneval output=results/first
  python -m analysis.report results/first

exit status: 0 reported (unreadable and failed points are listed), 1 no point has a figure, 2 wrong use"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.report",
        description="Tables and plots of a sweep.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sweep_dir", type=Path, metavar="SWEEP_DIR", help="folder that benchmark runs wrote (output=)")
    return report(parser.parse_args(arguments).sweep_dir)


def report(folder: Path) -> int:
    """Print and write the report of a sweep; returns the exit status."""
    console, errors = _console(stderr=False), _console(stderr=True)
    if not folder.is_dir():
        errors.print(Text(f"{folder}: no such folder; give the output= folder of a benchmark run"), soft_wrap=True)
        return WRONG_USE
    sweep = load_sweep(folder)
    _print_settings(console, sweep)
    _print_missing(console, sweep)
    if sweep.points:
        written = write_report(sweep)
        console.print(Text(f"wrote {folder / 'report'}: {', '.join(written)}", style="dim"), soft_wrap=True)
    failure = _failure(sweep)
    if failure:
        errors.print(Text(f"{folder}: {failure}"), soft_wrap=True)
        return NOTHING_TO_REPORT
    return 0


def _console(stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False)
    return console if console.is_terminal else Console(stderr=stderr, highlight=False, width=PIPE_WIDTH)


def _failure(sweep: Sweep) -> str:
    """Why there is nothing to report, in one line; empty when there is."""
    if sweep.succeeded:
        return ""
    statuses = Counter(point.record.status for point in sweep.points)
    counts = [f"{count} {status}" for status, count in statuses.items()]
    counts += [f"{len(sweep.problems)} unreadable"] if sweep.problems else []
    return f"no point has a figure ({', '.join(counts)})" if counts else "no points: no folder in it has a run.json"


def write_report(sweep: Sweep) -> list[str]:
    """Write the report folder; returns the names of its files. Plots of an earlier report do not outlive it."""
    folder = sweep.folder / "report"
    folder.mkdir(exist_ok=True)
    names, page_plots = [], []
    for name, content in _files(sweep, page_plots):
        write_bytes(folder / name, content)
        names.append(name)
    write_bytes(folder / PAGE, page(sweep, page_plots, names, folder).encode(errors="replace"))
    names.append(PAGE)
    plots = [path for quantity in QUANTITIES for path in folder.glob(f"{quantity.name}*")]
    for path in plots:
        if path.suffix in (".svg", ".png") and path.name not in names:
            path.unlink()
    return names


def _files(sweep: Sweep, page_plots: list[PagePlot]) -> Iterator[tuple[str, bytes]]:
    yield "main_table.csv", points_csv(sweep).encode()
    yield "main_table.md", markdown(sweep).encode()
    yield "main_table.tex", latex(sweep).encode()
    settings = by_setting(sweep)
    for number, (setting, points) in enumerate(settings.items(), 1):
        suffix = f"-{number}-{_slug(setting)}" if len(settings) > 1 else ""
        for quantity in QUANTITIES:
            figure = draw(quantity, setting, points)
            page_plots.append(PagePlot(str(setting), quantity.label, encode(figure, "page").decode()))
            for form in ("svg", "png"):
                yield f"{quantity.name}{suffix}.{form}", encode(figure, form)


def _slug(setting: Setting) -> str:
    text = "-".join([*map(str, setting[:4]), f"b{setting.batch_size}", f"t{setting.temperature:g}"])
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text)[:100]


# ------------------------------------------------------------------------------------------------------------ terminal


def _print_settings(console: Console, sweep: Sweep) -> None:
    footers = {}  # without repetition, in order
    for setting, points in by_setting(sweep).items():
        console.print(_terminal_table(str(setting), detail_table(points)))
        console.print(_terminal_table("checks", checks_table(points)))
        footers |= dict.fromkeys((*provenance(setting, points), EXPLANATION))
    for line in footers:
        console.print(Text(line, style="dim"))
    for line in notes(sweep):
        console.print(Text(f"note: {line}"))
    for line in warnings(sweep):
        console.print(Text(f"WARNING: {line}", style="bold red"))


def _terminal_table(title: str, cells: DataFrame) -> Table:
    table = Table(title=Text(title, style="bold"), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in cells.columns:
        words = name in ("algorithm", "task", "rule")
        table.add_column(name, justify="left" if words else "right", overflow="fold", no_wrap=not words)
    last = (cells["algorithm"] != cells["algorithm"].shift(-1)) & (cells["task"].nunique() > 1)
    for row, ends_section in zip(cells.itertuples(index=False), last, strict=True):
        table.add_row(*map(Text, row), end_section=bool(ends_section))
    return table


def _print_missing(console: Console, sweep: Sweep) -> None:
    missing = missing_points(sweep)
    if missing:
        console.print(Text(f"points without a figure ({len(missing)}):", style="bold yellow"))
    for name, status, reason in missing:
        console.print(Text(f"  {status}  {name}: {reason}"), soft_wrap=True)


if __name__ == "__main__":
    raise SystemExit(main())
