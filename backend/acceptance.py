"""Acceptance rules and the table that says which of them is lossless for which kind of draft.

A rule may look at a drawn token only through the law it was drawn from. A pair outside the table biases the output
silently, so it is refused, both when a run is composed and when a draft is verified.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import signature

from jaxtyping import Bool, Float, Int
from torch import Tensor

from backend.errors import Incompatible, TreebenchError
from backend.matching import greedy, target_sampling, typical_lossy
from backend.ops import Ops
from backend.ops.select import TORCH
from backend.random import RandomStream
from backend.rejection import traversal, walk
from backend.sampling import Sampler
from backend.tree import Accepted, Draft, Proposal

ANY_PROPOSAL = frozenset(Proposal)


@dataclass
class NumericEvents:
    """Counts what exact arithmetic rules out. The counts stay on the device until they are read.

    invalid_rows: verified nodes whose logits give no law (NaN, +inf, nothing above -inf); such a node emits token 0.
    vanished_residuals: rejections, by rounding, that left no mass; the target's law is then kept as it was.
    """

    _counts: dict[str, Tensor | int] = field(default_factory=lambda: {"invalid_rows": 0, "vanished_residuals": 0})

    def count(self, event: str, happened: Bool[Tensor, "..."] | Int[Tensor, "..."]) -> None:
        self._counts[event] = self._counts[event] + happened.sum()

    def read(self) -> dict[str, int]:
        """The counts so far; waits for the device."""
        return {event: int(count) for event, count in self._counts.items()}


@dataclass(frozen=True)
class AcceptanceRule:
    """Decides which drafted nodes are committed. `lossless`: the output has the target's law for these `proposals`."""

    name: str
    decide: Callable[..., Accepted]
    lossless: bool = True
    proposals: frozenset[Proposal] = ANY_PROPOSAL
    needs_laws: bool = False
    greedy_only: bool = False
    events: NumericEvents = field(default_factory=NumericEvents, compare=False)
    ops: Ops = TORCH

    def __call__(
        self, draft: Draft, logits: Float[Tensor, "batch width vocab"], sampler: Sampler, random: RandomStream
    ) -> Accepted:
        """`logits` of the target in the order of `draft.nodes`; `random` is fresh in each step."""
        check_compatible(self, draft.proposal, sampler.temperature)
        if self.needs_laws and draft.laws is None:
            raise Incompatible(f"{self.name} needs the laws that the children were drawn from; the draft has none")
        return self.decide(draft, logits, sampler, random, self.events, self.ops)


_SAMPLED = frozenset({Proposal.IID, Proposal.WITHOUT_REPLACEMENT})

RULES: dict[str, Callable[..., AcceptanceRule]] = {
    "greedy": partial(AcceptanceRule, decide=greedy, greedy_only=True),
    "target_sampling": partial(AcceptanceRule, decide=target_sampling),
    "multi_step": partial(AcceptanceRule, decide=walk, proposals=frozenset({Proposal.IID}), needs_laws=True),
    "recursive_rejection": partial(
        AcceptanceRule, decide=walk, proposals=frozenset({Proposal.WITHOUT_REPLACEMENT}), needs_laws=True
    ),
    "traversal": partial(AcceptanceRule, decide=traversal, proposals=_SAMPLED, needs_laws=True),
    "typical_lossy": partial(AcceptanceRule, decide=typical_lossy, lossless=False),
}

_WHY_REFUSED = {
    Proposal.DETERMINISTIC: "deterministic children were not drawn from a law, so no ratio to a draft law is valid",
    Proposal.IID: "it strikes rejected tokens from the draft law, but i.i.d. children may repeat them",
    Proposal.WITHOUT_REPLACEMENT: "it keeps the draft law as it is, but children without replacement never repeat",
}


def create_rule(name: str, **options: float) -> AcceptanceRule:
    """A rule with event counts of its own. Only `typical_lossy` takes options, and it needs both of them."""
    if name not in RULES:
        raise TreebenchError(f"unknown acceptance rule {name!r}; there are {', '.join(RULES)}")
    rule = RULES[name](name=name)
    expected = {p.name for p in signature(rule.decide).parameters.values() if p.kind is p.KEYWORD_ONLY}
    if set(options) != expected:
        raise TreebenchError(
            f"acceptance rule {name!r} takes {sorted(expected) or 'no options'}, not {sorted(options)}"
        )
    return replace(rule, decide=partial(rule.decide, **options)) if options else rule


def check_compatible(rule: AcceptanceRule | str, proposal: Proposal, temperature: float | None = None) -> None:
    """Refuse a pair whose output would not have the target's law, or that a rule cannot decide at all."""
    rule = RULES[rule](name=rule) if isinstance(rule, str) else rule
    if proposal not in rule.proposals:
        raise Incompatible(f"{rule.name} cannot verify {proposal.value} drafts: {_WHY_REFUSED[proposal]}")
    if rule.greedy_only and temperature:
        raise Incompatible(f"{rule.name} decodes at temperature 0 only, not at {temperature}")


def default_rule(proposal: Proposal, temperature: float) -> str:
    """The rule that the papers use for this kind of draft."""
    if temperature == 0:
        return "greedy"
    by_proposal = {Proposal.IID: "multi_step", Proposal.WITHOUT_REPLACEMENT: "recursive_rejection"}
    return by_proposal.get(proposal, "target_sampling")
