"""Finds algorithms by name: every file of this folder registers one, plug-ins register theirs when imported."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

from algorithms.base import Drafter, TreeAlgorithm
from backend.errors import TreebenchError
from backend.registry import Registry

ALGORITHMS: Registry[type[TreeAlgorithm]] = Registry("algorithm", "algorithms")
register = ALGORITHMS.register


def needs_drafter(name: str) -> bool:
    return "drafter" in inspect.signature(ALGORITHMS.find(name)).parameters


def create(name: str, drafter: Drafter | None, options: Mapping[str, Any]) -> TreeAlgorithm:
    """Build an algorithm; `options` are the values of its YAML file, one per keyword parameter of its constructor."""
    ALGORITHMS.check(name, options)
    algorithm = cast(Callable[..., TreeAlgorithm], ALGORITHMS.find(name))
    if not needs_drafter(name):
        return algorithm(**options)
    if drafter is None:
        raise TreebenchError(f"algorithm {name} needs a drafter: choose one with drafter=NAME")
    return algorithm(drafter, **options)
