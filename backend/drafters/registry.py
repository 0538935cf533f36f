"""Finds drafters by kind: each file of this folder registers a function that builds one for a target."""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import Any, Protocol, get_type_hints, runtime_checkable

from backend.errors import Incompatible, TreebenchError
from backend.loading import LoadedModel
from backend.registry import Registry
from backend.targets import Target


@runtime_checkable
class Buildable(Protocol):
    """What builders return; the full protocol is `algorithms.base.Drafter`."""

    name: str


Builder = Callable[..., Buildable]
DRAFTERS: Registry[Builder] = Registry("drafter", "backend.drafters")
register = DRAFTERS.register


def create_drafter(kind: str, target: Target, loaded: LoadedModel, options: Mapping[str, Any]) -> Any:
    """Build a drafter; `options` are the values of its YAML file. Kind `none` gives None."""
    if kind == "none":
        if options:
            raise TreebenchError(f"drafter none has no option {next(iter(options))!r}")
        return None
    DRAFTERS.check(kind, options)
    wanted = get_type_hints(DRAFTERS.find(kind)).get("target", Target)
    if not isinstance(target, wanted):
        raise Incompatible(f"drafter {kind} needs a {wanted.__name__} as target, not a {type(target).__name__}")
    return DRAFTERS.find(kind)(target, loaded, **options)


def once_more(drafter: Any) -> Any:
    """The same drafter with a state of its own; one that holds a model says itself how to share it (`again`)."""
    return drafter.again() if hasattr(drafter, "again") else deepcopy(drafter)


def clocked_models(drafter: Any) -> Iterator[Any]:
    """Whatever computes forwards for a drafter and times them, the drafts that it is made of (`parts`) included."""
    if hasattr(drafter, "clock"):
        yield drafter
    for part in getattr(drafter, "parts", ()):
        yield from clocked_models(part)
