"""Finds trackers by name: every file of this folder registers one, its options are its keyword parameters."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from backend.registry import Registry


@runtime_checkable
class Tracker(Protocol):
    """A second view of the records. It reads what is on disk, after the fact; it may fail, and then nothing is lost."""

    def log(self, point: Path) -> None:
        """Take in the record in the folder `point`, unless it was taken in before."""
        ...

    def close(self, output: Path) -> None:
        """The sweep in folder `output` is over: say what is left to do."""
        ...


TRACKERS: Registry[Callable[..., Tracker]] = Registry("tracker", "runners.trackers")
register = TRACKERS.register


def open_tracker(points: Sequence[Any]) -> Tracker | None:
    """The tracker that the first point names; None for `none`."""
    configs = [point["tracker"] for point in points if isinstance(point, Mapping)]
    if not configs or configs[0]["name"] == "none":
        return None
    options = {key: value for key, value in configs[0].items() if key != "name"}
    TRACKERS.check(configs[0]["name"], options)
    return TRACKERS.find(configs[0]["name"])(**options)
