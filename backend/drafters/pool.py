"""Drafters made of drafters: a pool of named configurations, and the cascades that may be among them."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from backend.drafters.horizontal_cascade import HorizontalCascade
from backend.drafters.registry import create_drafter, once_more, register
from backend.drafters.vertical_cascade import VerticalCascade
from backend.errors import TreebenchError
from backend.loading import LoadedModel
from backend.model import TreeModel
from backend.tree import Accepted, TokenTree, Verified

Spec = Any  # a mapping, a drafter's kind and options; in a pool also the name of a member above, to have it once more


class Pool:
    """Configurations to choose among, by name in `members`. As a drafter of its own it is its first member.

    All of them are told what is committed, so that any of them can go on at any node: a member asked about a node
    whose ancestors it has not seen catches up on them in the same forward.
    """

    def __init__(self, name: str, members: Mapping[str, Any]) -> None:
        self.name = name
        self.members = dict(members)

    @property
    def parts(self) -> list[Any]:
        return list(self.members.values())

    def again(self) -> "Pool":
        return Pool(self.name, {name: once_more(member) for name, member in self.members.items()})

    def allocate(self, batch: int, capacity: int) -> None:
        for member in self.parts:
            member.allocate(batch, capacity)

    def prefill(self, prompts: Int[Tensor, "batch prompt"], lengths: Int[Tensor, " batch"]) -> None:
        for member in self.parts:
            member.prefill(prompts, lengths)

    def expand(self, tree: TokenTree, nodes: Int[Tensor, "batch frontier"]) -> Float[Tensor, "batch frontier vocab"]:
        return self.parts[0].expand(tree, nodes)

    def commit(self, tree: TokenTree, accepted: Accepted, verified: Verified) -> None:
        for member in self.parts:
            member.commit(tree, accepted, verified)


@register("pool")
def build_pool(target: TreeModel, loaded: LoadedModel, *, members: Mapping[str, Any]) -> Pool:
    """`members` by name: a spec each, in which `top`, `bottom` and `drafts` may name other members."""
    if not members:
        raise TreebenchError("drafter pool has no members")
    made: dict[str, Any] = {}
    for name in sorted(members, key=lambda name: _refers(members[name], members)):
        made[name] = _made(members[name], target, loaded, made)
        made[name].name = name
    return Pool("pool", {name: made[name] for name in members})


@register("vertical_cascade")
def build_vertical(
    target: TreeModel, loaded: LoadedModel, *, top: Spec, bottom: Spec, lookahead: int, lenience: float
) -> VerticalCascade:
    top_draft, bottom_draft = (_made(spec, target, loaded, {}) for spec in (top, bottom))
    return VerticalCascade("vertical_cascade", top_draft, bottom_draft, lookahead, lenience)


@register("horizontal_cascade")
def build_horizontal(
    target: TreeModel, loaded: LoadedModel, *, drafts: Sequence[Spec], lengths: Sequence[int]
) -> HorizontalCascade:
    made = [_made(spec, target, loaded, {}) for spec in drafts]
    return HorizontalCascade("horizontal_cascade", made, lengths)


def _made(spec: Any, target: TreeModel, loaded: LoadedModel, members: Mapping[str, Any]) -> Any:
    """The draft of a spec; one that is named is the same draft on the same weights, with a state of its own."""
    if isinstance(spec, str):
        if spec not in members:
            known = ", ".join(members) or "none; only drafts of a pool have names"
            raise TreebenchError(f"there is no draft {spec!r} to refer to (made before it: {known})")
        return once_more(members[spec])
    if not isinstance(spec, Mapping):
        return spec
    if "kind" not in spec:
        raise TreebenchError(f"a draft is given by its kind and its options; {dict(spec)!r} has no kind")
    options = {key: _referred(key, value, members) for key, value in spec.items() if key not in ("kind", "name")}
    return create_drafter(spec["kind"], target, loaded, options)


def _refers(spec: Any, members: Mapping[str, Any]) -> bool:
    named = [spec] if isinstance(spec, str) else [*spec.values(), *spec.get("drafts", ())]
    return any(isinstance(value, str) and value in members for value in named)


def _referred(key: str, value: Any, members: Mapping[str, Any]) -> Any:
    if key in ("top", "bottom") and isinstance(value, str) and value in members:
        return once_more(members[value])
    if key == "drafts" and isinstance(value, Sequence):
        return [once_more(members[draft]) if isinstance(draft, str) and draft in members else draft for draft in value]
    return value
