"""`python -m analysis.report SWEEP_DIR`: tables, plots and a page, in the terminal and in `SWEEP_DIR/report/`."""

import argparse
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path

from matplotlib.figure import Figure
from pandas import DataFrame
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from analysis.axis_tables import files as axis_files
from analysis.checks import EXPLANATION, checks_table
from analysis.cost_table import cost_table_md
from analysis.evidence import Evidence
from analysis.figures import Drawing, drawings
from analysis.load import Sweep, by_setting, load_sweep, merge_sweeps
from analysis.metrics_table import metrics_csv
from analysis.page import PagePlot, page
from analysis.plots import encode_all
from analysis.remarks import notes, provenance, warnings
from analysis.tables import detail_table, html, latex, markdown, missing_points, paper_tables, points_csv
from runners.store import write_bytes

NOTHING_TO_REPORT, WRONG_USE = 1, 2
PIPE_WIDTH = 110
PAGE = "index.html"
MOST_PLOTS = 12  # a second each
FIGURES_PER_WORKER = 4  # fewer are not worth a process
MOST_ROWS = 120  # of all tables in the terminal
LIST = "plots.txt"  # names of the plots of the last report, so that the next one can remove them

HELP = """\
Reads the point folders of SWEEP_DIR (run.json), prints algorithm x task, and writes to SWEEP_DIR/report/:

  index.html               everything in one page: overview, plots, drafted trees step by step, losslessness
  main_table.csv           one row per point, failed ones too; columns are the fields of run.json
  metrics.csv              per point: waste, acceptance by depth, calibration, distance to the best tree in hindsight
  cost_table.md            where a speedup comes from: tokens per step, levels, cost of a draft level, of verifying
  main_table.md, .tex      the papers' table: speedup and acceptance length (tau) per task, best in bold
  *.svg, *.png, *.pdf      plots, one paper column wide: speedup and acceptance_length with 95 % intervals,
                           speedup_by_batch, pareto, time_split, acceptance_by_budget, cost_by_width, calibration,
                           depth_rank, router

Points that differ in basis (measured, projected, replayed), target, device, dtype, batch size or temperature
get tables and plots of their own. Several SWEEP_DIRs, also other people's, become one report in --output.

examples:
  python -m runners.benchmark algorithm=eagle2 task=humaneval output=results/first
  python -m analysis.report results/first
  python -m analysis.report results/first theirs/h100 --output results/both

exit status: 0 reported (unreadable and failed points are listed), 1 no point has a figure, 2 wrong use"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.report",
        description="Tables, plots and a page of a sweep.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = "folder that benchmark runs wrote (output=)"
    parser.add_argument("sweep_dirs", type=Path, nargs="+", metavar="SWEEP_DIR", help=what)
    parser.add_argument("--output", type=Path, metavar="DIR", help="where the report goes (default: SWEEP_DIR/report)")
    parser.add_argument(
        "--plots", type=int, default=MOST_PLOTS, metavar="N", help="draw at most N plots (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    return report(options.sweep_dirs, options.output, options.plots)


def report(folders: list[Path], output: Path | None, most_plots: int) -> int:
    """Returns the exit status."""
    console, errors = _console(stderr=False), _console(stderr=True)
    if wrong := _wrong_use(folders, output):
        errors.print(Text(wrong), soft_wrap=True)
        return WRONG_USE
    sweep = load_sweep(folders[0]) if len(folders) == 1 else merge_sweeps(folders)
    target = output or folders[0] / "report"
    _print_settings(console, sweep)
    _print_missing(console, sweep)
    if sweep.points:
        written = write_report(sweep, target, most_plots)
        console.print(Text(f"wrote {target}: {', '.join(written)}", style="dim"), soft_wrap=True)
    failure = _failure(sweep)
    if failure:
        errors.print(Text(f"{sweep.folder}: {failure}"), soft_wrap=True)
        return NOTHING_TO_REPORT
    return 0


def _wrong_use(folders: list[Path], output: Path | None) -> str:
    missing = [folder for folder in folders if not folder.is_dir()]
    if missing:
        return f"{missing[0]}: no such folder; give the output= folder of a benchmark run"
    return "several sweeps need --output DIR for their common report" if len(folders) > 1 and output is None else ""


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


def write_report(sweep: Sweep, folder: Path, most_plots: int) -> list[str]:
    """Write the report folder; returns the names of its files. Plots of an earlier report do not outlive it."""
    folder.mkdir(parents=True, exist_ok=True)
    earlier = (folder / LIST).read_text().split() if (folder / LIST).exists() else []
    for name in earlier:
        if Path(name).name == name:
            (folder / name).unlink(missing_ok=True)
    evidence = Evidence(sweep.succeeded)
    drawn, not_drawn = _draw(sweep, evidence, most_plots)
    tables = dict(_tables(sweep, evidence))
    plots = {f"{d.name}.{form}": content for d, files in drawn for form, content in files.items()}
    for name, content in (tables | plots).items():
        write_bytes(folder / name, content)
    write_bytes(folder / LIST, "".join(f"{name}\n" for name in plots).encode())
    shown = [PagePlot(d.group, d.caption, files["svg"].decode()) for d, files in drawn]
    html_page = page(sweep, shown, not_drawn, [*tables, *plots], folder)
    write_bytes(folder / PAGE, html_page.encode(errors="replace"))
    return [PAGE, *tables, *plots]


def _tables(sweep: Sweep, evidence: Evidence) -> Iterator[tuple[str, bytes]]:
    yield "main_table.csv", points_csv(sweep).encode()
    papers = paper_tables(sweep)
    yield "main_table.md", markdown(sweep, papers).encode()
    yield "main_table.tex", latex(sweep, papers).encode()
    yield "main_table.html", html(sweep, papers).encode()
    yield "metrics.csv", metrics_csv(sweep.succeeded, evidence).encode()
    if costs := cost_table_md(sweep, evidence):
        yield "cost_table.md", costs.encode()
    for name, content in axis_files(sweep):
        yield name, content.encode()


def _draw(sweep: Sweep, evidence: Evidence, most_plots: int) -> tuple[list[tuple[Drawing, dict[str, bytes]]], str]:
    """The first plots in every form, and a line that says so if there are more."""
    wanted = list(islice(drawings(by_setting(sweep), evidence), most_plots + 1))
    more = f"Only the first {most_plots} plots are drawn; --plots N draws more." if len(wanted) > most_plots else ""
    figures = [drawing.make() for drawing in wanted[:most_plots]]
    return list(zip(wanted, _encoded(figures), strict=False)), more


def _encoded(figures: Sequence[Figure]) -> list[dict[str, bytes]]:
    """Many figures on all cores: drawing is what a report's time goes into."""
    workers = min(os.cpu_count() or 1, len(figures) // FIGURES_PER_WORKER)
    if workers < 2:
        return [encode_all(figure) for figure in figures]
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(encode_all, figures))


