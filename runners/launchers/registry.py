"""Finds launchers by name: every file of this folder registers one, its options are its keyword parameters.

A launcher measures every point and yields how each went, in any order; closing it early stops what is under way.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from backend.errors import TreebenchError
from backend.ranks import num_ranks
from backend.registry import Registry
from runners.records import Outcome

Config = Mapping[str, Any]


LAUNCHERS: Registry[Callable[..., Iterator[Outcome]]] = Registry("launch", "runners.launchers")
register = LAUNCHERS.register


def launch(points: Sequence[Config], config: Config) -> Iterator[Outcome]:
    """Start the points as a file of `conf/launch/` says."""
    options = {key: value for key, value in config.items() if key != "name"}
    if num_ranks() > 1 and (config["name"] not in ("local", "inline") or options.get("isolate") is True):
        raise TreebenchError(
            "torchrun has started the processes already: leave launch=local and launch.isolate at auto"
        )
    LAUNCHERS.check(config["name"], options)
    return LAUNCHERS.find(config["name"])(points, **options)


def refuse_sharing(at_once: int, devices: int, share_device: bool, fix: str) -> None:
    """Two points timed on one device at once disturb each other, so neither time is true."""
    if at_once > max(1, devices) and not share_device:
        raise TreebenchError(
            f"this would time several points on one device at once, and no time would be true: {fix}, "
            "or launch.share_device=true where times do not matter"
        )
