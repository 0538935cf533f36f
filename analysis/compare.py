"""`python -m analysis.compare BEFORE AFTER`: two sweeps point by point, with an exit status for CI."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from analysis.load import Point, Sweep, load_sweep
from analysis.paired import MIN_PROMPTS, Paired, compare_points
from analysis.remarks import differs

REGRESSED, WRONG_USE = 1, 2
PIPE_WIDTH = 150
HELP = f"""\
Points are matched by the hash of their config, and where a config has changed by setting, algorithm, drafter and
task. A point has regressed if

  its speedup fell by more than --tolerance and the 95 % interval of the ratio over the same prompts excludes 1
    (each sweep is measured against a baseline of its own; {MIN_PROMPTS} common prompts are needed),
  it was measured before and now failed or is missing (--allow-missing lets it be missing), or
  its answers equalled plain decoding's where they must (greedy, full precision) and no longer do.

example:
  python -m analysis.compare results/main results/branch

exit status: 0 nothing regressed, 1 something did, 2 wrong use or nothing in common"""


class Change(NamedTuple):
    """One point before and after. `regression` says in a few words what is worse; empty if nothing is."""

    before: Point
    after: Point | None
    paired: Paired | None
    regression: str


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.compare",
        description="Paired differences of two sweeps.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("before", type=Path, metavar="BEFORE", help="sweep folder to compare with")
    parser.add_argument("after", type=Path, metavar="AFTER", help="sweep folder in question")
    what = "share of the speedup that may be lost (default: %(default)s)"
    parser.add_argument("--tolerance", type=float, default=0.02, metavar="SHARE", help=what)
    parser.add_argument("--allow-missing", action="store_true", help="points that only BEFORE has are no regression")
    options = parser.parse_args(arguments)
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    for folder in (options.before, options.after):
        if not folder.is_dir():
            errors.print(Text(f"{folder}: no such folder; give the output= folder of a benchmark run"))
            return WRONG_USE
    changes = compare(load_sweep(options.before), load_sweep(options.after), options.tolerance, options.allow_missing)
    if not any(change.after for change in changes):
        errors.print(Text(f"{options.before} and {options.after} have no measured point in common"))
        return WRONG_USE
    _print(changes)
    return REGRESSED if any(change.regression for change in changes) else 0


def compare(before: Sweep, after: Sweep, tolerance: float, allow_missing: bool) -> list[Change]:
    """One change for every point that `before` measured."""
    matches = _matches(before.succeeded, after.points)
    changes = []
    for point in before.succeeded:
        other = matches.get(point.name)
        paired = compare_points(point.record, other.record) if other and other.record.status == "ok" else None
        changes.append(Change(point, other, paired, _regression(point, other, paired, tolerance, allow_missing)))
    return changes


def _matches(before: list[Point], after: list[Point]) -> dict[str, Point]:
    """By the name of the point before. What is not unique is not matched."""
    by_hash = _unique((point.record.config_hash, point) for point in after if point.record.config_hash)
    by_choice = _unique((_choice(point), point) for point in after)
    mine = _unique((_choice(point), point) for point in before)
    found = {}
    for point in before:
        match = by_hash.get(point.record.config_hash)
        if match is None and mine.get(_choice(point)) is point:
            match = by_choice.get(_choice(point))
        if match is not None:
            found[point.name] = match
    return found


def _choice(point: Point) -> tuple:
    """What was run, whatever the machine's name: two commits may be measured on two runners of the same kind."""
    record, setting = point.record, point.setting
    return setting._replace(machine=record.device), record.algorithm, record.drafter, record.task


def _unique(pairs: Iterable[tuple]) -> dict:
    found: dict = {}
    for key, point in pairs:
        found[key] = None if key in found else point
    return {key: point for key, point in found.items() if point is not None}


def _regression(
    before: Point, after: Point | None, paired: Paired | None, tolerance: float, allow_missing: bool
) -> str:
    if after is None:
        return "" if allow_missing else "missing"
    if after.record.status != "ok":
        return f"{after.record.status}: {' '.join(after.record.reason.split())}"
    if differs(after.record) and not differs(before.record):
        return "other output"
    slower = paired is not None and paired.verdict == "slower" and paired.ratio < 1 - tolerance
    return "slower" if slower else ""


def _print(changes: list[Change]) -> None:
    console = Console(highlight=False)
    console = console if console.is_terminal else Console(highlight=False, width=PIPE_WIDTH)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    names = ("algorithm", "task", "setting", "before", "after", "ratio", "95 % interval", "tau", "verdict")
    for name in names:
        words = name in (*names[:3], "verdict")
        width = 36 if name == "verdict" else None
        table.add_column(name, justify="left" if words else "right", overflow="fold", min_width=width)
    for change in changes:
        style = "bold red" if change.regression else None
        table.add_row(*map(Text, _cells(change)), style=style)
    console.print(table)
    regressed = sum(bool(change.regression) for change in changes)
    console.print(
        Text(f"{len(changes)} points, {regressed} regressed. ratio: speedup after over before, same prompts.")
    )


def _cells(change: Change) -> list[str]:
    before, paired = change.before.record, change.paired
    after = change.after.record if change.after and change.after.record.status == "ok" else None
    interval = f"{paired.low:.3f}-{paired.high:.3f}" if paired and paired.low is not None else "-"
    verdict = f"REGRESSED: {change.regression}" if change.regression else paired.verdict if paired else "not compared"
    return [
        *(change.before.label, before.task, str(change.before.setting)),
        *(_figure(before.speedup, "x"), _figure(after.speedup if after else None, "x")),
        *(f"{paired.ratio:.3f}" if paired else "-", interval),
        f"{_figure(before.acceptance_length)} -> {_figure(after.acceptance_length if after else None)}",
        verdict,
    ]


def _figure(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{value:.2f}{unit}"


if __name__ == "__main__":
    raise SystemExit(main())
