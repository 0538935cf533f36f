"""Keeps a failing tracker from costing a sweep its points or its time."""

from collections.abc import Callable
from pathlib import Path

from runners.console import console
from runners.trackers.registry import Tracker

MOST_FAILURES = 2  # in a row; a service that is down may take a minute to say so, at every point


class Guarded:
    """Does nothing without a tracker. Points that are missed are tracked when the same sweep is run again."""

    def __init__(self, tracker: Tracker | None) -> None:
        self.tracker = tracker
        self.failures = 0

    def log(self, point: Path) -> None:
        """Hand over a point. Its record is on disk by now, and nothing is being timed."""
        if self.tracker is None or self.failures >= MOST_FAILURES:
            return
        problem = attempt(self.tracker.log, point)
        self.failures = self.failures + 1 if problem else 0
        if problem:
            console.print(f"tracker: {point.name} is recorded but not tracked: {problem}", style="yellow")
        if self.failures == MOST_FAILURES:
            console.print("tracker: given up for this sweep; the same command later tracks what is missing")

    def close(self, output: Path) -> None:
        if self.tracker is None:
            return
        if problem := attempt(self.tracker.close, output):
            console.print(f"tracker: {problem}", style="yellow")


def attempt(action: Callable[[Path], None], path: Path) -> str:
    """What went wrong, in one line; empty if nothing did."""
    try:
        action(path)
    except Exception as error:  # noqa: BLE001 - whatever a tracker raises, the records stand
        return " ".join(str(error).split()) or type(error).__name__
    return ""
