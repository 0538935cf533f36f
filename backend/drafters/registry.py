"""Finds drafters by kind: each file of this folder registers a function that builds one for a target."""

from collections.abc import Callable, Mapping
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
