"""Finds drafters by kind: each file of this folder registers a function that builds one for a target."""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import Any, Protocol, runtime_checkable

from backend.errors import TreebenchError
from backend.loading import LoadedModel
from backend.model import TreeModel
from backend.registry import Registry


@runtime_checkable
class Buildable(Protocol):
    """What builders return; the full protocol is `algorithms.base.Drafter`."""

    name: str


Builder = Callable[..., Buildable]
DRAFTERS: Registry[Builder] = Registry("drafter", "backend.drafters")
register = DRAFTERS.register


def create_drafter(kind: str, target: TreeModel, loaded: LoadedModel, options: Mapping[str, Any]) -> Any:
    """Build a drafter; `options` are the values of its YAML file. Kind `none` gives None."""
    if kind == "none":
        if options:
            raise TreebenchError(f"drafter none has no option {next(iter(options))!r}")
        return None
    DRAFTERS.check(kind, options)
    return DRAFTERS.find(kind)(target, loaded, **options)


def once_more(drafter: Any) -> Any:
    """The same drafter with a state of its own; one that holds a model says itself how to share it (`again`)."""
    return drafter.again() if hasattr(drafter, "again") else deepcopy(drafter)


def tree_models(drafter: Any) -> Iterator[TreeModel]:
    """Every model behind a drafter, those of the drafts that it is made of (`parts`) included."""
    if isinstance(drafter, TreeModel):
        yield drafter
    for part in getattr(drafter, "parts", ()):
        yield from tree_models(part)