# ------------------------------------------------------------------------------------------------------------ terminal


def _print_settings(console: Console, sweep: Sweep) -> None:
    footers, room, left_out = {}, MOST_ROWS, 0  # footers without repetition, in order
    for setting, points in by_setting(sweep).items():
        if footers and len(points) > room:
            room, left_out = 0, left_out + len(points)
            continue
        room -= len(points)
        console.print(_terminal_table(str(setting), detail_table(points)))
        console.print(_terminal_table("checks", checks_table(points)))
        footers |= dict.fromkeys((*provenance(setting, points), EXPLANATION))
    if left_out:
        console.print(f"{left_out} more points: their tables are in main_table.md", style="bold")
    for line in footers:
        console.print(Text(line, style="dim"))
    for line in notes(sweep):
        console.print(Text(f"note: {line}"))
    for line in warnings(sweep):
        console.print(Text(f"WARNING: {line}", style="bold red"))


def _terminal_table(title: str, cells: DataFrame) -> Table:
    table = Table(title=Text(title, style="bold"), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in cells.columns:
        justify = "left" if name in ("algorithm", "task", "rule") else "right"
        is_label = name == "algorithm"  # "fixed_tree (token_recycling)" breaks before its drafter, nothing else does
        table.add_column(name, justify=justify, overflow="fold", no_wrap=not is_label, min_width=18 * is_label)
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
