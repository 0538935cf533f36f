"""Runs the points of a sweep: leaves out what is recorded already, launches the rest, tracks, and sums up."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from backend.errors import TreebenchError
from runners.console import console
from runners.launchers.registry import launch
from runners.records import STATUSES, Outcome
from runners.store import StoredRun, config_hash, recorded
from runners.trackers.guard import Guarded
from runners.trackers.registry import open_tracker

Config = Mapping[str, Any]
MEASURED, WRONG_USE, INTERRUPTED = 0, 2, 130
NOT_MEASURED = ("failed", "timeout", "oom")


class Refused(str):
    """The line about a point whose config cannot be resolved."""


def run_sweep(points: Sequence[Config | Refused]) -> int:
    """Returns the exit status: 0 all measured or skipped, 1 some failed, 2 wrong use, 130 interrupted."""
    if not points:
        return MEASURED  # --help and the like
    outcomes: list[Outcome] = []
    tracker = Guarded(None)
    interrupted = False
    try:
        known = recorded_points(points)
        tracker = Guarded(open_tracker(points))
        for outcome in run_points(points, known):
            outcomes.append(outcome)
            console.print(outcome.line, style="red" if outcome.status in NOT_MEASURED else None)
            if outcome.folder:
                tracker.log(Path(outcome.folder))
    except TreebenchError as error:
        console.print(f"failed: {error}", style="red")
        return WRONG_USE
    except KeyboardInterrupt:
        interrupted = True
    sum_up(outcomes, len(points), interrupted)
    for output in outputs_of(points):
        tracker.close(Path(output))
    return INTERRUPTED if interrupted else exit_status(outcomes)


def recorded_points(points: Sequence[Config | Refused]) -> dict[str, dict[str, StoredRun]]:
    """By output folder and config hash."""
    for retry in (point["retry"] for point in points if not isinstance(point, Refused)):
        if not isinstance(retry, list) or not set(retry) <= set(STATUSES):
            raise TreebenchError(f"retry is {retry!r}; it must be a list of some of {', '.join(STATUSES)}")
    return {output: recorded(Path(output)) for output in outputs_of(points)}


def outputs_of(points: Sequence[Config | Refused]) -> list[str]:
    return sorted({str(point["output"]) for point in points if not isinstance(point, Refused)})


def run_points(points: Sequence[Config | Refused], known: Mapping[str, Mapping[str, StoredRun]]) -> Iterator[Outcome]:
    """What needs no measuring comes first. A config that appears twice is measured once."""
    todo: dict[str, Config] = {}
    for point in points:
        if isinstance(point, Refused):
            yield Outcome("failed", f"failed: {point}")
            continue
        digest = config_hash(point)
        found = known[str(point["output"])].get(digest)
        if digest in todo:
            yield Outcome("done", f"{digest[:8]}: the same point as one before it in this sweep")
        elif found is not None and not point["force"] and found.record.status not in point["retry"]:
            yield Outcome("done", already(found), str(found.folder))
        else:
            todo[digest] = point
    if todo:
        first = next(iter(todo.values()))
        yield from launch(list(todo.values()), first["launch"])


def already(found: StoredRun) -> str:
    if found.record.status == "ok":
        return f"{found.folder.name}: already measured (force=true measures again)"
    return f"{found.folder.name}: already {found.record.status} (force=true tries again): {found.record.reason}"


def sum_up(outcomes: Sequence[Outcome], planned: int, interrupted: bool) -> None:
    """Which points have no figure and why, then the counts."""
    if planned > 1:
        for outcome in outcomes:
            if outcome.status in (*NOT_MEASURED, "skipped"):
                name = Path(outcome.folder).name
                console.print(f"  {name + ': ' if name else ''}{outcome.line}")
        statuses = Counter(outcome.status for outcome in outcomes)
        counts = ", ".join(f"{statuses[status]} {status}" for status in sorted(statuses))
        console.print(f"{planned} points: {counts or 'none begun'}")
    if interrupted:
        left = planned - len(outcomes)
        console.print(f"interrupted with {left} of {planned} points to go; the same command goes on from here")


def exit_status(outcomes: Sequence[Outcome]) -> int:
    if len(outcomes) == 1 and outcomes[0].status == "failed":
        return WRONG_USE
    return int(any(outcome.status in NOT_MEASURED for outcome in outcomes))
