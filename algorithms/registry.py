"""Finds algorithms by name: every file of this folder registers one, plug-ins register theirs when imported."""

from collections.abc import Callable, Mapping
from typing import Any, cast

from algorithms.base import Drafter, TreeAlgorithm
from backend.costs import CostModel
from backend.errors import TreebenchError
from backend.registry import Registry, parameters

ALGORITHMS: Registry[type[TreeAlgorithm]] = Registry("algorithm", "algorithms")
register = ALGORITHMS.register


def needs_drafter(name: str) -> bool:
    return "drafter" in parameters(ALGORITHMS.find(name))


def needs_costs(name: str) -> bool:
    """Whether the constructor has a parameter `costs`, which receives the cost model of target and drafter."""
    return "costs" in parameters(ALGORITHMS.find(name))


def create(
    name: str, drafter: Drafter | None, options: Mapping[str, Any], costs: CostModel | None = None
) -> TreeAlgorithm:
    """Build an algorithm; `options` are the values of its YAML file, one per keyword parameter of its constructor.

    A constructor that takes `**options` has those of the class above it, too.
    """
    ALGORITHMS.check(name, options)
    parts: dict[str, Any] = {}
    if needs_drafter(name):
        parts["drafter"] = drafter
    if needs_costs(name):
        parts["costs"] = costs
    if "drafter" in parts and drafter is None:
        raise TreebenchError(f"algorithm {name} needs a drafter: choose one with drafter=NAME")
    if "costs" in parts and costs is None:
        raise TreebenchError(f"algorithm {name} weighs costs and needs a cost model: run python -m runners.calibrate")
    return cast(Callable[..., TreeAlgorithm], ALGORITHMS.find(name))(**parts, **options)
